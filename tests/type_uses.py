"""Right and wrong uses of the API, which is read by type checkers and never run.

types_test.py wants an error from each checker in every line that ends with `# wrong`, and in no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, assert_type

import ray_mono as ray
from ray_mono.actor import ActorClass, ActorHandle, ActorProxy


@ray.remote
def double(number: int) -> int:
    return 2 * number


@ray.remote(num_cpus=2, max_retries=1)
def greet(name: str) -> str:
    return f"hello {name}"


@ray.remote
def count(number: int) -> Iterator[int]:
    yield from range(number)


@ray.remote(num_returns=2)
def split(text: str) -> tuple[str, str]:
    return text[:1], text[1:]


@ray.remote
def nested(ref: list[ray.ObjectRef[int]]) -> ray.ObjectRef[int]:
    return ref[0]


def tasks() -> None:
    ref = double.remote(1)
    assert_type(ref, ray.ObjectRef[int])
    assert_type(double.remote(ref), ray.ObjectRef[int])
    assert_type(double.remote(number=1), ray.ObjectRef[int])
    assert_type(greet.remote("you"), ray.ObjectRef[str])
    assert_type(double.options(num_cpus=0.5).remote(1), ray.ObjectRef[int])
    assert_type(nested.remote([ref]), ray.ObjectRef[ray.ObjectRef[int]])
    text: ray.ObjectRef[str] = double.remote(1)  # wrong
    number: int = double.remote(1)  # wrong
    double.remote(1) + 1  # wrong
    double.remote(1).value  # wrong
    double.submit(1)  # wrong
    double(1)  # wrong


def several_values() -> None:
    first, rest = split.remote("abc")
    both = double.options(num_returns=2).remote(1)
    assert_type(ray.get(both), list[Any])
    assert_type(ray.get(double.options(num_returns=1).remote(1)), int)
    assert_type(both, list[ray.ObjectRef[Any]])
    assert_type(ray.get([first, rest]), list[Any])


def generators() -> None:
    items = count.remote(3)
    assert_type(items, ray.ObjectRefGenerator[int])
    for ref in items:
        assert_type(ref, ray.ObjectRef[int])
    texts: ray.ObjectRefGenerator[str] = count.remote(3)  # wrong
    items[0]  # wrong


def values() -> None:
    ref = double.remote(1)
    other = greet.remote("you")
    assert_type(ray.get(ref), int)
    assert_type(ray.get(ref, timeout=1.5), int)
    assert_type(ray.get([ref, double.remote(2)]), list[int])
    assert_type(ray.get(ray.get(nested.remote([ref]))), int)
    assert_type(ray.put("text"), ray.ObjectRef[str])
    assert_type(ray.get(ray.put({"a": 1})), dict[str, int])
    mixed: list[object] = ray.get([ref, other])
    wider: ray.ObjectRef[object] = ref
    text: str = ray.get(ref)  # wrong
    texts: list[str] = ray.get([ref])  # wrong
    ray.get(1)  # wrong
    ray.get(ref, 1.5)  # wrong
    ray.get(ref, timeout="soon")  # wrong


def waiting() -> None:
    refs = [double.remote(number) for number in range(3)]
    ready, pending = ray.wait(refs, num_returns=2, timeout=0)
    assert_type(ready, list[ray.ObjectRef[int]])
    assert_type(ray.get(pending), list[int])
    ray.wait(refs[0])  # wrong
    ray.wait(refs, num_returns="all")  # wrong


async def awaiting() -> None:
    assert_type(await double.remote(1), int)
    assert_type(double.remote(1).future().result(), int)
    async for ref in count.remote(3):
        assert_type(await ref, int)
    text: str = await double.remote(1)  # wrong


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @ray.method
    def add(self, number: int) -> int:
        self.total += number
        return self.total

    @ray.method(concurrency_group="reading")
    async def name(self) -> str:
        return "counter"

    @ray.method
    def history(self) -> Iterator[int]:
        yield self.total

    @ray.method(num_returns=2)
    def ends(self) -> tuple[int, int]:
        return 0, self.total

    def undeclared(self) -> int:
        # Inside of the class a declared method is the method that it was.
        assert_type(self.add(1), int)
        self.add("one")  # wrong
        return self.total


CounterActor = ray.remote(Counter)


def actors() -> None:
    assert_type(CounterActor, ActorClass[Counter])
    handle = CounterActor.options(name="counter").remote(1)
    takes_handle(handle)
    takes_proxy(handle)
    ray.kill(handle)
    # What type checkers cannot know of is allowed.
    handle.undeclared.remote().whatever()
    number: int = CounterActor.remote()  # wrong
    CounterActor.start()  # wrong
    CounterActor(1)  # wrong
    ray.kill(CounterActor)  # wrong


def takes_handle(counter: ActorHandle[Counter]) -> None:
    counter.add.remote(1)
    ray.get(counter.add.options(name="addition").remote(1))


def takes_proxy(counter: ActorProxy[Counter]) -> None:
    total: ray.ObjectRef[int] = counter.add.remote(1)
    name: ray.ObjectRef[str] = counter.name.remote()
    for ref in counter.history.remote():
        item: int = ray.get(ref)
        other_item: str = ray.get(ref)  # wrong
    first, last = counter.ends.remote()
    wrong_total: ray.ObjectRef[str] = counter.add.remote(1)  # wrong
    wrong_name: ray.ObjectRef[int] = counter.name.remote()  # wrong


def annotated() -> None:
    counter: ActorProxy[Counter] = CounterActor.remote()
    total: int = ray.get(counter.add.remote(1))
    text: ray.ObjectRef[str] = counter.add.remote(1)  # wrong


def decorated(function: Callable[[int], int]) -> None:
    assert_type(ray.remote(function), ray.remote_function.RemoteFunction[ray.ObjectRef[int]])
    ray.remote(function, num_cpus=1)  # wrong
    ray.remote(3)  # wrong
    function.remote(1)  # wrong

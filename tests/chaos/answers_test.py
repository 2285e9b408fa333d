"""What calls have returned, and what they have printed, is not lost when the next call ends the process."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import RayActorError, RayError, WorkerCrashedError
from tests.chaos.victims import Victims
from tests.integration.bounded import get
from tests.integration.clusters import CommandLineCluster
from tests.integration.scripts import Script

Start = Callable[..., Victims]
WAYS = ("os._exit", "SIGKILL", "SIGSEGV", "abort")


def end(how: str) -> None:
    """Ends this process at once."""
    if how == "os._exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    if how == "SIGSEGV":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


def outcome(ref: Any) -> Any:
    """Its value, or that it is lost."""
    try:
        return get(ref)
    except RayError:
        return "lost"


@ray.remote(num_cpus=0)
class Fragile:
    def next(self, number: Any) -> int:
        """Short as it is, it may end the process."""
        if type(number) is str:
            end(number)
        return int(number) + 1

    def several(self, number: int) -> Any:
        return number, "x" * 1000

    def text(self, length: int) -> str:
        return "x" * length

    def length(self, text: str) -> int:
        return len(text)

    def fail(self) -> None:
        raise ValueError("as it should")

    def die_at(self, item: Any) -> int:
        if item == 7:
            end("os._exit")
        return int(item)


@ray.remote(num_cpus=0)
class Coroutines:
    async def next(self, number: Any) -> int:
        if type(number) is str:
            end(number)
        return int(number) + 1


@ray.remote(max_retries=0)
def die_at(item: int) -> int:
    if item == 7:
        end("os._exit")
    return item


@pytest.mark.parametrize("how", WAYS)
def test_what_an_actor_answered_is_there_when_the_next_call_ends_it(start: Start, how: str) -> None:
    start()
    for _ in range(3):
        actor = Fragile.remote()
        get([actor.next.remote(0) for _ in range(50)])
        refs = [actor.next.remote(number) for number in range(300)]
        last, died, behind = actor.next.remote(1), actor.next.remote(how), actor.next.remote(2)
        assert get(refs) == list(range(1, 301))
        assert get(last) == 2
        for lost in (died, behind):
            with pytest.raises(RayActorError):
                get(lost)


def test_the_same_of_an_async_actor_a_threaded_one_and_one_that_starts_again(start: Start) -> None:
    start()
    kinds = (
        Coroutines.options(max_concurrency=1),
        Fragile.options(max_concurrency=2),
        Fragile.options(max_restarts=1),
    )
    for kind in kinds:
        actor = kind.remote()
        get([actor.next.remote(0) for _ in range(50)])
        refs = [actor.next.remote(number) for number in range(100)]
        get(refs[:1])
        died = actor.next.remote("os._exit")
        # Calls of the first and the last run one at a time. On two threads one may run beside the end.
        values = [outcome(ref) for ref in refs]
        assert values.count("lost") <= (1 if kind is kinds[1] else 0), values
        assert outcome(died) == "lost"


def test_answers_of_all_kinds_are_there(start: Start) -> None:
    start()
    actor = Fragile.remote()
    several = actor.several.options(num_returns=2)
    for _ in range(20):
        get([actor.next.remote(0), *several.remote(0)])
    refs = [ref for number in range(30) for ref in (several.remote(number)[1], actor.fail.remote())]
    died = actor.next.remote("os._exit")
    for pair, failed in zip(refs[::2], refs[1::2], strict=True):
        assert get(pair) == "x" * 1000
        with pytest.raises(ValueError, match="as it should"):
            get(failed)
    assert outcome(died) == "lost"


def test_answers_that_fill_every_buffer_are_there_when_the_next_call_ends_the_process(start: Start) -> None:
    start()
    actor = Fragile.remote()
    get(actor.text.remote(1))
    refs = [actor.text.remote(90_000) for _ in range(150)]
    died = actor.next.remote("SIGKILL")
    assert {len(outcome(ref)) for ref in refs} == {90_000}
    assert outcome(died) == "lost"


@ray.remote(num_cpus=0)
class Owner:
    def make(self) -> list[Any]:
        return [ray.put("theirs")]


@ray.remote(num_cpus=0)
class Holder:
    def __init__(self, owner: Any) -> None:
        self.ref = get(owner.make.remote())[0]

    def give(self) -> list[Any]:
        return [self.ref]

    def keep(self, box: list[Any]) -> str:
        self.box = box
        return "kept"

    def die(self) -> None:
        end("SIGKILL")


def test_answers_whose_references_belong_to_others_are_there_as_well(start: Start) -> None:
    start()
    owner = Owner.remote()
    box = get(owner.make.remote())
    for _ in range(5):
        holder = Holder.remote(owner)
        given = [holder.give.remote() for _ in range(30)]
        kept = [holder.keep.remote(box) for _ in range(10)]
        died = holder.die.remote()
        assert [get(get(ref)[0]) for ref in given] == ["theirs"] * 30
        assert get(kept) == ["kept"] * 10
        assert outcome(died) == "lost"


@pytest.mark.parametrize("place", ["actor", "tasks"])
def test_what_travelled_together_is_there_up_to_the_call_that_ended_it(start: Start, place: str) -> None:
    start()
    items = [*range(100, 150), *range(8, 40), 7, *range(40, 50)]
    if place == "actor":
        actor = Fragile.remote()
        get([actor.die_at.remote(0) for _ in range(50)])
        refs = actor.die_at.map(items, chunk=len(items))
        values = [outcome(ref) for ref in refs]
        assert values == [item if index < 82 else "lost" for index, item in enumerate(items)]
    else:
        get([die_at.remote(0) for _ in range(50)])
        values = [outcome(ref) for ref in die_at.map(items, chunk=len(items))]
        assert values == [item if item != 7 else "lost" for item in items]


@ray.remote(max_retries=0)
def yield_and_die(items: list[Any], how: str) -> Any:
    yield from items
    end(how)


@ray.remote(num_cpus=0)
class Yielding:
    def stream(self, items: list[Any], how: str) -> Any:
        yield from items
        end(how)


@ray.remote(num_cpus=0)
class AsyncYielding:
    async def stream(self, items: list[Any], how: str) -> Any:
        for item in items:
            yield item
        end(how)


@pytest.mark.parametrize("how", ["os._exit", "SIGKILL"])
def test_what_a_generator_yielded_is_there_when_it_ends_its_process(start: Start, how: str) -> None:
    start()
    small, large = list(range(30)), ["x" * 300_000] * 3
    for items in (small, large, [*small, *large, *small], [b"y" * 3000] * 100):
        for generator in (yield_and_die, Yielding.remote().stream, AsyncYielding.remote().stream):
            made = generator.options(num_returns="streaming").remote(items, how)
            assert [get(next(made)) for _ in items] == items
            with pytest.raises((WorkerCrashedError, RayActorError)):
                get(next(made))


@ray.remote(num_cpus=0)
class Caller:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def call(self, how: str) -> list[Any]:
        refs = [self.actor.next.remote(number) for number in range(200)]
        died = self.actor.next.remote(how)
        return [*[outcome(ref) for ref in refs], outcome(died)]


def test_callers_on_another_node_get_theirs_as_well(session_base: Path) -> None:
    cluster = CommandLineCluster(session_base, num_cpus=1)
    try:
        cluster.add_node(num_cpus=1, resources={"there": 2})
        ray.init(address=cluster.address)
        there = {"resources": {"there": 1}}
        for caller_at, actor_at, how in (there, {}, "os._exit"), ({}, there, "SIGKILL"):
            caller = Caller.options(**caller_at).remote(Fragile.options(**actor_at).remote())
            assert get(caller.call.remote(how)) == [*range(1, 201), "lost"]
    finally:
        ray.shutdown()
        cluster.stop()


def test_long_answers_to_another_node_are_there_also_where_calls_behind_them_were_not_read(
    session_base: Path,
) -> None:
    cluster = CommandLineCluster(session_base, num_cpus=1)
    try:
        cluster.add_node(num_cpus=1, resources={"there": 2})
        ray.init(address=cluster.address)
        actor = Fragile.options(resources={"there": 1}, max_concurrency=2).remote()
        get(actor.text.remote(1))
        refs = [actor.text.remote(20_000) for _ in range(60)]
        died = actor.next.remote("os._exit")
        for _ in range(200):
            actor.length.remote("x" * 50_000)  # TCP throws away what it holds back for a peer that sent these
        # One may run beside the end.
        values = [outcome(ref) for ref in refs]
        assert values.count("lost") <= 1, values.count("lost")
        assert outcome(died) == "lost"
    finally:
        ray.shutdown()
        cluster.stop()


PROGRAM = """
import os
import ray_mono as ray

ray.init(address="local", num_cpus=2)

@ray.remote(max_retries=0)
def speak(how):
    print("a task's line")
    print("half a line", end="")
    os._exit(3) if how == "exit" else os.kill(os.getpid(), 9)

@ray.remote(num_cpus=0)
class Speaker:
    def speak(self):
        print("an actor's line")
    def die(self):
        print("its last line")
        os.kill(os.getpid(), 9)

for how in ("exit", "kill"):
    ray.wait([speak.remote(how)], timeout=60)
speaker = Speaker.remote()
speaker.speak.remote()
ray.wait([speaker.die.remote()], timeout=60)
ray.shutdown()
"""


def test_what_a_process_printed_before_it_died_is_shown_once(session_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    output = Script(path).check_ended_well()
    lines = {"a task's line": 2, "half a line": 2, "an actor's line": 1, "its last line": 1}
    for line, times in lines.items():
        assert output.count(f") {line}") == times, output

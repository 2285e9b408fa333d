"""The scenes that stress programs are made of. Each makes calls, checks every answer, and lets go of all that
it made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray_mono as ray
from tests.stress import user_code
from tests.stress.program import WAIT_S, Caller, check, get

Scene = Callable[[Caller], None]
SCENES: list[Scene] = []


def scene(function: Scene) -> Scene:
    """Puts a scene on the list that programs draw from."""
    SCENES.append(function)
    return function


# ---------------------------------------------------------------- tasks


@scene
def tasks_one_by_one(caller: Caller) -> None:
    for number in range(caller.rng.randrange(5, 60)):
        caller.get_all([user_code.add_one.remote(number)], [number + 1], "a task")


@scene
def tasks_in_a_burst(caller: Caller) -> None:
    numbers = range(caller.rng.randrange(50, 500))
    caller.get_all(
        [user_code.add_one.remote(n) for n in numbers], [n + 1 for n in numbers], "a burst of tasks"
    )


@scene
def a_chain_of_tasks(caller: Caller) -> None:
    length = caller.rng.randrange(5, 60)
    ref = ray.put(0)
    for _ in range(length):
        ref = user_code.add_one.remote(ref)
    caller.get_all([ref], [length], f"a chain of {length} tasks")


@scene
def arguments_of_all_sizes(caller: Caller) -> None:
    refs, expected = [], []
    for index in range(caller.rng.randrange(3, 12)):
        value = user_code.pattern(index, caller.size_bytes())
        if caller.rng.random() < 0.5:
            refs.append(user_code.measure.remote(value, index, 1, more=2))
        else:
            refs.append(user_code.measure.remote(ray.put(value), index, 1, more=ray.put(2)))
        expected.append((user_code.checksum(value), index + 3))
    caller.get_all(refs, expected, "tasks with arguments of all sizes")


@scene
def one_argument_for_many(caller: Caller) -> None:
    value = user_code.pattern(7, caller.size_bytes())
    ref = ray.put(value)
    count = caller.rng.randrange(5, 40)
    refs = [user_code.measure.remote(ref) for _ in range(count)]
    del ref
    caller.get_all(refs, [(user_code.checksum(value), 0)] * count, "tasks that share an argument")


@scene
def results_of_all_sizes(caller: Caller) -> None:
    wanted = [(index, caller.size_bytes()) for index in range(caller.rng.randrange(2, 10))]
    made = [user_code.make.remote(*one) for one in wanted]
    read = [user_code.measure.remote(ref) for ref in made]
    for value, one in zip(get(made, "arrays that tasks made"), wanted, strict=True):
        check((value == user_code.pattern(*one)).all(), f"an array that a task made is not {one}")
    del made
    expected = [(user_code.checksum(user_code.pattern(*one)), 0) for one in wanted]
    caller.get_all(read, expected, "tasks that read what tasks made")


@scene
def several_returns(caller: Caller) -> None:
    for seed in range(caller.rng.randrange(2, 15)):
        size_bytes = caller.size_bytes()
        small, large, other = user_code.split.remote(seed, size_bytes)
        checked = user_code.measure.remote(large)
        caller.get_all([small, other], [seed, b"x" * seed], "small returns beside a large one")
        expected = (user_code.checksum(user_code.pattern(seed, size_bytes)), 0)
        caller.get_all([checked], [expected], "the large return beside small ones")


@scene
def a_tree_of_tasks(caller: Caller) -> None:
    depth, width = caller.rng.choice([(1, 8), (2, 3), (3, 2)])
    caller.get_all([user_code.count_leaves.remote(depth, width)], [width**depth], "a tree of tasks")


@scene
def answers_that_nobody_reads(caller: Caller) -> None:
    for seed in range(caller.rng.randrange(1, 30)):
        user_code.make.remote(seed, 200_000 if seed % 7 == 0 else 80)


@scene
def errors_of_tasks(caller: Caller) -> None:
    for number in range(caller.rng.randrange(1, 10)):
        bad = user_code.fail.remote(number)
        for ref in (bad, user_code.add_one.remote(bad)):
            try:
                get(ref, "a task that fails")
                check(False, "a task that fails gave a value")
            except KeyError as error:
                check(
                    error.args == (number,) or str(number) in str(error), f"the wrong error came: {error!r}"
                )
            caller.program.count(1)
    caller.get_all([user_code.fail_once.remote(caller.marker(), 3)], [3], "a task that fails once")


# ---------------------------------------------------------------- waiting


@scene
def waits_with_timeouts(caller: Caller) -> None:
    rng = caller.rng
    durations_s = [rng.choice([0.0, 0.0, 0.001, 0.02]) for _ in range(rng.randrange(3, 40))]
    refs = [user_code.hold.remote(seconds, index) for index, seconds in enumerate(durations_s)]
    number_of = {ref: index for index, ref in enumerate(refs)}
    rounds = 0
    while refs:
        wanted = rng.randrange(1, len(refs) + 1)
        is_last_chance = rounds > 100
        ready, rest = ray.wait(
            refs, num_returns=wanted, timeout=WAIT_S if is_last_chance else rng.choice([0, 0.001, 0.01, 0.1])
        )
        check(len(ready) <= wanted, f"wait gave {len(ready)} for num_returns={wanted}")
        check(sorted([*ready, *rest], key=number_of.__getitem__) == refs, "wait lost or doubled a reference")
        check(
            bool(ready) or not is_last_chance,
            f"{len(refs)} tasks of milliseconds were not ready after {WAIT_S:g} s",
        )
        caller.get_all(ready, [number_of[ref] for ref in ready], "what wait called ready")
        refs = rest
        rounds += 1


@scene
def a_get_that_is_too_early(caller: Caller) -> None:
    ref = user_code.hold.remote(0.05, 5)
    try:
        ray.get(ref, timeout=caller.rng.choice([0, 0.001, 0.01]))
    except ray.exceptions.GetTimeoutError:
        pass
    caller.get_all([ref], [5], "a task after a get that was too early")


@scene
def futures_and_coroutines(caller: Caller) -> None:
    numbers = range(caller.rng.randrange(2, 60))
    futures = [user_code.add_one.remote(number).future() for number in numbers]
    check(
        [future.result(WAIT_S) for future in futures] == [number + 1 for number in numbers],
        "futures have other values",
    )

    async def gather() -> list[Any]:
        return await asyncio.wait_for(
            asyncio.gather(*[user_code.add_one.remote(number) for number in numbers]), WAIT_S
        )

    check(asyncio.run(gather()) == [number + 1 for number in numbers], "awaited tasks have other values")
    caller.program.count(2 * len(numbers))


# ---------------------------------------------------------------- objects


@scene
def puts_and_gets(caller: Caller) -> None:
    values = [user_code.pattern(index, caller.size_bytes()) for index in range(caller.rng.randrange(3, 15))]
    refs = [ray.put(value) for value in values]
    order = [caller.rng.randrange(len(refs)) for _ in range(2 * len(refs))]
    for index, value in zip(
        order, get([refs[index] for index in order], "objects that are here"), strict=True
    ):
        check((value == values[index]).all(), "get gave another value than put took")
    caller.program.count(len(order))


@scene
def many_small_puts(caller: Caller) -> None:
    count = caller.rng.randrange(100, 1000)
    refs = [ray.put(number) for number in range(count)]
    caller.get_all(refs, range(count), "small objects")


@scene
def references_in_references(caller: Caller) -> None:
    values = [user_code.pattern(index, caller.size_bytes()) for index in range(caller.rng.randrange(1, 6))]
    sums = [user_code.checksum(value) for value in values]
    box = ray.put([ray.put(value) for value in values])
    ref = user_code.unbox.remote([box])
    del box
    caller.get_all([ref], [sums], "a task that unpacks references")


@scene
def references_from_tasks(caller: Caller) -> None:
    sizes_bytes = [caller.size_bytes() for _ in range(caller.rng.randrange(1, 6))]
    sums = [user_code.checksum(user_code.pattern(3, size_bytes)) for size_bytes in sizes_bytes]
    with caller.program.workers_lock:
        box = user_code.boxed.remote(3, sizes_bytes)
        again = user_code.unbox.remote([box])
        inner = get(box, "a task that returns references")
        del box
        caller.get_all(
            [again, user_code.unbox.remote(inner)], [sums, sums], "tasks that unpack what a task returned"
        )
        read = [user_code.checksum(value) for value in get(inner, "objects that a worker owns")]
        check(read == sums, "objects that a worker owns have other values")
        # The worker may be killed from here on.
        del inner

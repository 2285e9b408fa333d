"""Scenes for a cluster whose processes die all the time: whatever may be tried again without end must come
out right, and what may not is done once or not at all. See soak.py."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import ray_mono as ray
from ray_mono.exceptions import RayActorError
from ray_mono.experimental import internal_kv
from tests.stress.program import Caller, check, state_of_process
from tests.stress.scenes import scene
from tests.stress.user_code import checksum, pattern

WAIT_S = 240.0
"""A host that falls silent is noticed within 40 s, and what ran there may meet the next death elsewhere."""
ALWAYS = {"max_retries": -1}
REVIVED = {"num_cpus": 0, "max_restarts": -1}


def get(refs: Any, what: str) -> Any:
    """ray.get within WAIT_S. Raises AssertionError with the state of this process."""
    try:
        return ray.get(refs, timeout=WAIT_S)
    except ray.exceptions.GetTimeoutError as error:
        told = json.dumps(state_of_process())
        raise AssertionError(f"waited {WAIT_S:g} s for {what}: {error}; {told}") from None


def compare(caller: Caller, refs: list[Any], expected: list[Any], what: str) -> None:
    for index, (value, due) in enumerate(zip(get(refs, what), expected, strict=True)):
        check(value == due, f"{what}: number {index} is {value!r}, not {due!r}")
    caller.program.count(len(expected))


# ---- what runs in the cluster


@ray.remote(**ALWAYS)
def double(value: int) -> int:
    return 2 * value


@ray.remote(**ALWAYS)
def grow(value: Any, by: int) -> Any:
    return np.append(value, np.full(by, len(value), np.int64))


@ray.remote(**ALWAYS)
def summed(*values: Any) -> int:
    return checksum(np.concatenate(values))


@ray.remote(**ALWAYS)
def leaves(depth: int, width: int) -> int:
    below = [leaves.remote(depth - 1, width) for _ in range(width if depth else 0)]
    return sum(ray.get(below, timeout=WAIT_S)) if below else 1


@ray.remote(**ALWAYS)
def parts(count: int, size_bytes: int) -> Any:
    for number in range(count):
        yield pattern(number, size_bytes)


@ray.remote
class Pure:
    """Its answers depend on the question alone."""

    def double(self, value: int) -> int:
        return 2 * value

    def make(self, seed: int, size_bytes: int) -> Any:
        return pattern(seed, size_bytes)


@ray.remote
class Single:
    """Writes each call down, and holds a lock while one runs: there is one of it at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def write(self, number: int) -> int:
        with open(self._folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (self._folder / "two at once").touch()
            with open(self._folder / "calls", "a") as file:
                file.write(f"{number} {os.getpid()}\n")
        return number


# ---- the scenes


@scene
def tasks_that_are_tried_for_ever(caller: Caller) -> None:
    numbers = range(caller.rng.randrange(1, 200))
    compare(caller, [double.remote(n) for n in numbers], [2 * n for n in numbers], "tasks")


@scene
def a_chain_of_large_values(caller: Caller) -> None:
    sizes = [caller.rng.choice([10, 20_000, 100_000]) for _ in range(caller.rng.randrange(2, 8))]
    value = pattern(0, 80_000)
    refs = [ray.put(value)]
    for size in sizes:
        refs.append(grow.remote(refs[-1], size))
        value = np.append(value, np.full(size, len(value), np.int64))
    last = refs[-1]
    if caller.rng.random() < 0.5:
        del refs  # those in the middle are needed only if the last one is lost
    compare(caller, [summed.remote(last)], [checksum(value)], "the end of a chain")
    check(bool((get(last, "its value") == value).all()), "the value at the end of a chain is another")


@scene
def a_tree_whose_branches_break(caller: Caller) -> None:
    depth, width = caller.rng.choice([(1, 6), (2, 3)])
    compare(caller, [leaves.remote(depth, width)], [width**depth], "a tree of tasks")


@scene
def a_stream_that_begins_again(caller: Caller) -> None:
    count, size_bytes = caller.rng.randrange(1, 20), caller.rng.choice([80, 200_000])
    stream = parts.options(num_returns="streaming").remote(count, size_bytes)
    for number, ref in enumerate(stream):
        check(bool((get(ref, "an item") == pattern(number, size_bytes)).all()), f"item {number} is another")
        caller.program.count(1)
        count -= 1
    check(count == 0, f"{count} items are missing")


@scene
def an_actor_that_comes_back(caller: Caller) -> None:
    actor = Pure.options(max_task_retries=-1, **REVIVED).remote()
    for _ in range(caller.rng.randrange(1, 6)):
        numbers = range(caller.rng.randrange(1, 50))
        compare(caller, [actor.double.remote(n) for n in numbers], [2 * n for n in numbers], "calls")
    made = [actor.make.remote(seed, 150_000) for seed in range(3)]
    compare(caller, [summed.remote(*made)], [checksum(np.concatenate(get(made, "results")))], "results")


@scene
def an_actor_whose_calls_are_not_repeated(caller: Caller) -> None:
    folder = Path(caller.marker())
    folder.mkdir()
    actor = Single.options(**REVIVED).remote(str(folder))
    answered = []
    for number in range(caller.rng.randrange(5, 40)):
        with contextlib.suppress(RayActorError):
            answered.append(get(actor.write.remote(number), "a call"))
    calls = folder / "calls"
    # It may have died before the first call came, and all the others while it started again.
    wrote = [int(line.split()[0]) for line in calls.read_text().splitlines()] if calls.exists() else []
    check(len(set(wrote)) == len(wrote), f"calls ran twice: {wrote}")
    check(set(answered) <= set(wrote), f"answered are {answered}, but {wrote} ran")
    check(not (folder / "two at once").exists(), "two processes were the actor at once")
    caller.program.count(len(answered))


@scene
def an_actor_with_a_name(caller: Caller) -> None:
    name = caller.program.new_name()
    detached = Pure.options(name=name, namespace="soak", lifetime="detached", max_task_retries=-1, **REVIVED)
    detached.remote()
    found = ray.get_actor(name, "soak")
    compare(caller, [found.double.remote(n) for n in range(5)], [0, 2, 4, 6, 8], "calls of a named actor")
    try:
        detached.remote()
    except ValueError:
        pass
    else:
        check(False, f"the name {name} was taken twice")
    ray.kill(found)


@scene
def keys_that_are_kept(caller: Caller) -> None:
    keys = {caller.program.new_name().encode(): os.urandom(50) for _ in range(caller.rng.randrange(1, 10))}
    for key, value in keys.items():
        internal_kv._internal_kv_put(key, value)
    # Deaths of the head may come between.
    compare(caller, [double.remote(1) for _ in range(20)], [2] * 20, "tasks between")
    for key, value in keys.items():
        read = internal_kv._internal_kv_get(key)
        check(read == value, f"key {key!r} has {read!r}, not {value!r}")
        internal_kv._internal_kv_del(key)
        check(not internal_kv._internal_kv_exists(key), f"key {key!r} is there after it was deleted")
    caller.program.count(len(keys))

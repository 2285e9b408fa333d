"""What the threads of one stress driver share: its actors, what they must have counted, and waits that have a
bound.

A call to an actor is numbered by its caller (a thread of this driver, or a task in its name), and whoever
waits says what for: a wait that takes longer than WAIT_S is a failure that tells what this process was
waiting for.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray_mono as ray
from ray_mono.core_worker.process import current
from tests.stress import user_code

WAIT_S = 90.0
"""Nothing here takes seconds on an idle machine; four drivers share two CPUs."""


class Failure(Exception):
    """Something was wrong, lost or late."""


def check(is_right: bool, what: str) -> None:
    """Raises Failure(what) unless it is right."""
    if not is_right:
        raise Failure(what)


def state_of_process() -> dict[str, Any]:
    """What this process knows of itself, as DumpState tells it."""
    core: Any = current.require()
    core.reference_counts()  # after what was dropped is counted
    with core.env.lock:
        return core.describe()


def get(refs: Any, what: str) -> Any:
    """ray.get within WAIT_S. Raises Failure with the state of this process."""
    try:
        return ray.get(refs, timeout=WAIT_S)
    except ray.exceptions.GetTimeoutError as error:
        raise Failure(f"waited {WAIT_S:g} s for {what}: {error}; {json.dumps(state_of_process())}") from None


class Actor:
    """An actor that lives as long as its driver, and the calls that it must have had."""

    def __init__(self, handle: Any, name: str) -> None:
        self.handle = handle
        self.name = name
        self.total = 0
        self.by_caller: dict[str, int] = {}


class Program:
    """One driver's."""

    def __init__(self, seed: str, num_actors: int, scratch: Path) -> None:
        """seed: also the prefix of all names of this driver."""
        self.seed = seed
        self.scratch = scratch
        self.actors = [
            Actor(user_code.start_actor(index, seed), f"{seed}-{index}") for index in range(num_actors)
        ]
        self.num_scenes = 0
        self.num_calls = 0
        # Held by scenes that kill workers of tasks, and by those whose objects such workers own.
        self.workers_lock = threading.Lock()
        self._lock = threading.Lock()
        self._names = itertools.count()

    def new_name(self) -> str:
        """Nobody else has it: of a caller, a key or a file."""
        with self._lock:
            return f"{self.seed}-{next(self._names)}"

    def count(self, num_calls: int) -> None:
        """Calls that were answered as they must be."""
        with self._lock:
            self.num_calls += num_calls

    def scene_ended(self) -> None:
        with self._lock:
            self.num_scenes += 1

    def expect(self, actor: Actor, num_calls: int) -> None:
        """Calls in the name of a caller who makes no more of them."""
        with self._lock:
            actor.total += num_calls

    def check_actors(self) -> None:
        """Every actor had each call once, in its caller's order. Raises Failure."""
        for actor in self.actors:
            total, by_caller, troubles, num_kept = get(
                actor.handle.told.remote(), f"the counts of actor {actor.name}"
            )
            check(not troubles, f"actor {actor.name}: {troubles}")
            check(total == actor.total, f"actor {actor.name} had {total} calls, {actor.total} were made")
            check(
                by_caller == actor.by_caller,
                f"actor {actor.name} had {by_caller}, made were {actor.by_caller}",
            )
            check(num_kept == 0, f"actor {actor.name} still keeps {num_kept} boxes")


class Caller:
    """One thread of a driver, as the actors see it."""

    def __init__(self, program: Program, number: int) -> None:
        self.program = program
        self.name = f"{program.seed}-thread-{number}"
        self.rng = random.Random(self.name)

    def actor(self) -> Actor:
        return self.rng.choice(self.program.actors)

    def call(self, actor: Actor, handle: Any = None, payload: Any = None) -> tuple[Any, int]:
        """Makes the next call of this thread to an actor. Returns (reference, its number)."""
        number = actor.by_caller.get(self.name, 0)
        actor.by_caller[self.name] = number + 1
        self.program.expect(actor, 1)
        return (handle or actor.handle).add.remote(self.name, number, payload), number

    def marker(self) -> str:
        """Path of a file that is not there."""
        return str(self.program.scratch / self.program.new_name())

    def size_bytes(self) -> int:
        """Of a value: mostly small, now and then one for the store, seldom one of megabytes."""
        kind = self.rng.random()
        if kind < 0.6:
            return self.rng.randrange(8, 20_000)
        return self.rng.randrange(100_000, 500_000) if kind < 0.95 else self.rng.randrange(1 << 20, 8 << 20)

    def get_all(self, refs: Sequence[Any], expected: Sequence[Any], what: str) -> None:
        """Checks that each reference has the value that it must have, and counts the calls."""
        values = get(list(refs), what)
        for index, (value, due) in enumerate(zip(values, expected, strict=True)):
            check(value == due, f"{what}: number {index} is {value!r}, not {due!r}")
        self.program.count(len(expected))

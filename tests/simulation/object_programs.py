"""Random programs over objects: each move puts, reads, keeps or drops an object, waits for some, or submits a
task that gets some of them and plays on with what it got. What a program holds is its hand: references of the
core's.

A value is the references inside it, and now and then so many bytes that it lies in a store.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, filler
from tests.simulation.site import Site, site

KEEPS_S = (0.0, 0.1, 2.0)
"""How long a process keeps a reference after the task that got it."""
CANCELLED_AFTER_S = (0.0, 0.01, 0.1)
INSIDE_MAX = 3
"""References inside one value."""
LARGE_BYTES = 150_000
"""More than travels in messages."""
WAIT_S = (0.0, 0.01, 1.0)
OPTIONS = TaskOptions(resources=CHILD_RESOURCES, max_retries=CHILD_RETRIES)

Value = tuple[bytes, list[ObjectRef[Any]], bytes]
"""Who made it, the references inside, and what makes it large."""


@dataclass(frozen=True)
class ObjectScript:
    """One program, of a driver or a task."""

    seed: int
    num_moves: int
    levels: int = 2
    """How deep its tasks submit tasks in turn."""
    dies: bool = False
    """The worker of a task's first attempt dies after its moves; its tasks die now and then."""
    cancelled_after_s: float = -1.0
    is_cancelled_by_force: bool = False
    large_share: float = 0.0
    """Of values, that lie in stores."""
    moves: tuple[tuple[str, ...], ...] = ()
    """In order, instead of random ones: the program's own, its tasks', and so on down."""


def play_in_driver(here: Site, script: ObjectScript, number: int) -> None:
    """A program, and then it lets go of what it has."""
    ObjectProgram(here, script, f"driver {number}").play()


def run_program(number: int, by_value: list[ObjectRef[Any]], *by_reference: Value) -> Value:
    """A task."""
    here = site()
    script: ObjectScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        program = ObjectProgram(here, script, f"{task.task_id.hex()} {task.attempt}")
        program.hand += by_value
        for value in by_reference:
            here.check_bytes(value)
            program.hand += value[1]
        program.play()
        if script.dies and task.attempt == 0:
            here.die("its task killed it")
        return program.returned()


class ObjectProgram:
    """One run of a script."""

    def __init__(self, here: Site, script: ObjectScript, name: str) -> None:
        self.hand: list[ObjectRef[Any]] = []
        self._here = here
        self._script = script
        self._name = f"{script.seed}/{name}"
        self._num_values = 0
        self._rng = random.Random(self._name)

    def play(self) -> None:
        """All moves."""
        if self._script.moves:
            for name in self._script.moves[0]:
                getattr(self, f"_{name}")()
            return
        moves = [self._put, self._get, self._get, self._drop, self._keep, self._pause, self._wait]
        if self._script.levels:
            moves += [self._task, self._task]
        for _ in range(self._script.num_moves):
            self._rng.choice(moves)()

    def returned(self) -> Value:
        """Some of the hand, as the value that the program returns."""
        self._rng.shuffle(self.hand)
        return self._here.core.context.task_id(), *self._value(self.hand[:INSIDE_MAX])

    # ---- moves

    def _some(self, at_most: int) -> list[ObjectRef[Any]]:
        distinct = list({ref.binary(): ref for ref in self.hand}.values())
        return self._rng.sample(distinct, self._rng.randint(0, min(at_most, len(distinct))))

    def _value(self, inside: list[ObjectRef[Any]]) -> tuple[list[ObjectRef[Any]], bytes]:
        is_large = self._script.large_share and self._rng.random() < self._script.large_share
        self._num_values += 1
        return inside, filler(f"{self._name}/{self._num_values}", LARGE_BYTES) if is_large else b""

    def _put(self) -> None:
        self.hand.append(self._here.put(*self._value(self._some(INSIDE_MAX))))

    def _get(self) -> None:
        if self.hand:
            self._take(self._rng.choice(self.hand))

    def _take(self, ref: ObjectRef[Any]) -> None:
        value = self._here.get(ref)
        if isinstance(value, tuple):
            self.hand += value[1]

    def _wait(self) -> None:
        refs = self._some(INSIDE_MAX)
        if refs:
            self._here.core.wait(
                refs, self._rng.randint(1, len(refs)), self._rng.choice(WAIT_S), self._rng.random() < 0.5
            )

    def _drop(self) -> None:
        if self.hand:
            self.hand.pop(self._rng.randrange(len(self.hand)))

    def _keep(self) -> None:
        """In the process, beyond the program."""
        if self.hand:
            ref = self.hand.pop(self._rng.randrange(len(self.hand)))
            self._here.keep(ref, self._rng.choice(KEEPS_S))

    def _hand_over(self) -> None:
        """To a task, which alone has it then."""
        by_value = self._some(INSIDE_MAX)
        self._start_task(by_value, [])
        self.hand = [ref for ref in self.hand if ref not in by_value]

    def _meet_again(self) -> None:
        """In an object of its own, and keep it all beyond the program."""
        self._put()
        self._take(self.hand[-1])
        while self.hand:
            self._keep()

    def _pause(self) -> None:
        self._here.sleep(self._rng.choice([0.0, 0.001, 0.05]))

    def _task(self) -> None:
        self._start_task(self._some(INSIDE_MAX), self._some(1))

    def _start_task(self, by_value: list[ObjectRef[Any]], by_reference: list[ObjectRef[Any]]) -> None:
        script = replace(
            self._script,
            seed=self._rng.getrandbits(32),
            num_moves=self._rng.randint(0, 6),
            levels=self._script.levels - 1,
            dies=self._script.dies and self._rng.random() < 0.1,
            cancelled_after_s=self._rng.choice(CANCELLED_AFTER_S) if self._rng.random() < 0.1 else -1.0,
            is_cancelled_by_force=self._script.dies and self._rng.random() < 0.5,
            moves=self._script.moves[1:],
        )
        made = self._here.submit(run_program, script, [by_value, *by_reference], OPTIONS)
        self.hand.append(made)

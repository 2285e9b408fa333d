"""Programs over large values, some seconds long, so that nodes die while these lie in their stores. What a
value is follows from the tasks that made it: a value that was made again is the same.

Each move makes an object by a task (with several returns, or items) out of others, by reference or borrowed;
or reads one, waits for one, or lets go of one. Nothing that a program holds may be an error, unless
connections break: its tasks have more retries than nodes die.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import ObjectStoreFullError, OutOfDiskError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import STREAMING_RETURNS, TaskOptions
from tests.simulation.loop import SimulationError
from tests.simulation.scripts import CHILD_RESOURCES, filler
from tests.simulation.site import Site, site

LARGE_BYTES = 110_000
"""More than travels in messages."""
RETRIES = 40
HAND_MAX = 12
ITEMS = 3

Value = tuple[bytes, int, bytes]
"""Who made it; one more than the sum of what it was made of; and what makes it large."""


class LossCheckFailed(SimulationError):
    """A value was lost, or is another one than before."""


@dataclass(frozen=True)
class LossScript:
    """One program of a driver; or one of its tasks."""

    seed: int
    num_moves: int = 40
    pause_s_max: float = 0.5
    num_returns: int = 1
    compute_s: float = 0.0
    is_small: bool = False
    cancelled_after_s: float = -1.0
    is_cancelled_by_force: bool = False

    @property
    def name(self) -> str:
        return "made again"


@dataclass
class Held:
    ref: ObjectRef[Any]
    number: int
    """Which the value has to have."""


def make(number: int, borrowed: list[ObjectRef[Any]], *parents: Value) -> Any:
    """A task of one or several returns."""
    here = site()
    script: LossScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        values = _values(here, script, borrowed, parents)
        return values[0] if script.num_returns == 1 else tuple(values)


def make_items(number: int, borrowed: list[ObjectRef[Any]], *parents: Value) -> Iterator[Value]:
    """A task of ITEMS items."""
    here = site()
    script: LossScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        for value in _values(here, script, borrowed, parents):
            here.sleep(script.compute_s)
            yield value


def _values(
    here: Site, script: LossScript, borrowed: list[ObjectRef[Any]], parents: tuple[Value, ...]
) -> list[Value]:
    here.sleep(script.compute_s)
    for parent in parents:
        here.check_bytes(parent)
    total = 1 + sum(parent[1] for parent in parents)
    for ref in borrowed:
        value = here.get(ref)
        if not isinstance(value, tuple):
            raise value
        total += value[1]
    task_id = here.core.context.task_id()
    size_bytes = 0 if script.is_small else LARGE_BYTES
    count = ITEMS if script.num_returns < 0 else script.num_returns
    return [
        (task_id, total + place, filler(f"{task_id.hex()}/{place}", size_bytes) if size_bytes else b"")
        for place in range(count)
    ]


def play_losses(here: Site, script: LossScript) -> None:
    """A driver's program."""
    LossProgram(here, script).play()


class LossProgram:
    def __init__(self, here: Site, script: LossScript) -> None:
        self._here = here
        self._script = script
        self._rng = random.Random(script.seed)
        self._hand: list[Held] = []

    def play(self) -> None:
        moves = [self._make, self._make, self._make, self._read, self._wait, self._drop]
        for _ in range(self._script.num_moves):
            self._here.sleep(self._rng.uniform(0.0, self._script.pause_s_max))
            while len(self._hand) > HAND_MAX:
                self._drop()
            self._rng.choice(moves)()
        while self._hand:
            self._check(self._hand.pop())

    def _make(self) -> None:
        rng = self._rng
        chosen = rng.sample(self._hand, min(len(self._hand), rng.choice([0, 1, 2, 3])))
        split = rng.randint(0, len(chosen))
        total = 1 + sum(held.number for held in chosen)
        kind = rng.choice([1, 1, 1, 1, 2, STREAMING_RETURNS])
        script = LossScript(
            rng.getrandbits(32),
            num_returns=kind,
            compute_s=rng.choice([0.0, 0.02, 0.3]),
            is_small=rng.random() < 0.2,
        )
        options = TaskOptions(
            num_returns=kind,
            generator_backpressure_num_objects=rng.choice([0, 1]) if kind < 0 else 0,
            resources=CHILD_RESOURCES,
            max_retries=RETRIES,
        )
        function = make_items if kind < 0 else make
        args = [[held.ref for held in chosen[:split]], *(held.ref for held in chosen[split:])]
        made = self._here.submit(function, script, args, options)
        refs = [made] if kind == 1 else list(made)
        self._hand += [Held(ref, total + place) for place, ref in enumerate(refs)]

    def _read(self) -> None:
        if self._hand:
            self._check(self._rng.choice(self._hand))

    def _check(self, held: Held) -> None:
        value = self._here.get(held.ref)
        may_fail = isinstance(value, BaseException) and self._here.journal.connections_break
        if isinstance(value, ObjectStoreFullError | OutOfDiskError) or may_fail:
            return
        if not isinstance(value, tuple) or value[1] != held.number:
            told = value if isinstance(value, BaseException) else value[1]
            self._here.judge(_fail, f"object {held.ref.hex()} should be {held.number}, and is {told!r}")

    def _wait(self) -> None:
        if self._hand:
            refs = [held.ref for held in self._rng.sample(self._hand, min(3, len(self._hand)))]
            timeout_s = self._rng.choice([0.0, 0.1, None])
            self._here.core.wait(refs, self._rng.randint(1, len(refs)), timeout_s, self._rng.random() < 0.5)

    def _drop(self) -> None:
        if self._hand:
            self._hand.pop(self._rng.randrange(len(self._hand)))


def _fail(what: str) -> None:
    raise LossCheckFailed(what)

"""Random programs over objects: each move puts, reads, keeps or drops an object, or submits a task that gets
some of them and plays on with what it got. What a program holds is its hand: one local reference for each
entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from ray_mono.common.ids import PUT_INDEX_BASE, child_task_id, nil_actor_of, object_id_bytes, task_seed
from tests.simulation.objects import SimObjects

KEEPS_S = (0.0, 0.1, 2.0)
"""How long a process keeps a reference after the task that got it."""
OBJECTS = "objects"
"""The name of tasks that run such programs."""
CANCELLED_AFTER_S = (0.0, 0.01, 0.1)
INSIDE_MAX = 3
"""References inside one value."""


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
    moves: tuple[tuple[str, ...], ...] = ()
    """In order, instead of random ones: the program's own, its tasks', and so on down."""

    @property
    def name(self) -> str:
        return OBJECTS

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ObjectScript:
        return cls(**json.loads(data))


Submit = Callable[[bytes, int, ObjectScript, list[bytes], list[bytes]], bytes]
"""submit(parent, counter, script, by_value, by_reference): the object that the task makes."""


class ObjectProgram:
    """One run of a script."""

    def __init__(
        self,
        objects: SimObjects,
        script: ObjectScript,
        parent: bytes,
        submit: Submit,
        waiting: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        """parent: what ids come from, another one for each attempt. waiting(): surrounds what a task waits
        for."""
        self.hand: list[bytes] = []
        self._objects = objects
        self._script = script
        self._parent = parent
        self._submit = submit
        self._waiting = waiting
        self._rng = random.Random(f"{script.seed}/{parent.hex()}")
        self._count = 0

    async def play(self) -> None:
        """All moves. What is in the hand then is the caller's to drop."""
        if self._script.moves:
            for name in self._script.moves[0]:
                await getattr(self, f"_{name}")()
            return
        moves = [self._put, self._get, self._get, self._drop, self._keep, self._pause]
        if self._script.levels:
            moves += [self._task, self._task]
        for _ in range(self._script.num_moves):
            await self._rng.choice(moves)()

    def let_go(self) -> None:
        while self.hand:
            self._objects.drop(self.hand.pop())

    def returned(self) -> list[bytes]:
        """Takes some out of the hand for the value that the program returns, and drops the others."""
        self._rng.shuffle(self.hand)
        inside = list(dict.fromkeys(self.hand[:INSIDE_MAX]))
        for object_id in inside:
            self.hand.remove(object_id)
        self.let_go()
        return inside

    # ---- moves

    def _some(self, at_most: int) -> list[bytes]:
        distinct = list(dict.fromkeys(self.hand))
        return self._rng.sample(distinct, self._rng.randint(0, min(at_most, len(distinct))))

    async def _put(self) -> None:
        self._count += 1
        task_id = child_task_id(task_seed(self._parent), 0, nil_actor_of(self._objects.job_id))
        object_id = object_id_bytes(task_id, PUT_INDEX_BASE + self._count)
        self._objects.put(object_id, self._some(INSIDE_MAX))
        self.hand.append(object_id)

    async def _get(self) -> None:
        if self.hand:
            with self._waiting():
                self.hand += await self._objects.get(self._rng.choice(self.hand))

    async def _drop(self) -> None:
        if self.hand:
            self._objects.drop(self.hand.pop(self._rng.randrange(len(self.hand))))

    async def _keep(self) -> None:
        """In the process, beyond the program."""
        if self.hand:
            object_id = self.hand.pop(self._rng.randrange(len(self.hand)))
            asyncio.get_running_loop().call_later(self._rng.choice(KEEPS_S), self._objects.drop, object_id)

    async def _hand_over(self) -> None:
        """To a task, which alone has it then."""
        by_value = self._some(INSIDE_MAX)
        self._start_task(by_value, [])
        for object_id in by_value:
            self.hand.remove(object_id)
            self._objects.drop(object_id)

    async def _meet_again(self) -> None:
        """In an object of its own, and keep it all beyond the program."""
        await self._put()
        with self._waiting():
            self.hand += await self._objects.get(self.hand[-1])
        while self.hand:
            await self._keep()

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.choice([0.0, 0.001, 0.05]))

    async def _task(self) -> None:
        by_value, by_reference = self._some(INSIDE_MAX), self._some(1)
        self._start_task(by_value, by_reference)

    def _start_task(self, by_value: list[bytes], by_reference: list[bytes]) -> None:
        self._count += 1
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
        self.hand.append(self._submit(self._parent, self._count, script, by_value, by_reference))

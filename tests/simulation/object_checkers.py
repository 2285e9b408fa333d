"""What outsiders check about objects: nothing that somebody holds is freed, and nothing stays that nobody
holds.

A process that dies lets go of what it held, also of what it held for others that live. So an object that a
dead process held may be gone. A connection that breaks counts as the death of who is behind it (ARCHITECTURE
"Ownership and references", rule 4): then nothing can be said.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ray_mono.common.exceptions import RayTaskError, ReferenceCountingAssertionError
from tests.simulation.loop import SimulationError

if TYPE_CHECKING:
    from tests.simulation.objects import SimObjects


class ObjectCheckFailed(SimulationError):
    """An invariant about objects does not hold."""


class ObjectJournal:
    """Told by simulated drivers and workers."""

    def __init__(self) -> None:
        self.connections_break = False
        self.values_read = 0
        self.errors_read = 0
        self._tables: list[SimObjects] = []
        # What the dead held. An ordered set.
        self._held_by_dead: dict[bytes, None] = {}

    def joined(self, objects: SimObjects) -> None:
        self._tables.append(objects)

    def value_read(self) -> None:
        self.values_read += 1

    def error_read(self, reader: SimObjects, error: BaseException) -> None:
        """Somebody reads an object that he holds, or gets its value as an argument, and it is an error."""
        self.errors_read += 1
        if isinstance(error, RayTaskError):
            error = error.cause  # of a task that had the object as an argument
        if not isinstance(error, ReferenceCountingAssertionError) or self.connections_break:
            return
        self._living()
        if bytes.fromhex(error.object_ref_hex) not in self._held_by_dead:
            raise ObjectCheckFailed(f"{reader.process.name} reads what was held and is freed: {error}")

    def freed(self, owner: SimObjects, object_id: bytes) -> None:
        """Its owner does not have an object any more: judged at once, since not everything that is held is
        read."""
        if self.connections_break:
            return
        holders = [objects for objects in self._living() if object_id in objects.references]
        if holders and object_id not in self._held_by_dead:
            story = holders[0].references.story(object_id)
            raise ObjectCheckFailed(
                f"{owner.process.name} frees what {holders[0].process.name} holds: {story}"
            )

    def _living(self) -> list[SimObjects]:
        for objects in self._tables:
            if not objects.process.is_alive:
                self._held_by_dead.update(
                    dict.fromkeys(object_id for object_id, _ in objects.references.items())
                )
        self._tables = [objects for objects in self._tables if objects.process.is_alive]
        return self._tables

    def check_invariants(self) -> None:
        """Has the processes that live recount their tables."""
        for objects in self._living():
            if objects.process.has_run:
                objects.process.has_run = False
                objects.references.check_invariants()

    async def until_nothing_is_left(self, job_id: bytes, timeout_s: float) -> None:
        """Waits until no process of the job has an object."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while left := self._left(job_id):
            if loop.time() > end_s:
                raise ObjectCheckFailed(f"{timeout_s:g} s after the programs ended: {'; '.join(left[:5])}")
            await asyncio.sleep(0.5)

    def _left(self, job_id: bytes) -> list[str]:
        return [
            f"{objects.process.name}: {objects.references.story(object_id)}"
            for objects in self._living()
            if objects.job_id == job_id
            for object_id, _ in objects.references.items()
        ]

"""What outsiders check about objects: nothing that somebody holds is freed, and nothing stays that nobody
holds.

A process that dies lets go of what it held, also of what it held for others that live. So an object that a
dead process held may be gone. A connection that breaks counts as the death of who is behind it (ARCHITECTURE
"Ownership and references", rule 4): then nothing can be said.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import ReferenceCountingAssertionError
from ray_mono.common.ids import TaskID
from ray_mono.core_worker.objects.lineage import Lineage
from ray_mono.core_worker.reference_counting.reference_counter import (
    ForgetAllPlain,
    ForgetPlain,
    OnOutOfScope,
    Reference,
    ReferenceCounter,
    Table,
)
from tests.simulation.actor_checkers import ActorJournal
from tests.simulation.loop import SimulationError

if TYPE_CHECKING:
    from tests.simulation.process import SimProcess


class ObjectCheckFailed(SimulationError):
    """An invariant about objects does not hold."""


class JudgedCounter(ReferenceCounter):
    """A process's reference counter; the journal knows it, and hears of what its process frees."""

    def __init__(
        self,
        process: SimProcess,
        journal: ObjectJournal,
        table: Table,
        on_out_of_scope: OnOutOfScope,
        forget_plain: ForgetPlain,
        forget_all_plain: ForgetAllPlain,
    ) -> None:
        def judge(object_id: bytes) -> None:
            if process.is_alive:
                process.judge(journal.freed, process, object_id)

        def ended(object_id: bytes, row: Reference) -> None:
            if row.owner is None:
                judge(object_id)
            on_out_of_scope(object_id, row)

        def forget(object_id: bytes) -> bool:
            is_forgotten = forget_plain(object_id)
            if is_forgotten:
                judge(object_id)
            return is_forgotten

        def forget_all(object_ids: Sequence[bytes]) -> bool:
            are_forgotten = forget_all_plain(object_ids)
            for object_id in object_ids if are_forgotten else ():
                judge(object_id)
            return are_forgotten

        super().__init__(table, ended, forget, forget_all)
        journal.joined(process, self)


class ObjectJournal:
    """Told by simulated drivers and workers."""

    def __init__(self, actors: ActorJournal) -> None:
        self.connections_break = self.hosts_fall_silent = False
        self.is_harmless = False
        self.stored: Callable[[bool], list[bytes]] = lambda with_evictable: []
        """The objects in all stores, perhaps without copies that a store may evict; set by the cluster."""
        self.is_on_dead_node: Callable[[bytes], bool] = lambda node_id: False
        """Whether the head holds this node to be dead; set by the cluster."""
        self.lost_worker_answer_s = 0.0
        """How long a lessee waits for a raylet's word on a worker that it lost; set by the cluster."""
        # When whoever leased these workers gives them up, though they may live for a while.
        self._given_up_s: dict[bytes, float] = {}
        self.values_read = 0
        self.errors_read = 0
        self._actors = actors
        self._tables: dict[SimProcess, ReferenceCounter] = {}
        self._lineages: dict[SimProcess, Lineage[Any]] = {}
        # What the dead held, and what is inside of it. An ordered set.
        self._held_by_dead: dict[bytes, None] = {}

    def joined(self, process: SimProcess, references: ReferenceCounter) -> None:
        self._tables[process] = references
        process.on_death(lambda _reason: self._died(process), is_first=True)

    def keeps(self, process: SimProcess, lineage: Lineage[Any]) -> None:
        """The process's finished tasks, kept for what they returned."""
        self._lineages[process] = lineage

    def lost(self, worker_id: bytes, now_s: float) -> None:
        """Its lessee has lost it, and asks its raylet."""
        self._given_up_s.setdefault(worker_id, now_s + self.lost_worker_answer_s)

    def value_read(self, task_id: bytes, maker_id: bytes) -> None:
        """Of an object of task_id's; maker_id: what the value itself says."""
        self.values_read += 1
        if maker_id != task_id:
            raise ObjectCheckFailed(f"an object of task {task_id.hex()} has a value of {maker_id.hex()}")

    def bytes_are_wrong(self, maker_id: bytes, content: bytes) -> None:
        """Of a value that somebody read."""
        end = len(content.rstrip(b"\0"))
        told = f"{len(content)} bytes, of which the last that is not 0 is number {end}"
        raise ObjectCheckFailed(f"a value of {maker_id.hex()} has other bytes than it was made of: {told}")

    def error_read(self, reader: SimProcess, error: Any) -> None:
        """Somebody reads an object that he holds, or is given its value as an argument, and it is lost."""
        self.errors_read += 1
        if self.is_harmless:
            raise ObjectCheckFailed(f"{reader.name} reads what was lost, and nothing went wrong: {error}")
        if not isinstance(error, ReferenceCountingAssertionError) or self.hosts_fall_silent:
            return
        if self._counts_as_dead(reader):
            return
        self._living()
        if bytes.fromhex(error.object_ref_hex) not in self._held_by_dead:
            raise ObjectCheckFailed(f"{reader.name} reads what was held and is freed: {error}")

    def freed(self, owner: SimProcess, object_id: bytes) -> None:
        """Its owner does not have an object any more: judged at once, since not everything that is held is
        read."""
        self._actors.object_freed(object_id)
        if self.hosts_fall_silent:
            return
        holders = [process for process, table in self._living().items() if object_id in table]
        if holders and object_id not in self._held_by_dead:
            story = self._tables[holders[0]].story(object_id)
            raise ObjectCheckFailed(f"{owner.name} frees what {holders[0].name} holds: {story}")

    def _died(self, process: SimProcess) -> None:
        self._note_held(self._tables[process])
        del self._tables[process]
        self._lineages.pop(process, None)

    def _note_held(self, table: ReferenceCounter) -> None:
        inside: dict[bytes, list[bytes]] = {}
        for each in self._tables.values():
            for object_id, row in each.items():
                inside.setdefault(object_id, []).extend(row.nested or ())
        held = dict.fromkeys(object_id for object_id, _ in table.items())
        todo = list(held)
        while todo:
            new = [each for each in inside.get(todo.pop(), ()) if each not in held]
            held.update(dict.fromkeys(new))
            todo += new
        self._held_by_dead.update(held)

    def _living(self) -> dict[SimProcess, ReferenceCounter]:
        living = {}
        for process, table in self._tables.items():
            if self._counts_as_dead(process):
                self._note_held(table)
            else:
                living[process] = table
        return living

    def _counts_as_dead(self, process: SimProcess) -> bool:
        """Also one that lives, and is the process of an actor that nobody can call any more, or on a node
        that is dead, or was given up by whoever leased it, as its own end will tell it soon."""
        core = process.core
        if not process.is_alive or core is None:
            return not process.is_alive
        given_up_s = self._given_up_s.get(core.worker_id)
        if given_up_s is not None and given_up_s <= core.env.clock.time_s():
            return True
        return self._actors.is_doomed(core.worker_id) or self.is_on_dead_node(core.env.address.node_id)

    def check_invariants(self) -> None:
        """Has the processes that live recount their tables."""
        for process, table in self._living().items():
            if process.has_run:
                process.has_run = False
                table.check_invariants()
                if process in self._lineages:
                    self._lineages[process].check_invariants()

    async def until_nothing_is_left(self, job_id: bytes, timeout_s: float) -> None:
        """Waits until no process of the job has an object."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        pause_s = 0.5
        while left := self._left(job_id):
            if loop.time() > end_s:
                raise ObjectCheckFailed(f"{timeout_s:g} s after the programs ended: {'; '.join(left[:5])}")
            gc.collect()  # frames of errors hold each other, and references
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    def _left(self, job_id: bytes) -> list[str]:
        left = []
        if not self.connections_break:  # else a store may not hear that an object is free
            # A reader that dies may not have told the owner of its copy, which stays until it is evicted.
            stored = self.stored(self.is_harmless)
            stored = [each for each in stored if each[: TaskID.SIZE].endswith(job_id)]
            left += [f"a store has object {object_id.hex()}" for object_id in stored]
        for process, table in self._living().items():
            if process.core is not None and process.core.job_id == job_id:
                left += [f"{process.name}: {table.story(object_id)}" for object_id, _ in table.items()]
                if process.core.is_needed(by_holders=False):
                    left.append(f"{process.name} has {process.core.story()}")
                books = process.core.describe()
                if books["values"] or books["waiters"] or books["tasks_kept"]:
                    left.append(
                        f"{process.name} has {books['values']} values, {books['waiters']} waiters,"
                        f" {books['tasks_kept']} kept tasks"
                    )
                for queue in books["scheduling"]:
                    if queue["tasks_queued"] or queue["leases"] or queue["lease_requests"]:
                        left.append(f"{process.name} has {queue}")
        return left

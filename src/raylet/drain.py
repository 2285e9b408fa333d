"""A node that is drained: it is to end, and what is on it goes elsewhere first.

    RUNNING ──accepted──► DRAINING ──nothing is left──► ENDED
                              │
                              └──the deadline──► ENDING ──its workers have ended──► ENDED

- Idle termination is accepted of a node that is idle: nothing holds resources, also no placement group, and
  there are no drivers and no primary copies of objects. A preemption is always accepted.
- Asking again is harmless. The earlier deadline holds (none is later than all), and a preemption outweighs an
  idle termination. Nothing takes a drain back.
- While it drains, nothing is placed here, but what drivers and tasks on it ask for and no other node could
  ever hold: it waits for those. What has a worker goes on. Whoever leased one for tasks is asked to give it
  back. The head moves actors (gcs/node_drains.py). Primary copies go to other nodes (evacuation.py).
- Nothing is left when no lease holds resources, and there are no drivers, no primary copies whose owner lives
  elsewhere, and no workers. Idle workers are asked to end, and stay while others use what they own.
- At the deadline the workers are killed, with the drain as the cause, so that whoever leased them hears it;
  then the node ends.
- The drain is told at each registration. It is in memory here, and in the node's row at the head.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable

from ray_mono.common.backoff import Backoff
from ray_mono.common.our_bug import check
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.evacuation import Evacuation
from ray_mono.raylet.local_processes import LocalProcesses
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.worker.worker_pool import WorkerPool

ROUND_PERIOD_S, ROUND_PERIOD_MAX_S = 0.2, 2.0
"""Between two looks at what is left: longer each time while that stays the same."""
LAST_ANSWERS_S = 1.0
"""After the workers were killed, for whoever asks how they ended."""
WORKERS_END_S = 5.0

logger = logging.getLogger(__name__)


class DrainState(enum.Enum):
    RUNNING = "running"
    DRAINING = "draining"
    ENDING = "ending"
    ENDED = "ended"


_MOVES = {
    (DrainState.RUNNING, DrainState.DRAINING),
    (DrainState.DRAINING, DrainState.ENDING),
    (DrainState.DRAINING, DrainState.ENDED),
    (DrainState.ENDING, DrainState.ENDED),
}


class Drain:
    """Of one raylet."""

    def __init__(
        self,
        node_id: bytes,
        clock: Clock,
        clients: Clients,
        pool: WorkerPool,
        leases: LeaseManager,
        processes: LocalProcesses,
        effects: EffectRunner,
        evacuation: Evacuation,
        end: Callable[[str], None],
    ) -> None:
        """end(reason): the node ends."""
        self._node_id = node_id
        self._clock = clock
        self._clients = clients
        self._pool = pool
        self._leases = leases
        self._processes = processes
        self._effects = effects
        self._evacuation = evacuation
        self._end = end
        self._state = DrainState.RUNNING
        self._drain = common_pb2.NodeDrain()
        # Set while it is in DRAINING or beyond.
        self._began = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def drain(self) -> common_pb2.NodeDrain | None:
        """None: it is not drained."""
        return None if self._state is DrainState.RUNNING else self._drain

    async def request(self, wanted: common_pb2.NodeDrain) -> raylet_pb2.DrainRayletReply:
        """Somebody wants it."""
        if wanted.reason != common_pb2.DRAIN_NODE_REASON_PREEMPTION and self._state is DrainState.RUNNING:
            why = await self._why_not_idle()
            if why:
                message = f"node {self._node_id.hex()} is not idle: {why}"
                return raylet_pb2.DrainRayletReply(rejection_reason_message=message)
        if self._state is DrainState.RUNNING:
            self._drain.CopyFrom(wanted)
            self._move(DrainState.DRAINING)
            self._effects.run(self._leases.drain(self._clock.time_s()))
            self._began.set()
        else:
            self._drain = joined(self._drain, wanted)
        self._changed.set()
        logger.warning("this node is drained: %s", self.story)
        return raylet_pb2.DrainRayletReply(is_accepted=True, drain=self._drain)

    @property
    def story(self) -> str:
        reason = common_pb2.DrainNodeReason.Name(self._drain.reason)
        return f"it was drained ({reason}): {self._drain.reason_message}"

    async def run(self) -> None:
        """Until the node is to end, if it is drained at all."""
        await self._began.wait()
        evacuating = asyncio.ensure_future(self._until_nothing_is_left())
        try:
            while not evacuating.done() and (left_s := self._left_s()) > 0:
                self._changed.clear()
                changed = asyncio.ensure_future(self._changed.wait())
                timeout_s = None if left_s == float("inf") else left_s
                await asyncio.wait(
                    {evacuating, changed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
                )
                changed.cancel()
            if evacuating.done():
                evacuating.result()
                self._move(DrainState.ENDED)
                self._end(self.story)
                return
        finally:
            evacuating.cancel()
        self._move(DrainState.ENDING)
        await self._end_workers()
        self._move(DrainState.ENDED)
        self._end(f"{self.story}; its deadline had come")

    def _left_s(self) -> float:
        deadline_ms = self._drain.deadline_timestamp_ms
        return deadline_ms / 1000 - self._clock.wall_s() if deadline_ms else float("inf")

    async def _until_nothing_is_left(self) -> None:
        pause = Backoff(ROUND_PERIOD_S, ROUND_PERIOD_MAX_S)
        before = (False, 0, 0)
        while True:
            was_idle = not self._what_runs()
            num_left = await self._evacuation.round()
            if was_idle and not num_left and not self._what_runs():
                if not len(self._pool):
                    return
                self._effects.run(self._leases.end_idle_workers(self._clock.time_s()))
            left = (was_idle, num_left, len(self._pool))
            if left != before:
                before = left
                pause.reset()
            await asyncio.sleep(pause.next_s())

    async def _end_workers(self) -> None:
        """Bounded: the node ends all the same."""
        kind = common_pb2.DeathCause.NODE_DIED
        is_preempted = self._drain.reason == common_pb2.DRAIN_NODE_REASON_PREEMPTION
        message = f"its node {self._node_id.hex()} has ended: {self.story}; its deadline had come"
        cause = common_pb2.DeathCause(kind=kind, message=message, is_preempted=is_preempted)
        had_workers = False
        for client in self._clients:
            if not client.is_driver:
                had_workers = True
                self._processes.kill(client.worker_id, force=True, cause=cause)
        for _ in range(round(WORKERS_END_S / ROUND_PERIOD_S)):
            if all(client.is_driver for client in self._clients):
                break
            await asyncio.sleep(ROUND_PERIOD_S)
        if had_workers:
            await asyncio.sleep(LAST_ANSWERS_S)

    async def _why_not_idle(self) -> str:
        # In this order: whatever begins while the store answers is seen.
        what_is_here = await self._evacuation.what_is_here()
        if self._leases.held_bundles():
            return "bundles of placement groups are held there"
        return self._what_runs() or what_is_here

    def _what_runs(self) -> str:
        """Empty: nothing does."""
        if self._leases.has_leases:
            return "workers are leased there, or are to be"
        if any(client.is_driver for client in self._clients):
            return "a driver is connected there"
        return ""

    def _move(self, state: DrainState) -> None:
        """The one place where the state changes. Raises InternalError."""
        check(
            (self._state, state) in _MOVES, f"a node that is {self._state.value} cannot become {state.value}"
        )
        self._state = state


def joined(first: common_pb2.NodeDrain, second: common_pb2.NodeDrain) -> common_pb2.NodeDrain:
    """What holds after both were asked for."""
    deadlines = [drain.deadline_timestamp_ms for drain in (first, second) if drain.deadline_timestamp_ms]
    says = second if second.reason > first.reason else first
    return common_pb2.NodeDrain(
        reason=says.reason,
        reason_message=says.reason_message,
        deadline_timestamp_ms=min(deadlines, default=0),
    )

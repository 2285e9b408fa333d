"""Takes back tasks that a worker has not begun, without asking the worker, which may be frozen or stopped.

Worker and raylet share a board (common/start_board.py): it tells what has begun, and the raylet closes the
lease on it. The lease itself stays, and its holder gives it back when all is answered. As soon as nothing
of it runs, its CPUs are lent to others.

A holder may be stopped itself (Ctrl-Z at a driver, say). One that was asked for a lease and said nothing
for UNANSWERED_S counts as stopped: its leases are closed the same way, and what it waits for is cancelled.
When it goes on it gives its leases back and asks anew. What it pushes until then is answered unstarted.
"""

from __future__ import annotations

import asyncio

from ray_mono.common.start_board import SETTLE_S, BoardOfAnother
from ray_mono.common.world import Clock
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.reclaim_streams import ReclaimStreams
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.leases import WorkerLease, WorkerLeaseState
from ray_mono.raylet.wire import lease_number

UNANSWERED_S = 1.0
"""Longer than a holder that runs needs to answer, also on a busy machine."""


class Withdrawals:
    """Of one raylet."""

    def __init__(
        self,
        clock: Clock,
        clients: Clients,
        leases: LeaseManager,
        reclaims: ReclaimStreams,
        effects: EffectRunner,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._leases = leases
        self._reclaims = reclaims
        self._effects = effects

    async def withdraw(self, lease_id: bytes, last: int) -> raylet_pb2.WithdrawTasksReply:
        """Closes the lease of a worker unless the last task that was pushed on it has begun."""
        lease = self._leases.granted(lease_id)
        board = self._board_of(lease) if lease is not None else None
        if lease is None or board is None or board.begun(lease_number(lease.number)) >= last:
            return raylet_pb2.WithdrawTasksReply()
        board.close_lease(lease_number(lease.number))
        await asyncio.sleep(SETTLE_S)
        reply = raylet_pb2.WithdrawTasksReply(is_closed=True, begun=board.begun(lease_number(lease.number)))
        self._lend(lease, board)
        return reply

    def look(self) -> None:
        """Sees to holders that do not answer. To be called every LOOK_S while requests wait; LOOK_S is longer
        than SETTLE_S."""
        now_s = self._clock.time_s()
        for lease in self._leases.leases():
            if lease.asked_at_s is None or now_s - lease.asked_at_s < UNANSWERED_S:
                continue
            board = self._board_of(lease)
            if board is None or not self._reclaims.listens(lease.request.requester):
                continue
            if lease.state is WorkerLeaseState.CLOSED:
                self._lend(lease, board)
            elif lease.state is WorkerLeaseState.GRANTED:
                self._leases.close(lease.lease_id)
                board.close_lease(lease_number(lease.number))
                self._cancel_requests(lease.request.requester)

    def _cancel_requests(self, requester: int) -> None:
        """More leases would only lie there. It asks anew when it goes on."""
        for lease in self._leases.leases():
            if lease.request.requester == requester and not lease.has_worker:
                self._effects.run(self._leases.cancel(lease.lease_id, self._clock.time_s()))

    def _lend(self, lease: WorkerLease, board: BoardOfAnother) -> None:
        """The lease is closed: what does not run by now never will."""
        if lease.worker_id is not None and not board.running():
            worker_id, now_s = lease.worker_id, self._clock.time_s()
            self._effects.run(self._leases.worker_blocked(worker_id, lease.lease_id, True, now_s))

    def _board_of(self, lease: WorkerLease) -> BoardOfAnother | None:
        process = self._clients.get(lease.worker_id) if lease.worker_id is not None else None
        return process.board if process is not None else None

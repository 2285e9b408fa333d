"""What those who lease workers say: brings their calls to the lease manager and its answers back to them."""

from __future__ import annotations

import asyncio

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.leases import LeaseRequest
from ray_mono.raylet.worker.death_reports import DeathReports
from ray_mono.rpc.surface import Connection, RpcError, StatusCode

LOST_WAIT_S = 1.0
"""For the end of a worker that its lessee lost; beyond the wait for its exit status."""


class LeaseRequests:
    """Of one raylet."""

    def __init__(
        self,
        config: RayletConfig,
        clock: Clock,
        clients: Clients,
        leases: LeaseManager,
        answers: LeaseAnswers,
        effects: EffectRunner,
        deaths: DeathReports,
    ) -> None:
        self._config = config
        self._clock = clock
        self._clients = clients
        self._leases = leases
        self._answers = answers
        self._effects = effects
        self._deaths = deaths
        self._is_closed = False

    def close(self) -> None:
        """The raylet stops: who waits for a lease gets none."""
        self._is_closed = True
        self._answers.fail_all(_stopping())

    def requester_of(self, connection: Connection) -> int:
        """The number of whoever asks on this connection, whose end is the requester's."""
        return self._clients.requester_of(connection, self._requester_gone)

    def _requester_gone(self, requester: int) -> None:
        self._effects.run(self._leases.requester_gone(requester, self._clock.time_s()))

    async def request(self, request: LeaseRequest) -> raylet_pb2.RequestWorkerLeaseReply:
        """Answers when the lease is granted, refused or cancelled. Raises RpcError while stopping, and above
        lease_queue_max."""
        if self._is_closed:
            raise _stopping()
        if self._leases.num_queued >= self._config.lease_queue_max:
            raise RpcError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{self._leases.num_queued} leases are queued here, and no more can be",
            )
        answer = self._answers.expect(request.lease_id)
        self._effects.run(self._leases.request(request, self._clock.time_s()))
        try:
            return await answer
        except asyncio.CancelledError:
            # The call was cancelled, or its connection ended: nobody reads the answer, whatever it is by now.
            if self._answers.forget(request.lease_id, answer):
                self.cancel(request.lease_id)
            elif answer.done() and not answer.cancelled() and answer.result().HasField("grant"):
                self.give_back(request.lease_id)
            raise

    def cancel(self, lease_id: bytes) -> bool:
        """Whether it was still waiting."""
        effects = self._leases.cancel(lease_id, self._clock.time_s())
        self._effects.run(effects)
        return bool(effects)

    def give_back(self, lease_id: bytes, dispose: bool = False, leaving: bool = False) -> None:
        self._effects.run(self._leases.return_lease(lease_id, dispose, leaving, self._clock.time_s()))

    def returned_elsewhere(self, node_id: bytes, resources: ResourceSet) -> None:
        """Somebody here returned a worker of another node."""
        now_s = self._clock.time_s()
        self._effects.run(self._leases.returned_elsewhere(node_id, resources, now_s))

    async def cause_of_loss(self, lease_id: bytes, worker_id: bytes) -> common_pb2.DeathCause:
        """How a worker ended that its lessee lost; empty where that is not known in time.

        A lessee often knows of the loss before the raylet does, so this waits for the report. A worker that
        is still alive after that has only lost a connection. It may run a task that the lessee runs again
        elsewhere, so it is ended.
        """
        wait_s = self._config.exit_status_wait_s + LOST_WAIT_S
        cause = await self._deaths.cause_of(worker_id, wait_s)
        if cause is None:
            self.give_back(lease_id, dispose=True)
            cause = await self._deaths.cause_of(worker_id, self._config.worker_exit_grace_s + wait_s)
        return cause or common_pb2.DeathCause()


def _stopping() -> RpcError:
    return RpcError(StatusCode.UNAVAILABLE, "the raylet is stopping")

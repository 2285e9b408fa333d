"""The shell that ends the workers of actors.

Without force the worker itself is asked: it finishes the calls that it has queued, or, where its actor moves,
those that run; it answers when that is done. By force its raylet is
asked, which can always kill; before that, the worker shortly has time for what it still has to tell. A raylet
that cannot be reached is asked again until it answers or its node is dead, so no actor outlives its row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ray_mono.common.ids import ActorID, WorkerID
from ray_mono.gcs.actor.actor_effects import EndActorWorker
from ray_mono.gcs.actor.actor_rows import death_to_proto
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)


class ActorEnder:
    """Carries out EndActorWorker."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        last_words: Callable[[bytes], Awaitable[None]],
        on_left: Callable[[WorkerID], None],
    ) -> None:
        """last_words(worker_id) waits shortly for what the worker still has to tell. on_left(worker_id):
        nothing of the actor that moves runs there any more."""
        self._environment = environment
        self._nodes = nodes
        self._last_words = last_words
        self._on_left = on_left
        # Those that are by force, and whose worker each ends.
        self._killing: dict[asyncio.Task[None], ActorID] = {}

    def end(self, effect: EndActorWorker, address: common_pb2.Address | None) -> None:
        """Starts to end the worker. address: where it answers; None: only its raylet can be asked."""
        task = self._environment.tasks.spawn(
            self._end(effect, address), f"end worker {effect.worker_id.hex()}"
        )
        if effect.force:
            self._killing[task] = effect.actor_id
            task.add_done_callback(self._killing.pop)

    async def until_killed(self, actor_id: ActorID) -> None:
        """Waits until none of the actor's workers is being killed."""
        tasks = [task for task, of_actor in self._killing.items() if of_actor == actor_id]
        if tasks:
            await asyncio.wait(tasks)

    async def _end(self, effect: EndActorWorker, address: common_pb2.Address | None) -> None:
        if not effect.force and address is not None:
            try:
                await self._ask_worker(effect, address)
                if effect.moves:
                    self._on_left(effect.worker_id)
                return
            except RpcError as error:
                # Dead already, or deaf: its raylet knows how to tell, and what to do.
                logger.info("worker %s did not answer Exit: %s", effect.worker_id.hex(), error)
        await self._last_words(effect.worker_id.binary())
        await self._have_killed(effect)

    async def _have_killed(self, effect: EndActorWorker) -> None:
        while (info := self._nodes.alive(effect.node_id)) is not None:
            try:
                await self._ask_raylet(effect, raylet_address(info))
                return
            except RpcError as error:
                if error.code not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
                    logger.info("worker %s was not killed: %s", effect.worker_id.hex(), error)
                    return
            await asyncio.sleep(self._environment.config.lease_retry_period_s)

    async def _ask_worker(self, effect: EndActorWorker, address: common_pb2.Address) -> None:
        channel = await self._environment.transport.connect(
            f"{address.host}:{address.port}", self._environment.config.connect_timeout_s
        )
        try:
            await self._environment.writes.confirmed()
            worker = core_worker_rpc.CoreWorkerServiceAsyncStub(channel)
            cause = death_to_proto(effect.death)
            await worker.Exit(core_worker_pb2.ExitRequest(cause=cause, moves=effect.moves))
        finally:
            channel.close()

    async def _ask_raylet(self, effect: EndActorWorker, raylet_address: str) -> None:
        raylet = await self._environment.raylets.client(raylet_address)
        request = raylet_pb2.KillWorkerRequest(
            worker_id=effect.worker_id.binary(), force=True, cause=death_to_proto(effect.death)
        )
        await raylet.KillWorker(request, timeout_s=self._environment.config.health_check_timeout_s)

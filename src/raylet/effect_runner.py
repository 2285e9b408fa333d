"""Carries out what the machines decide. It decides nothing, and waits for nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import assert_never

from ray_mono.common.our_bug import InternalError
from ray_mono.common.world import Clock
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet import wire
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effects import (
    BundlesHeld,
    CollectGarbage,
    Effect,
    EndWorker,
    Granted,
    ReclaimLease,
    Rejected,
    SpilledBack,
    StartWorker,
    Unclaimed,
    WarnJob,
)
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.reclaim_streams import ReclaimStreams
from ray_mono.raylet.worker.launcher import WorkerLauncher, WorkerOrder
from ray_mono.raylet.worker.worker_ender import WorkerEnder

logger = logging.getLogger(__name__)


class EffectRunner:
    """Of one raylet."""

    def __init__(
        self,
        clients: Clients,
        answers: LeaseAnswers,
        reclaims: ReclaimStreams,
        outbox: GcsOutbox,
        launcher: WorkerLauncher,
        ender: WorkerEnder,
        clock: Clock,
        after: Callable[[], None],
    ) -> None:
        """after(): what is seen to whenever something may have changed."""
        self._clients = clients
        self._answers = answers
        self._reclaims = reclaims
        self._outbox = outbox
        self._launcher = launcher
        self._ender = ender
        self._clock = clock
        self._after = after

    def run(self, effects: Iterable[Effect]) -> None:
        """In their order."""
        for effect in effects:
            match effect:
                case Granted():
                    self._grant(effect)
                case SpilledBack() | Rejected():
                    self._answers.answer(effect.lease_id, wire.refusal_reply(effect))
                case BundlesHeld():
                    self._answers.answer(effect.lease_id, raylet_pb2.RequestWorkerLeaseReply())
                case StartWorker():
                    self._launcher.start(WorkerOrder(effect.startup_token, effect.worker_id))
                case EndWorker():
                    self._ender.end(effect)
                case WarnJob():
                    logger.warning("job %s: %s", effect.job_id.hex(), effect.message)
                    self._outbox.publish_error(wire.error_info(effect, self._clock.wall_s()))
                case Unclaimed():
                    self._outbox.register_again()
                case ReclaimLease():
                    self._reclaims.tell(effect)
                case CollectGarbage():
                    self._outbox.ask_for_garbage()
                case _:
                    assert_never(effect)
        self._outbox.resources_changed()
        self._after()

    def _grant(self, effect: Granted) -> None:
        client = self._clients.get(effect.worker_id)
        if client is None:
            raise InternalError(f"worker {effect.worker_id.hex()} was granted and is not connected")
        self._answers.answer(effect.lease_id, wire.grant_reply(effect, client.address, client.pid))

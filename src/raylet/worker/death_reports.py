"""How this node's processes ended, for those who have to know: the GCS, and whoever leased a worker and lost
its connection to it.

    connection ends ──► report: waits shortly for the exit status ──► GCS
                                                                  └──► cause_of: the one who had leased it
"""

from __future__ import annotations

import asyncio
import logging

from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.worker.deaths import Ends, OomKills, death_cause
from ray_mono.raylet.worker.launcher import WorkerExit, WorkerLauncher

logger = logging.getLogger(__name__)

UNREAD_S = 0.1
"""How long what a process said last may lie unread after its end."""


class DeathReports:
    """Of one raylet."""

    def __init__(
        self, config: RayletConfig, launcher: WorkerLauncher, clock: Clock, outbox: GcsOutbox
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._clock = clock
        self._outbox = outbox
        # By startup token.
        self._exits: Ends[int, WorkerExit] = Ends()
        # By worker id.
        self._causes: Ends[bytes, common_pb2.DeathCause] = Ends()
        self._oom_kills = OomKills()

    def exited(self, exit_: WorkerExit) -> None:
        self._exits.happened(exit_.startup_token, exit_)

    async def hear_out(self, process: ClientProcess) -> None:
        """It has ended. What it said last (that it leaves, say) may not be read yet. After that its
        connection ends, unless something that it started holds the other end."""
        await asyncio.sleep(UNREAD_S)
        process.connection.close()

    async def report(self, process: ClientProcess, connection_end: str, end_reason: str) -> None:
        """connection_end: how its connection ended. end_reason: why the raylet ended it; empty where it did
        not."""
        exit_ = None
        if process.startup_token:
            exit_ = await self._exits.of(process.startup_token, self._config.exit_status_wait_s)
            if exit_ is None:
                # The template may stand still, which is its parent.
                exit_ = self._launcher.found_dead(process.startup_token)
                self._launcher.kill(process.startup_token, force=True)
        cause = death_cause(process, exit_, connection_end, end_reason, self._config, self._oom_kills)
        logger.info("%s", cause.message)
        now_s = self._clock.wall_s()
        self._outbox.report_worker_death(process.info_at_its_end(self._config.node_id, now_s, cause))
        self._causes.happened(process.worker_id, cause)

    async def cause_of(self, worker_id: bytes, timeout_s: float) -> common_pb2.DeathCause | None:
        """How a worker ended, if it does within timeout_s."""
        return await self._causes.of(worker_id, timeout_s)

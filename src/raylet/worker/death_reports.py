"""How this node's processes ended, for those who have to know: the GCS, and whoever leased a worker and lost its connection to it.

    connection ends ──► report: waits shortly for the exit status ──► GCS
                                                                  └──► of_lost: the one who had leased it

Who loses a worker often knows it before the raylet does. So of_lost waits for the report; a worker that lives on then (only a
connection broke) may be in the middle of a task that is run again elsewhere, and is ended.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess
from ray_mono.raylet.worker.deaths import Ends, OomKills, death_cause
from ray_mono.raylet.worker.launcher import WorkerExit, WorkerLauncher

if TYPE_CHECKING:
    from ray_mono.raylet.raylet import Raylet

logger = logging.getLogger(__name__)

LAST_WORDS_S = 0.1
LOST_WAIT_S = 1.0
"""For the end of a worker that its lessee lost; beyond the wait for its exit status."""


class DeathReports:
    """Of one raylet."""

    def __init__(self, raylet: Raylet, launcher: WorkerLauncher) -> None:
        self._raylet = raylet
        self._launcher = launcher
        # By startup token.
        self._exits: Ends[int, WorkerExit] = Ends()
        # By worker id.
        self._causes: Ends[bytes, common_pb2.DeathCause] = Ends()
        self._oom_kills = OomKills()

    def exited(self, exit_: WorkerExit) -> None:
        self._exits.happened(exit_.startup_token, exit_)

    async def hear_out(self, process: ClientProcess) -> None:
        """It has ended. What it said last (that it leaves, say) may not be read yet. After that its connection ends, unless something that
        it started holds the other end."""
        await asyncio.sleep(LAST_WORDS_S)
        process.connection.close()

    async def report(self, process: ClientProcess, connection_end: str, end_reason: str) -> None:
        """connection_end: how its connection ended. end_reason: why the raylet ended it; empty where it did not."""
        raylet = self._raylet
        exit_ = None
        if process.startup_token:
            exit_ = await self._exits.of(process.startup_token, raylet.config.exit_status_wait_s)
            if exit_ is None:
                self._launcher.kill(process.startup_token, force=True)
        info = process.info(raylet.config.node_id)
        info.is_alive = False
        info.end_time_s = raylet.clock.wall_s()
        cause = death_cause(process, exit_, connection_end, end_reason, raylet.config, self._oom_kills)
        info.death_cause.CopyFrom(cause)
        logger.info("%s", cause.message)
        raylet.gcs.report_worker_death(info)
        self._causes.happened(process.worker_id, cause)

    async def of_lost(self, lease_id: bytes, worker_id: bytes) -> common_pb2.DeathCause:
        """Its lessee lost it. Empty where its end is not known in time."""
        config = self._raylet.config
        wait_s = config.exit_status_wait_s + LOST_WAIT_S
        cause = await self._causes.of(worker_id, wait_s)
        if cause is None:
            self._raylet.return_lease(lease_id, dispose=True)
            cause = await self._causes.of(worker_id, config.worker_exit_grace_s + wait_s)
        return cause or common_pb2.DeathCause()

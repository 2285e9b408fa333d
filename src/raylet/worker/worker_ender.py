"""Carries out EndWorker: asks a worker, or has its launcher signal it, and comes back with SIGKILL when it
does not end.

A worker that was started by hand is nobody's child here: its connection is closed, and it ends with that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.process import has_ended
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effects import EndMode, EndWorker
from ray_mono.raylet.worker.launcher import WorkerLauncher
from ray_mono.rpc.surface import RpcError, StatusCode, Transport

logger = logging.getLogger(__name__)


class WorkerEnder:
    """Ends workers of this node."""

    def __init__(
        self,
        transport: Transport,
        launcher: WorkerLauncher,
        clients: Clients,
        tasks: BackgroundTasks,
        grace_s: float,
        on_refused: Callable[[bytes], None],
    ) -> None:
        """on_refused(worker_id): a worker that was asked wants to stay."""
        self._transport = transport
        self._launcher = launcher
        self._clients = clients
        self._tasks = tasks
        self._grace_s = grace_s
        self._on_refused = on_refused

    def end(self, effect: EndWorker) -> None:
        logger.info("worker %s ends (%s): %s", effect.worker_id.hex()[:8], effect.mode.value, effect.reason)
        if effect.mode is EndMode.ASK:
            self._note_attempt(effect.worker_id, effect.startup_token, 0)
            self._tasks.spawn(self._ask(effect), f"ask worker {effect.worker_id.hex()[:8]} to end")
            return
        self.signal(effect.worker_id, effect.startup_token, force=effect.mode is EndMode.KILL)
        if effect.mode is EndMode.TERMINATE:
            self._kill_later(effect)

    def signal(self, worker_id: bytes, startup_token: int, force: bool) -> None:
        signum = signal.SIGKILL if force else signal.SIGTERM
        self._note_attempt(worker_id, startup_token, signum)
        if startup_token:
            self._launcher.kill(startup_token, force)
            return
        client = self._clients.get(worker_id)
        if client is not None:
            client.connection.close()

    def _note_attempt(self, worker_id: bytes, startup_token: int, signum: int) -> None:
        """For the report of its end. What has ended before was not ended by the raylet: whoever leased a
        worker may know that it died before the raylet does, and give it back."""
        client = self._clients.get(worker_id)
        if client is not None and not (startup_token and has_ended(client.pid)):
            client.raylet_tries_to_end_it(signum)

    def _kill_later(self, effect: EndWorker) -> None:
        # The launcher ignores a worker that is gone by then.
        loop = asyncio.get_running_loop()
        loop.call_later(self._grace_s, self.signal, effect.worker_id, effect.startup_token, True)

    async def _ask(self, effect: EndWorker) -> None:
        client = self._clients.get(effect.worker_id)
        if client is None:
            return
        try:
            channel = await self._transport.connect(_address(client.address), self._grace_s)
            try:
                worker = core_worker_rpc.CoreWorkerServiceAsyncStub(channel)
                await worker.Exit(core_worker_pb2.ExitRequest(force=False), timeout_s=self._grace_s)
            finally:
                channel.close()
        except RpcError as error:
            if error.code is StatusCode.FAILED_PRECONDITION:
                self._on_refused(effect.worker_id)
                return
            logger.info("worker %s did not answer Exit: %s", effect.worker_id.hex()[:8], error)
        self._kill_later(effect)


def _address(address: common_pb2.Address) -> str:
    return f"unix:{address.unix_path}" if address.unix_path else f"{address.host}:{address.port}"

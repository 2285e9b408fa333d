"""A worker for the raylet's tests: registers, answers, and dies as it is told. Forked from the real
template."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from ray_mono.common.scheduling.resources import SCALE
from ray_mono.core_worker.process.worker_config import WorkerConfig
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.auth import find_secret
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

REFUSES_TO_EXIT = "refuses_to_exit"
"""A file of this name in the session directory: workers that are asked to end say no."""
FAILS_TO_START = "fails_to_start"


def run(config: WorkerConfig) -> None:
    """Never returns."""
    if (Path(config.session_dir) / FAILS_TO_START).exists():
        raise SystemExit(4)
    asyncio.run(FakeWorker(config).serve())


class FakeWorker(core_worker_rpc.CoreWorkerServiceServicer):
    """Tells its raylet what a real worker would."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._raylet: raylet_rpc.RayletServiceAsyncStub

    async def serve(self) -> None:
        config = self._config
        transport = FramedTransport(find_secret(None, config.session_dir))
        path = f"{config.session_dir}/sockets/worker-{config.worker_id.hex()[:16]}"
        await transport.serve(f"unix:{path}", core_worker_rpc.core_worker_service_handlers(self))
        channel = await transport.connect(f"unix:{config.raylet_socket}", 10)
        channel.on_close(lambda reason: os._exit(0))
        self._raylet = raylet_rpc.RayletServiceAsyncStub(channel)
        await self._raylet.RegisterClient(
            raylet_pb2.RegisterClientRequest(
                type=common_pb2.WORKER,
                worker_id=config.worker_id,
                pid=os.getpid(),
                startup_token=config.startup_token,
                address=common_pb2.Address(unix_path=path),
            )
        )
        await asyncio.Event().wait()

    async def PushTask(
        self, request: core_worker_pb2.PushTaskRequest, context: CallContext
    ) -> core_worker_pb2.PushTaskReply:
        """The task's name says what to do: "exit N", "block", "unblock", "leave_child"."""
        words = request.spec.name.split()
        notice = raylet_pb2.NotifyBlockedRequest(worker_id=self._config.worker_id)
        if words[0] == "exit":
            os._exit(int(words[1]))
        elif words[0] == "leave_child":
            await self._lease_and_leave_child()
        elif words[0] == "block":
            await self._raylet.NotifyBlocked(notice)
        elif words[0] == "unblock":
            await self._raylet.NotifyUnblocked(notice)
        return core_worker_pb2.PushTaskReply(pid=os.getpid())

    async def _lease_and_leave_child(self) -> None:
        """Ends with a lease on another worker, and a child that has this one's sockets."""
        request = raylet_pb2.RequestWorkerLeaseRequest(lease_id=b"of a worker that ends")
        request.resources.amounts["CPU"] = SCALE
        await self._raylet.RequestWorkerLease(request)
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()  # what is left in the worker's group is killed
            os.write(writing, b".")
            signal.pause()
        os.read(reading, 1)
        os._exit(0)

    async def Exit(self, request: core_worker_pb2.ExitRequest, context: CallContext) -> common_pb2.Empty:
        if (Path(self._config.session_dir) / REFUSES_TO_EXIT).exists():
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this worker owns an object")
        asyncio.get_running_loop().call_soon(os._exit, 0)
        return common_pb2.Empty()

"""Joining the cluster: the steps that drivers and workers share, from nothing to a CoreWorker that answers its peers.

    listen (Unix and TCP) → driver: a job from the GCS → RegisterClient at the raylet (which says all about the node)
    → the store → CoreWorker

The order matters: a worker can be pushed to as soon as the raylet knows it, so it listens before that, and keeps
what comes too early.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.task_execution.executor import Executor
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceServicer, core_worker_service_handlers
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.reactor import Reactor
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer, ServerCall
from ray_mono.rpc.surface import Handler, RpcError, StatusCode

logger = logging.getLogger(__name__)

REGISTER_TIMEOUT_S = 60.0


class CoreWorkerServicer(CoreWorkerServiceServicer):
    """What this process answers. Methods are plain functions under the lock: see reactor_channel."""

    def __init__(self, is_worker: bool) -> None:
        self.core: CoreWorker | None = None
        self.executor: Executor | None = None
        # What came before the executor was there, in order; a driver executes nothing.
        self._early: list[Callable[[], None]] | None = [] if is_worker else None

    def set_executor(self, executor: Executor) -> None:
        """Lock held."""
        self.executor = executor
        early, self._early = self._early, None
        for handle in early or ():
            handle()

    def PushTask(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self.executor is not None:
            self.executor.PushTask(request, call)
        elif self._early is not None:
            self._early.append(lambda: self.PushTask(request, call))
        else:
            call.reply(core_worker_pb2.PushTaskReply(status=core_worker_pb2.PushTaskReply.WRONG_WORKER))

    def GiveBackTasks(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self.executor is not None:
            self.executor.GiveBackTasks(request, call)
        elif self._early is not None:
            self._early.append(lambda: self.GiveBackTasks(request, call))

    def ForgetTemplates(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        for number in request.template_ids:
            call.connection.state.pop(number, None)

    def CancelTask(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if request.to_owner:
            found = self._core().cancellation.cancel_own(request.task_id, request.force, request.recursive)
        elif self._early is not None:
            self._early.append(lambda: self.CancelTask(request, call))
            return
        else:
            found = self.executor is not None and self.executor.interrupts.cancel(request)
        call.reply(core_worker_pb2.CancelTaskReply(found=found))

    def AcknowledgeItems(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        if self.executor is not None:
            self.executor.generators.AcknowledgeItems(request)

    def GetObjectStatus(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self._core().ownership.GetObjectStatus(request, call)

    def AddBorrower(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self._core().ownership.AddBorrower(request, call)

    def WaitForRefRemoved(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self._core().ownership.WaitForRefRemoved(request, call)

    def AddObjectLocation(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self._core().ownership.AddObjectLocation(request, call)

    def RemoveObjectLocation(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        self._core().ownership.RemoveObjectLocation(request, call)

    def Exit(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        executor = self.executor
        if executor is None:
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this process is not, or not yet, a worker")
        if not request.force and executor.actor is None and not executor.is_disposable():
            # An idle worker may own what others still need: its end would be theirs.
            raise RpcError(StatusCode.FAILED_PRECONDITION, "this worker owns objects or has tasks under way")
        call.reply(common_pb2.Empty())
        if request.force:
            executor.events.send()
            executor.core.reactor.flush()
            os._exit(1)
        executor.exit_after_queue()

    def DumpState(self, request: Any, call: ServerCall) -> None:  # type: ignore[override]
        call.reply(common_pb2.DumpStateReply(json=json.dumps(self._core().describe())))

    def _core(self) -> CoreWorker:
        assert self.core is not None
        return self.core


class Registration:
    """The sockets of a process on its way into the cluster."""

    def __init__(self, worker_type: int, worker_id: bytes, session_dir: str, secret: str, host: str) -> None:
        """Starts to answer on sockets/worker-<id> and on a TCP port of `host`."""
        is_worker = worker_type == common_pb2.WORKER
        self.reactor = Reactor("worker" if is_worker else "driver")
        self.servicer = CoreWorkerServicer(is_worker)
        self._worker_type = worker_type
        self.session_dir = session_dir
        self.secret = secret
        handlers: dict[str, Handler[Any, Any]] = core_worker_service_handlers(self.servicer)
        with self.reactor.lock:
            self.server = ReactorServer(self.reactor, handlers, secret)
            unix_path = os.path.join(session_dir, "sockets", f"worker-{worker_id.hex()[:16]}")
            self.server.listen_unix(unix_path)
            port = self.server.listen_tcp(host)
        self.address = common_pb2.Address(worker_id=worker_id, unix_path=unix_path, host=host, port=port)

    def channel(self, address: str, peer_name: str) -> ReactorChannel:
        """Raises RaySystemError where nobody answers on a Unix socket; TCP's failures are told to the calls.

        peer_name: who is at the other end, for messages when it is gone.
        """
        with self.reactor.lock:
            channel = ReactorChannel(self.reactor, address, self.secret, peer_name)
        if channel.is_closed:
            raise RaySystemError(channel.error().message)
        return channel

    def join(
        self,
        *,
        gcs: ReactorChannel,
        raylet_socket: str,
        job_id: bytes,
        startup_token: int = 0,
        board_fd: int = 0,
        namespace: str = "",
        on_raylet_lost: Callable[[CoreWorker, str], None],
    ) -> CoreWorker:
        """Registers at the raylet, connects the store, and makes the core worker. Raises RaySystemError.

        on_raylet_lost(core, reason): under the lock, also before this returns.
        """
        raylet = self.channel(f"unix:{raylet_socket}", "this node's raylet")
        request = raylet_pb2.RegisterClientRequest(
            type=self._worker_type,  # type: ignore[arg-type]
            worker_id=self.address.worker_id,
            pid=os.getpid(),
            job_id=job_id,
            address=self.address,
            startup_token=startup_token,
            board_fd=board_fd,
        )
        try:
            reply = RayletServiceStub(raylet).RegisterClient(request, timeout_s=REGISTER_TIMEOUT_S)
            self.address.node_id = reply.node.node_id
            store = self.channel(f"unix:{reply.node.store_socket}", "this node's object store")
            core = CoreWorker(
                reactor=self.reactor,
                address=self.address,
                node=reply.node,
                gcs_channel=gcs,
                raylet_channel=raylet,
                store_channel=store,
                secret=self.secret,
                session_dir=self.session_dir,
                is_driver=self._worker_type == common_pb2.DRIVER,
                job_id=job_id,
                namespace=namespace,
                server=self.server,
            )
        except RpcError as error:
            raise RaySystemError(
                f"this process could not join the cluster at {raylet_socket}: {error}"
            ) from None
        with self.reactor.lock:
            self.servicer.core = core
            raylet.on_close(lambda reason: None if core.is_leaving else on_raylet_lost(core, reason))
        return core

"""Joining the cluster: the steps that drivers and workers share, from nothing to a CoreWorker that answers
its peers.

    listen (Unix and TCP) ──► connect to raylet and GCS ──► a driver gets a job from the GCS ──►
    RegisterClient at the raylet, which says all about the node ──► connect to the store ──► CoreWorker

The order matters. Tasks can be pushed to a worker as soon as the raylet knows it. So it listens before that,
and keeps what comes too early (servicer.py).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from ray_mono.common import ids
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.world import SystemClock
from ray_mono.core_worker.config import config_of
from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind, WorkerContext
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.process.gcs_channel import GcsChannel
from ray_mono.core_worker.process.servicer import CoreWorkerServicer, handlers_of
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.reactor import Reactor
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer
from ray_mono.rpc.surface import RpcError

REGISTER_TIMEOUT_S = 60.0
RAYLET_ENDS_S = 0.25
"""What a raylet takes to see that its object manager has died, and to tell the head."""


class Registration:
    """The sockets of a process on its way into the cluster. Used as a context, an error closes them: it does
    not join."""

    def __init__(
        self,
        worker_type: int,
        worker_id: bytes,
        session_dir: str,
        secret: str,
        host: str,
        raylet_socket: str,
        gcs_address: str,
    ) -> None:
        """Starts to answer on sockets/worker-<id> and on a TCP port of `host`, and to connect to the node's
        raylet and the GCS. Raises RaySystemError if there is no raylet."""
        is_worker = worker_type == common_pb2.WORKER
        self.reactor = Reactor("worker" if is_worker else "driver")
        self.servicer = CoreWorkerServicer(is_worker)
        self._worker_type = worker_type
        self.session_dir = session_dir
        self.secret = secret
        with self.reactor.lock:
            self.server = ReactorServer(self.reactor, handlers_of(self.servicer), secret)
            unix_path = os.path.join(session_dir, "sockets", f"worker-{worker_id.hex()[:16]}")
            self.server.listen_unix(unix_path)
            port = self.server.listen_tcp(host)
        self.address = common_pb2.Address(worker_id=worker_id, unix_path=unix_path, host=host, port=port)
        try:
            self._raylet = self._channel_of_node(raylet_socket, "this node's raylet")
        except BaseException:
            self.close()
            raise
        self._clock = SystemClock()
        with self.reactor.lock:
            self.gcs_channel = GcsChannel(
                self.reactor,
                self._clock,
                self.channel,
                self._await_head,
                gcs_address,
                worker_id,
                not is_worker,
            )
        self.gcs = GcsServiceStub(self.gcs_channel)

    def channel(self, address: str, peer_name: str = "") -> ReactorChannel:
        """peer_name: who is at the other end, for messages when it is gone. Lock held."""
        return ReactorChannel(self.reactor, address, self.secret, peer_name)

    def _channel_of_node(self, socket: str, peer_name: str) -> ReactorChannel:
        """To a service of this node. Raises RaySystemError if nobody answers."""
        with self.reactor.lock:
            channel = self.channel(f"unix:{socket}", peer_name)
        if channel.is_closed:
            raise RaySystemError(channel.error().message)
        return channel

    def join(
        self,
        *,
        job: JobContext,
        startup_token: int = 0,
        board_fd: int = 0,
        on_node_lost: Callable[[CoreWorker, str], None],
    ) -> CoreWorker:
        """Registers at the raylet, connects to the store, and makes the core worker. Raises RaySystemError.

        on_node_lost(core, reason): called under the lock, perhaps before this returns. It is not called while
        this process leaves.
        """
        raylet = self._raylet
        try:
            registered = self._register(RayletServiceStub(raylet), job.job_id, startup_token, board_fd)
            node = registered.node
            with self.reactor.lock:
                self.gcs_channel.joined(registered.gcs_reconnect_timeout_s, registered.cluster_id)
            store = self._channel_of_node(node.store_socket, "this node's object store")
            main_id = ids.TaskID.for_driver(job.job_id or b"\0\0\0\0").binary()
            context = WorkerContext(TaskContext(main_id, TaskKind(job.job_id)), job)
            env = self._environment(node, registered.max_lineage_bytes)
            core = CoreWorker(
                env,
                context,
                self.channel,
                store,
                self.server,
                [self.gcs_channel, raylet, store],
            )
        except RpcError as error:
            raise RaySystemError(
                f"this process could not join the cluster at {raylet.address}: {error}"
            ) from None
        with self.reactor.lock:
            self.servicer.serve(core)

            def lost(reason: str) -> None:
                if not context.is_leaving:
                    on_node_lost(core, reason)

            raylet.on_close(lost)

            def store_lost(reason: str) -> None:
                # The raylet is about to end as well, and that should be known first: else an actor here is
                # one that died, whose restart may come to this node. Under the lock nothing leaves that a
                # call gets meanwhile: errors of the node's, where its caller may have it run again.
                if not context.is_leaving:
                    time.sleep(RAYLET_ENDS_S)
                    on_node_lost(core, reason)

            if not env.is_driver:
                store.on_close(store_lost)
        return core

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.close()

    def close(self) -> None:
        with self.reactor.lock:
            self.server.close()
        self.reactor.close()

    def leave_gcs(self) -> None:
        """This process is leaving: it does not wait for long for a head that is away."""
        with self.reactor.lock:
            self.gcs_channel.leave()

    def _await_head(self, number: int, done: Callable[[Any, RpcError | None], None]) -> None:
        request = raylet_pb2.AwaitHeadRequest(after_head_number=number)
        RayletServiceStub(self._raylet).AwaitHead.start(request, done)

    def _register(
        self, raylet: RayletServiceStub, job_id: bytes, startup_token: int, board_fd: int
    ) -> raylet_pb2.RegisterClientReply:
        request = raylet_pb2.RegisterClientRequest(
            type=self._worker_type,  # type: ignore[arg-type]
            worker_id=self.address.worker_id,
            pid=os.getpid(),
            job_id=job_id,
            address=self.address,
            startup_token=startup_token,
            board_fd=board_fd,
        )
        return raylet.RegisterClient(request, timeout_s=REGISTER_TIMEOUT_S)

    def _environment(self, node: common_pb2.NodeInfo, max_lineage_bytes: int) -> Environment:
        address = common_pb2.Address(node_id=node.node_id)
        address.MergeFrom(self.address)
        return Environment(
            config=config_of(os.environ, max_lineage_bytes),
            reactor=self.reactor,
            clock=self._clock,
            rng=random.SystemRandom(),
            address=address,
            node=node,
            gcs=self.gcs,
            raylet=RayletServiceStub(self._raylet),
            session_dir=self.session_dir,
            is_driver=self._worker_type == common_pb2.DRIVER,
            pid=os.getpid(),
        )

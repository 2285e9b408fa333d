"""The core worker: what makes a process part of the cluster. One per driver and per worker.

It holds the parts together and is the interface of the API above it: `put`, `get`, `wait`, tasks, actors. It owns
the reactor (whose lock is the lock of all parts), the connections, and the identity of this process. The parts
decide; values are pickled and unpickled here, outside of the lock, since that runs user code.

    references       who needs which object                    tasks             what was submitted and not finished
    memory_store     values and whereabouts                    task_submitter    leases and pushes of normal tasks
    ownership        the protocol with other owners            actor_submitter   calls to actors
    store            the node's plasma store                   functions         code on its way to workers
    streams          items of generators that others run

Finalizers of ObjectRef run anywhere; they append to `_dropped`, which every entry and every turn of the reactor drains.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray_mono.common import ids
from ray_mono.common.ending import run_steps
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.output import utf8
from ray_mono.core_worker.call_template import CallTemplates, MethodTemplate, Peer, TaskTemplate
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects import putter
from ray_mono.core_worker.objects.futures import ObjectFutures
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.objects.object_wait import ObjectWait
from ray_mono.core_worker.objects.unhandled_errors import UnhandledErrors
from ray_mono.core_worker.options import ActorOptions, CallRules, TaskOptions
from ray_mono.core_worker.process.config import GCS_TIMEOUT_S
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.function_manager import Exported, FunctionManager
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.task_builder import ActorState, Submission
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceStub
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.reactor import Reactor, Waiter
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.task_execution.executor import Executor


class CoreWorker:
    """One process's membership. Made by driver.connect_driver and worker.run_worker."""

    def __init__(
        self,
        *,
        reactor: Reactor,
        address: common_pb2.Address,
        node: common_pb2.NodeInfo,
        gcs_channel: ReactorChannel,
        raylet_channel: ReactorChannel,
        store_channel: ReactorChannel,
        secret: str,
        session_dir: str,
        is_driver: bool,
        server: ReactorServer,
        job_id: bytes = b"",
        namespace: str = "",
    ) -> None:
        self.reactor = reactor
        self.lock = reactor.lock
        self.address = address
        self.worker_id: bytes = address.worker_id
        self.node = node
        self.node_id: bytes = node.node_id
        self.job_id = job_id
        self.nil_actor = ids.nil_actor_of(job_id)
        self.namespace = namespace
        self.default_actor_lifetime = ""
        self.outlives_job = False  # As in TaskSpec: of what runs here, and of what it submits.
        self.runtime_env = "{}"  # JSON: what the job, or what runs here, was given.
        self.task_runtime_env = (
            ""  # The part of it that is not the job's; what is submitted here inherits it.
        )
        self.session_dir = session_dir
        self.is_driver = is_driver
        self.gcs = GcsServiceStub(gcs_channel)
        self.raylet = RayletServiceStub(raylet_channel)
        self.pid = os.getpid()
        self.server = server
        self.executor: Executor | None = None  # A worker's; a driver runs nothing.
        # Run by shutdown, in order, before the connections close.
        self.unhandled = UnhandledErrors(self)
        self.on_shutdown: list[Callable[[], None]] = [self.unhandled.close]
        self.is_leaving = False
        self._secret = secret
        self.owner_address = address.SerializeToString(deterministic=True)
        self._peers: dict[bytes, Peer] = {}
        self._raylets: dict[str, RayletServiceStub] = {}
        self._owned_channels = [gcs_channel, raylet_channel, store_channel]
        self._dropped: deque[bytes] = deque()
        self._kept: dict[bytes, ObjectRef[Any]] = {}
        self._freed: deque[tuple[bytes, list[bytes]]] = deque()
        self._rng = random.SystemRandom()
        self._id_prefix = self._rng.randbytes(20)
        self._id_counter = 0

        self.context = WorkerContext(
            TaskContext(ids.TaskID.for_driver(job_id or b"\0\0\0\0").binary(), job_id)
        )
        self.references = ReferenceCounter(self._out_of_scope)
        self.memory_store = MemoryStore()
        self.ownership = Borrowing(self)
        self.tasks = TaskManager(self)
        self.streams = GeneratorStreams(self)
        self.task_submitter = NormalTaskSubmitter(self)
        self.actor_submitter = ActorTaskSubmitter(self)
        self.functions = FunctionManager(self)
        self.worker_runs = WorkerRuns(self)
        self.store = PlasmaStoreProvider(store_channel, self.worker_id, self._is_referenced)
        self.templates = CallTemplates(self._peers.values)
        self._submission = Submission(self)
        self.cancellation = TaskCanceller(self)
        self.getter = Getter(self)
        self.waits = ObjectWait(self, self.getter)
        self.futures = ObjectFutures(self)
        reactor.serve_queues((self._dropped, self._freed, *self.store.queues), self.drain)

    # ---- small things that the parts share; lock held

    def new_id(self) -> bytes:
        """28 bytes that nobody else has: leases."""
        self._id_counter += 1
        return self._id_prefix + self._id_counter.to_bytes(8, "little")

    def peer(self, address: common_pb2.Address) -> Peer:
        """Another core worker. One connection, over the Unix socket where it is on this node; a lost one is opened anew."""
        worker_id = address.worker_id
        peer = self._peers.get(worker_id)
        if peer is None:
            if address.node_id == self.node_id and address.unix_path:
                target = f"unix:{address.unix_path}"
            else:
                target = f"{address.host}:{address.port}"
            peer = Peer(ReactorChannel(self.reactor, target, self._secret), worker_id, self.worker_runs.known)
            if not peer.channel.is_closed:
                self._peers[worker_id] = peer
                peer.channel.on_close(lambda reason: self._forget_peer(worker_id))
        return peer

    def _forget_peer(self, worker_id: bytes) -> None:
        self._peers.pop(worker_id, None)

    def stub_for(self, address: common_pb2.Address) -> CoreWorkerServiceStub:
        return self.peer(address).stub

    def raylet_at(self, target: str) -> RayletServiceStub:
        """Another node's raylet."""
        stub = self._raylets.get(target)
        if stub is None:
            channel = ReactorChannel(self.reactor, target, self._secret)
            stub = self._raylets[target] = RayletServiceStub(channel)
            channel.on_close(lambda reason: self._forget_raylet(target))
        return stub

    def _forget_raylet(self, target: str) -> None:
        self._raylets.pop(target, None)

    def reference_message(self, object_id: bytes) -> common_pb2.ObjectReference:
        """A reference for the wire, with its owner."""
        row = self.references.get(object_id)
        owner = self.address if row is None or row.owner is None else common_pb2.Address.FromString(row.owner)
        return common_pb2.ObjectReference(object_id=object_id, owner=owner)

    # ---- references

    def reference_dropped(self, object_id: bytes) -> None:
        """From ObjectRef.__del__: any thread, any moment, perhaps under our lock; perhaps in a forked child."""
        self._dropped.append(object_id)
        self.reactor.wake()

    def drain(self) -> None:
        """Counts what finalizers dropped. Lock held."""
        dropped = self._dropped
        while dropped:
            self.references.remove_local(dropped.popleft())
        self.store.drain()
        if self._freed:
            self.store.free(list(self._freed))
            self._freed.clear()

    def owner_address_of(self, ref: ObjectRef[Any]) -> bytes:
        """Raises RaySystemError for a reference of a session that is over."""
        if self.reactor.is_closed:
            raise RaySystemError(f"{ref!r} belongs to a session that is over")
        row = self.references.get(ref._id)
        return self.owner_address if row is None or row.owner is None else row.owner

    def reference_arrived(self, object_id: bytes, owner: bytes) -> ObjectRef[Any]:
        """A reference was unpickled here."""
        with self.lock:
            self.drain()
            self.getter.arrivals.count += 1
            row = self.references.row(object_id)
            if row is None:
                row = self.references.borrow(object_id, owner)
                if owner == self.owner_address:
                    # Ours, but it went out of scope before it came back: reading it says so.
                    row.owner, row.registered = owner, True
            row.local += 1
            if row.owner is not None:
                self.getter.arrivals.note(object_id, owner)
            return ObjectRef(object_id, self)

    def keep(self, ref: ObjectRef[Any]) -> None:
        """Until this process leaves: it was pickled where it cannot be counted. Not an actor's handle: no pickle keeps an actor alive."""
        with self.lock:
            if ref._id not in self._submission.actors:
                self._kept[ref._id] = ref

    def _out_of_scope(self, object_id: bytes, row: Reference) -> None:
        entry = self.memory_store.remove(object_id)
        self.store.out_of_scope(object_id)
        if row.owner is None:
            if entry is None:
                self.streams.handle_ended(object_id)
            elif entry.locations:
                self.free_in_stores(object_id, entry.locations)
            elif entry.metadata == serialization.ERROR and not entry.is_seen:
                self.unhandled.note(object_id, entry.data)
        elif row.removal_waiters:
            for answer in row.removal_waiters:
                answer()
        self._submission.reference_ended(object_id)

    def _is_referenced(self, object_id: bytes) -> bool:
        return self.references.get(object_id) is not None

    def free_in_stores(self, object_id: bytes, node_ids: list[bytes]) -> None:
        self._freed.append((object_id, node_ids))
        self.reactor.wake()

    def reference_counts(self) -> int:
        """Rows in the table of references, after what was dropped was counted."""
        with self.lock:
            self.drain()
            return len(self.references)

    # ---- objects

    def put(self, value: Any) -> ObjectRef[Any]:
        """Stores a value, frozen as it is now. Raises TypeError for what does not pickle and ObjectStoreFullError."""
        serialized = serialization.serialize(value, "the value of put()")
        return self.put_serialized(serialized)

    def put_serialized(self, serialized: serialization.Serialized) -> ObjectRef[Any]:
        return putter.put(self, serialized)

    def check_connected(self) -> None:
        """Raises RaySystemError where this process has left."""
        if self.reactor.is_closed:
            raise RaySystemError("this process is disconnected from its cluster: call ray_mono.init() again")

    def check_session(self, refs: Iterable[ObjectRef[Any]]) -> None:
        """Raises RaySystemError for references of another session, in which other objects may have had the same ids."""
        for ref in refs:
            if ref._core is not self:
                raise RaySystemError(f"{ref!r} belongs to a session that is over")

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values, in order. Raises the first error value, GetTimeoutError, ObjectLostError."""
        self.check_session(refs)
        return self.getter.get(refs, timeout_s)

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """(ready, not ready), each in the order of `refs`; at most num_returns ready ones."""
        self.check_session(refs)
        return self.waits.wait(refs, num_returns, timeout_s, fetch_local)

    def blocking_wait(self, waiter: Waiter, timeout_s: float | None) -> bool:
        """Waits in user code's name: a worker tells its raylet that its CPUs are free meanwhile."""
        return self.getter.blocking_wait(waiter, timeout_s)

    def as_future(self, ref: ObjectRef[Any]) -> Any:
        return self.futures.of(ref)

    # ---- tasks and actors

    def export(self, function_or_class: Any, kind: str) -> Exported:
        return self.functions.export(function_or_class, kind)

    def task_template(self, code: Exported, options: TaskOptions) -> TaskTemplate:
        return self._submission.task_template(code, options)

    def submit_task(self, template: TaskTemplate, flat_args: list[Any]) -> list[ObjectRef[Any]]:
        return self._submission.submit_task(template, flat_args)

    def create_actor(self, code: Exported, options: ActorOptions, flat_args: list[Any]) -> ActorState:
        return self._submission.create_actor(code, options, flat_args)

    def actor_method_template(self, method_name: str, class_name: str, **options: Any) -> MethodTemplate:
        return MethodTemplate(method_name, class_name, **options)

    def submit_actor_task(
        self, actor: ActorState, template: MethodTemplate, flat_args: list[Any]
    ) -> list[ObjectRef[Any]]:
        return self._submission.submit_actor_task(actor, template, flat_args)

    def actor_state(
        self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules
    ) -> ActorState:
        return self._submission.actor_state(actor_id, creation_ref, rules)

    def creation_done(self, object_id: bytes, metadata: bytes, data: bytes) -> None:
        """An actor that is owned here is alive or dead: its creation object gets its value. Lock held."""
        if object_id in self.references:
            entry = self.memory_store.get(object_id)
            if entry is None or not entry.ready or metadata == serialization.ERROR:
                self.memory_store.put_inline(object_id, metadata, data)
            if metadata == serialization.ERROR:
                self.references.drop_nested(object_id)  # its arguments: it starts no more

    def get_named_actor(self, name: str, namespace: str) -> common_pb2.ActorInfo:
        """Raises ValueError where there is none, RpcError where the GCS does not answer."""
        request = gcs_pb2.GetNamedActorRequest(name=name, namespace=namespace)
        with self.lock:
            self.drain()  # handles that went before: the GCS hears of them first
        try:
            return self.gcs.GetNamedActor(request, timeout_s=GCS_TIMEOUT_S)
        except RpcError as error:
            if error.code is not StatusCode.NOT_FOUND:
                raise
            raise ValueError(error.message) from None

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        request = gcs_pb2.KillActorRequest(actor_id=actor_id, force=True, no_restart=no_restart)
        self.gcs.KillActor(request, timeout_s=GCS_TIMEOUT_S)
        with self.lock:
            self.actor_submitter.killed(actor_id)

    def warn_driver(self, kind: str, message: str) -> None:
        """Has the driver of this process's job show a message."""
        error = common_pb2.ErrorInfo(job_id=self.job_id, type=kind, message=utf8(message), time_s=time.time())
        told = gcs_pb2.PubMessage(channel=gcs_pb2.ERROR, key=self.job_id, payload=error.SerializeToString())
        self.gcs.Publish.notify(gcs_pb2.PublishRequest(message=told))

    def run_function_on_all_workers(self, function: Callable[[dict[str, Any]], None]) -> None:
        self.worker_runs.export(function)

    # ---- for people

    def describe(self) -> dict[str, Any]:
        """What DumpState tells."""
        return {
            "worker_id": self.worker_id.hex(),
            "pid": self.pid,
            "job_id": self.job_id.hex(),
            "references": len(self.references),
            "values": len(self.memory_store),
            "tasks_pending": [task.name for task in list(self.tasks.pending.values())[:100]],
            "scheduling": self.task_submitter.describe(),
            "actors": {
                actor_id.hex(): {
                    "queued": len(actor.queue),
                    "in_flight": len(actor.in_flight),
                    "why": actor.pending_reason,
                }
                for actor_id, actor in self.actor_submitter.actors.items()
            },
        }

    def shutdown(self) -> None:
        """Leaves: every wait in this process ends, every connection closes. A Ctrl-C shortens it, and is raised at its end."""
        if self.is_leaving:
            return
        self.is_leaving = True
        interrupt = run_steps(self.on_shutdown, "leaving the cluster")
        with self.lock:
            self.drain()
            self.reactor.flush()
            self.server.close()
            for channel in [*[peer.channel for peer in self._peers.values()], *self._owned_channels]:
                channel.close("this process disconnected")
        self.reactor.close()
        self.futures.close()
        with self.lock:
            self.streams.close()
            self._kept.clear()
        if interrupt is not None:
            raise interrupt

    def abandon(self) -> None:
        """In a fork: forgets everything without a word to anybody. The sockets and the lock are the parent's."""
        self.is_leaving = True
        self.reactor.abandon()
        self.lock = self.reactor.lock

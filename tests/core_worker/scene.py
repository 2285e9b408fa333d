"""One core worker without sockets: the real one with all its parts, time that passes when a test says so, and
a wire that keeps what it says.

    scene = Scene()
    ref = scene.submit()                            # a task
    asked = scene.wire.last("RequestWorkerLease")   # what it said to its raylet
    asked.answer(grant(scene.worker))               # what its raylet says to that
    push = scene.wire.last("PushTask")
    push.answer(value(1))
    assert scene.core.get([ref], None) == [1]

Nothing happens by itself: answers come when a test gives them, timers fire by `scene.pass_time`, what
finalizers left is drained by `scene.turn`. A wait that nothing could end is an error, not a hang. The parts
are as in production; a test speaks to them by what they say, and by the core's interface.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_mono.common import ids
from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind, WorkerContext
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.process import current
from ray_mono.core_worker.process.servicer import CoreWorkerServicer
from ray_mono.core_worker.task_execution.execution import Execution, ExecutionParts
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_wire import SHORT_MAX, PushReader, shared_answers, usual_answer
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, object_manager_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene_time import SceneReactor, WouldHang

JOB_ID = b"job1"
NODE_ID = b"n" * 28
ELSEWHERE = b"e" * 28
"""Another node."""
STORE_BYTES = 1 << 20
LOST = RpcError(StatusCode.UNAVAILABLE, "the connection is lost")
Reply = core_worker_pb2.PushTaskReply


# ---- the wire


@dataclass
class Said:
    """One call that the core worker made, as its message was then."""

    to: str
    """The channel's address."""
    method: str
    request: Any
    done: Callable[[Any, RpcError | None], None] | None = None
    on_part: Callable[[Any], None] | None = None
    """Of a stream: takes its items."""
    is_answered: bool = False
    is_notice: bool = False
    on_bytes: Callable[[bytes | None, RpcError | None], None] | None = None
    """Of a method of bytes: `done`, with the answer as the peer wrote it."""

    def answer(self, reply: Any) -> None:
        assert self.done is not None and not self.is_answered, self
        self._take_done()(reply, None)

    def answer_bytes(self, payload: bytes) -> None:
        assert self.on_bytes is not None and not self.is_answered, self
        self._take_done()
        self.on_bytes(payload, None)

    def fail(self, error: RpcError = LOST) -> None:
        assert self.done is not None and not self.is_answered, self
        self._take_done()(None, error)

    def _take_done(self) -> Callable[[Any, RpcError | None], None]:
        """As a channel does: an answer's callback may hold what it was given."""
        done, self.done, self.is_answered = self.done, None, True
        assert done is not None
        return done

    def part(self, reply: Any) -> None:
        """An early part of the answer; an item of a stream."""
        assert self.on_part is not None, self
        self.on_part(reply)


class Wire:
    """Everything that the core worker said, in order."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.channels: dict[str, SceneChannel] = {}
        self.heard: Callable[[Said], None] = lambda said: None
        """Called with each, as it is said."""
        # By method: answers calls that block, and those started ones that a test does not want to answer
        # itself.
        self.replies: dict[str, Callable[[Any], Any]] = {}
        self.gone: set[str] = set()
        """Addresses at which nobody listens any more."""

    def all(self, method: str, to: str | None = None) -> list[Said]:
        return [each for each in self.said if each.method == method and to in (None, each.to)]

    def open(self, method: str, to: str | None = None) -> list[Said]:
        """Those that wait for an answer."""
        return [each for each in self.all(method, to) if each.done is not None and not each.is_answered]

    def last(self, method: str, to: str | None = None) -> Said:
        found = self.all(method, to)
        assert found, f"{method} was not said, but {[each.method for each in self.said]}"
        return found[-1]

    def end(self, address: str) -> None:
        """The process that listens there ends."""
        self.gone.add(address)
        self.channels[address].close()

    def connect(self, address: str) -> SceneChannel:
        if address not in self.channels or self.channels[address].is_closed:
            self.channels[address] = SceneChannel(self, address)
            self.channels[address].is_closed = address in self.gone
        return self.channels[address]


def tells_of_first_head(said: Said) -> None:
    """Wire.heard, where the raylet is registered at the head of "unix:/gcs"."""
    if said.method == "AwaitHead" and not said.request.after_head_number:
        said.answer(common_pb2.HeadPlace(address="unix:/gcs", head_number=1))


class SceneChannel:
    """A connection. Closed by `close`, as by the end of its peer."""

    def __init__(self, wire: Wire, address: str) -> None:
        self.wire = wire
        self.address = address
        self.is_closed = False
        self.trouble, self.is_connecting = "", False
        self.flushed: list[Said] = []
        """What has left at once, and does not wait for the end of the turn."""
        self._on_close: list[Callable[[str], None]] = []

    def unary_unary(self, path: str, request_serializer: Any, response_deserializer: Any) -> SceneMethod:
        """A method of bytes is one that the core worker writes and reads by hand: tests see messages."""
        name = path.rpartition("/")[2]
        if request_serializer is not bytes:
            return SceneMethod(self, name)
        if name == "PushTasks":
            read, write = core_worker_pb2.PushTasksRequest, core_worker_pb2.PushTasksReply
            return SceneMethod(self, name, read.FromString, write.SerializeToString)
        assert name == "PushTask"
        return SceneMethod(self, name, core_worker_pb2.PushTaskRequest.FromString, as_answered)

    unary_stream = unary_unary

    def on_close(self, callback: Callable[[str], None]) -> None:
        if self.is_closed:
            callback("closed")
        else:
            self._on_close.append(callback)

    def flush(self) -> None:
        self.flushed = [each for each in self.wire.said if each.to == self.address]

    def close(self, reason: str = "lost") -> None:
        """What is not answered fails; then who asked hears of the end."""
        if self.is_closed:
            return
        self.is_closed = True
        for said in [each for each in self.wire.said if each.to == self.address]:
            if said.done is not None and not said.is_answered:
                said.fail()
        for callback in self._on_close:
            callback(reason)


class SceneMethod:
    def __init__(
        self,
        channel: SceneChannel,
        name: str,
        decode: Any = None,
        encode: Callable[[Any], bytes] | None = None,
    ) -> None:
        self._channel = channel
        self._name = name
        self._decode = decode
        self._encode = encode

    def __call__(self, request: Any, timeout_s: float | None = None) -> Any:
        """A call that blocks: answered by `Wire.replies`."""
        self._say(request)
        if self._channel.is_closed:
            raise LOST
        reply = self._channel.wire.replies.get(self._name)
        if reply is None:
            raise WouldHang(self._name)
        return reply(request)

    def start(self, request: Any, on_done: Any, on_part: Any = None) -> Callable[[], None]:
        """Of a stream: on_done takes the items, on_part the end; they are told apart by what calls them
        (Said.part, Said.fail)."""
        if self._encode is not None:
            done, part, encode = on_done, on_part, self._encode
            on_done = lambda reply, error: done(None if reply is None else encode(reply), error)  # noqa: E731
            on_part = None if part is None else lambda reply: part(reply.SerializeToString())  # noqa: E731
        said = self._say(request, on_done, on_part)
        said.on_bytes = done if self._encode is not None else None
        if self._name in STREAMS:
            said.done, said.on_part = (lambda reply, error: on_part(error)), on_done
        if self._channel.is_closed:
            said.fail()
        elif (reply := self._channel.wire.replies.get(self._name)) is not None:
            try:
                answer = reply(request)
            except RpcError as error:
                said.fail(error)
            else:
                said.answer(answer)
        return lambda: None

    def notify(self, request: Any) -> None:
        if not self._channel.is_closed:
            self._say(request).is_notice = True

    def _say(self, request: Any, done: Any = None, on_part: Any = None) -> Said:
        decode = self._decode or (lambda message: type(message).FromString(message.SerializeToString()))
        copy = decode(request)
        said = Said(self._channel.address, self._name, copy, done, on_part)
        self._channel.wire.said.append(said)
        self._channel.wire.heard(said)
        return said


STREAMS = {"WatchReclaims", "WatchPressure", "Subscribe"}


class SceneServer:
    """A ReactorServer without sockets."""

    has_unsent = False

    def close(self) -> None: ...


@dataclass(eq=False)
class Connection:
    """A peer's connection to this core worker, and what it was answered."""

    state: dict[Any, Any] = field(default_factory=dict)
    is_closed: bool = False
    closers: list[Callable[[str], None]] = field(default_factory=list)
    has_unsent: bool = False
    drains_s: list[float] = field(default_factory=list)
    """How long was waited for a peer that does not read."""

    def drain(self, timeout_s: float) -> bool:
        self.drains_s.append(timeout_s)
        return not self.has_unsent

    def on_close(self, callback: Callable[[str], None]) -> None:
        self.closers.append(callback)

    def close(self, reason: str = "lost") -> None:
        self.is_closed = True
        for callback in self.closers:
            callback(reason)


@dataclass
class Served:
    """One request that this core worker was asked: a ServerCall."""

    connection: Connection = field(default_factory=Connection)
    replies: list[Any] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)

    def reply(self, message: Any, rings: bool = True) -> None:
        self.replies.append(message)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        self.replies.append(core_worker_pb2.PushTaskReply.FromString(payload))

    def send_bytes(self, payload: bytes) -> None:
        self.reply_bytes(payload)

    def part(self, message: Any, rings: bool = False) -> None:
        self.parts.append(message)

    @property
    def answer(self) -> Any:
        """The one answer."""
        (reply,) = self.replies
        return reply


# ---- the scene


def address_of(worker_id: bytes, node_id: bytes = NODE_ID) -> common_pb2.Address:
    """Of a core worker, whose channel is "unix:" + its id in the scene, or "id:1" on another node."""
    name = worker_id.decode("latin-1").strip("\0")
    return common_pb2.Address(worker_id=worker_id, node_id=node_id, unix_path=name, host=name, port=1)


OWNER = address_of(b"owner")
"""Another core worker, of this node: at "unix:owner"."""


class Scene:
    """A core worker of a driver, or of a worker (`is_driver=False`), and its world."""

    def __init__(self, is_driver: bool = True, store_file: Path | str | None = None, **limits: Any) -> None:
        """limits: fields of CoreWorkerConfig. store_file: the memory of the node's store, STORE_BYTES of it,
        for large values."""
        self.reactor = SceneReactor()
        self.wire = Wire()
        self.worker_death = gcs_pb2.GetWorkerDeathReply(is_known=True)
        """What the GCS says of the end of an owner."""
        self.wire.replies["GetWorkerDeath"] = lambda request: self.worker_death
        self.wire.replies["ConnectClient"] = lambda request: object_manager_pb2.ConnectClientReply(
            node_id=NODE_ID, store_file=str(store_file or ""), capacity_bytes=STORE_BYTES
        )
        self.store_file = None if store_file is None else Path(store_file)
        self._num_stored_bytes = 0
        if self.store_file is not None and not self.store_file.exists():
            self.store_file.write_bytes(bytes(STORE_BYTES))
        self.address = address_of(b"me")
        self.worker = address_of(b"worker")
        """A worker of this node, to be leased."""
        self.config = replace(CoreWorkerConfig(), **limits)
        self.env = Environment(
            config=self.config,
            reactor=self.reactor,
            clock=self.reactor,
            rng=random.Random(1),
            address=self.address,
            node=common_pb2.NodeInfo(node_id=NODE_ID, host="here"),
            gcs=GcsServiceStub(self.wire.connect("gcs")),  # type: ignore[arg-type]
            raylet=RayletServiceStub(self.wire.connect("raylet")),  # type: ignore[arg-type]
            session_dir="/session",
            is_driver=is_driver,
            pid=1,
        )
        main = TaskContext(ids.TaskID.for_driver(JOB_ID).binary(), TaskKind(JOB_ID))
        self.context = WorkerContext(main, JobContext(JOB_ID, "namespace"))
        self.core = CoreWorker(
            self.env,
            self.context,
            self.wire.connect,  # type: ignore[arg-type]
            self.wire.connect("store"),  # type: ignore[arg-type]
            SceneServer(),  # type: ignore[arg-type]
            [],
        )
        self.servicer = CoreWorkerServicer(not is_driver)
        self.servicer.serve(self.core)
        self.execution: Execution | None = None
        if not is_driver:
            self.running = Running()
            self.bound: list[Any] = []
            self.bind: Callable[[Any], None] = self.bound.append
            self.board = StartBoard(b"w" * 28)
            self.execution = self.core.execute(self._make_execution)
            self.servicer.execute(self.execution)

    def _make_execution(self, parts: ExecutionParts) -> Execution:
        self.parts = parts
        """Of a worker: what running tasks uses of it."""
        return Execution(parts, self.running, lambda spec: self.bind(spec), self.board)

    # ---- time

    def turn(self) -> None:
        self.reactor.turn()

    def pass_time(self, seconds: float) -> None:
        self.reactor.fire(self.reactor.now_s + seconds)

    def meanwhile(self, happens: Callable[[], None]) -> None:
        """While the core worker waits next."""
        self.reactor.meanwhile.append(happens)

    # ---- as a caller

    def template(self, name: str = "f", **options: Any) -> Any:
        """Of a remote function."""
        python = common_pb2.PythonFunctionDescriptor(
            module_name="m", function_name=name, function_hash=name.encode()
        )
        code = Exported(common_pb2.FunctionDescriptor(python=python))
        return self.core.task_template(code, TaskOptions(name=name, **options))

    def submit(self, *args: Any, name: str = "f", **options: Any) -> ObjectRef[Any]:
        """A task with these arguments; its one return."""
        flat = [each for value in args for each in (None, value)]
        (ref,) = self.core.submit_task(self.template(name, **options), flat)
        return ref  # type: ignore[no-any-return]

    def grant(self, worker: common_pb2.Address | None = None, **fields: Any) -> Said:
        """Answers the oldest open lease request with a worker. Returns the request."""
        asked = self.wire.open("RequestWorkerLease")[0]
        asked.answer(grant(worker or self.worker, lease_id=asked.request.lease_id, **fields))
        return asked

    def state_of(self, ref: ObjectRef[Any]) -> Any:
        """What `get` would find: the value, the error as an exception, or None while there is none."""
        try:
            return self.core.get([ref], 0)[0]
        except Exception as error:
            return error

    def finish(self, ref: ObjectRef[Any], reply: Any) -> None:
        """The task whose value this is gets a worker of its own, if it has none, which answers so."""
        task_id = ref.task_id().binary()
        self.turn()
        while not (
            pushed := [each for each in self.wire.open("PushTask") if each.request.task_id == task_id]
        ):
            number = len(self.wire.all("RequestWorkerLease")) - len(self.wire.open("RequestWorkerLease"))
            self.grant(address_of(b"worker %d" % number))
        with self.env.lock:
            pushed[0].answer(reply)
        self.turn()

    @contextlib.contextmanager
    def as_this_process(self) -> Iterator[None]:
        """References that are unpickled here are this core worker's."""
        before = current.core
        current.set(self.core)
        try:
            yield
        finally:
            current.set(before)

    # ---- objects

    def borrow(self, object_id: bytes, owner: common_pb2.Address | None = None) -> ObjectRef[Any]:
        """A reference arrives from elsewhere. owner: None for OWNER."""
        return self.core.reference_arrived(object_id, (owner or OWNER).SerializeToString(deterministic=True))

    def owner_answers(self, ref: ObjectRef[Any], reply: Any) -> None:
        """To the open question what this is worth."""
        asked = [each for each in self.wire.open("GetObjectStatus") if each.request.object_id == ref.binary()]
        with self.env.lock:
            asked[0].answer(reply)

    def lay(self, object_id: bytes, value: Any, **fields: Any) -> object_manager_pb2.ObjectFound:
        """A value into the memory of the node's store, as what a Get would find."""
        assert self.store_file is not None
        serialized = serialization.serialize(value)
        with open(self.store_file, "r+b") as file:
            file.seek(self._num_stored_bytes)
            file.write(serialized.to_bytes())
        offset, self._num_stored_bytes = (
            self._num_stored_bytes,
            self._num_stored_bytes + serialized.size_bytes,
        )
        return object_manager_pb2.ObjectFound(
            object_id=object_id,
            offset=offset,
            size_bytes=serialized.size_bytes,
            metadata=serialized.metadata,
            **fields,
        )

    # ---- as a peer of others

    def ask(self, method: str, request: Any, connection: Connection | None = None) -> Served:
        """Somebody asks this core worker: a method of protobuf/core_worker.proto."""
        call = Served(connection or Connection())
        with self.env.lock:
            getattr(self.servicer, method)(request, call)
        self.turn()
        return call

    # ---- as a worker

    def push(
        self,
        spec: common_pb2.TaskSpec,
        task_id: bytes,
        connection: Connection | None = None,
        number: int = 1,
        **fields: Any,
    ) -> Served:
        """Somebody pushes a task to this worker; number: its template's, of which the specification goes with
        the first call."""
        assert self.execution is not None
        call = Served(connection or Connection())
        request = core_worker_pb2.PushTaskRequest(template_id=number, task_id=task_id, **fields)
        if number not in call.connection.state:
            request.spec.CopyFrom(spec)
        with self.env.lock:
            self.execution.receiver.PushTask(as_read(request), call)  # type: ignore[arg-type]
        return call


# ---- what others say


def grant(worker: common_pb2.Address, **fields: Any) -> raylet_pb2.RequestWorkerLeaseReply:
    return raylet_pb2.RequestWorkerLeaseReply(grant=raylet_pb2.Grant(worker=worker, **fields))


def rejection(kind: int, message: str = "") -> raylet_pb2.RequestWorkerLeaseReply:
    return raylet_pb2.RequestWorkerLeaseReply(
        rejection=raylet_pb2.Rejection(kind=kind, message=message)  # type: ignore[arg-type]
    )


def value(of: Any, **fields: Any) -> core_worker_pb2.PushTaskReply:
    """A task's answer: its small value."""
    serialized = serialization.serialize(of)
    return Reply(
        plain=serialized.to_bytes(),
        **fields,
    )


def as_read(request: core_worker_pb2.PushTaskRequest) -> Any:
    """A push as its receiver has it, however it was written."""
    return PushReader.FromString(request.SerializeToString())


def values(first: int, *of: Any, run_us: int = 0) -> core_worker_pb2.PushTasksReply:
    """Answers of tasks that travelled together, from this one on: their small values."""
    plains = [serialization.serialize(each).to_bytes() for each in of]
    return shared_answers(first, plains, run_us)


def as_answered(reply: core_worker_pb2.PushTaskReply) -> bytes:
    """As a worker sends it (TaskReplies)."""
    usual = core_worker_pb2.PushTaskReply(plain=reply.plain, run_us=reply.run_us)
    if reply == usual and reply.HasField("plain") and len(reply.plain) <= SHORT_MAX:
        return usual_answer(reply.run_us, reply.plain)
    return reply.SerializeToString()


def failure(error: BaseException, object_id: bytes = b"", **fields: Any) -> core_worker_pb2.PushTaskReply:
    """A task's answer: its function raised `error`."""
    serialized = serialization.serialize_error(error)
    message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
    returned = core_worker_pb2.ReturnObject(object_id=object_id, value=message)
    return Reply(is_application_error=True, returns=[returned], **fields)


def in_store(
    object_id: bytes, node_id: bytes = NODE_ID, size_bytes: int = 10**6
) -> core_worker_pb2.PushTaskReply:
    """A task's answer: its value lies in a store."""
    returned = core_worker_pb2.ReturnObject(
        object_id=object_id, in_plasma=True, node_id=node_id, size_bytes=size_bytes
    )
    return Reply(returns=[returned])


def nodes(*dead: bytes, alive: Sequence[bytes] = (NODE_ID,)) -> gcs_pb2.GetAllNodesReply:
    """The GCS's answer: which nodes there are."""
    rows = [common_pb2.NodeInfo(node_id=node_id, state=common_pb2.NODE_ALIVE) for node_id in alive]
    rows += [common_pb2.NodeInfo(node_id=node_id, state=common_pb2.NODE_DEAD) for node_id in dead]
    return gcs_pb2.GetAllNodesReply(nodes=rows)


def references_inside(value: serialization.Serialized) -> list[common_pb2.ObjectReference]:
    """As messages bring them: OWNER's."""
    return [common_pb2.ObjectReference(object_id=ref.binary(), owner=OWNER) for ref in value.nested]


def status(of: Any) -> core_worker_pb2.GetObjectStatusReply:
    """An owner's answer: the small value, or an exception as the error that it is."""
    is_error = isinstance(of, BaseException)
    serialized = serialization.serialize_error(of) if is_error else serialization.serialize(of)
    message = common_pb2.SerializedObject(
        metadata=serialized.metadata, data=serialized.to_bytes(), nested=references_inside(serialized)
    )
    return core_worker_pb2.GetObjectStatusReply(value=message)


def status_in_stores(*node_ids: bytes) -> core_worker_pb2.GetObjectStatusReply:
    """An owner's answer: in the stores of these nodes."""
    return core_worker_pb2.GetObjectStatusReply(in_plasma=True, location_node_ids=node_ids, size_bytes=10**6)

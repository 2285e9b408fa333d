"""One actor as its caller meets it, played: the GCS that knows where it lives, its processes, and the connections to them.

Nothing happens by itself. What a caller sends waits in a Line until the process runs it; answers wait until they are delivered; news of
the actor waits until the GCS tells it; timers wait until they fire. So every order that real sockets allow can be had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray_mono.common.exceptions import RayTaskError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.core_worker.task_submission.task_manager import CANCELLED, DONE, PendingTask, TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

ACTOR_ID = b"a" * 16
CREATION_ID = b"c" * 28
LOST = RpcError(StatusCode.UNAVAILABLE, "the connection is lost")

OnDone = Callable[[Any, RpcError | None], None]


class BrokenRule(Exception):
    """What was promised about calls does not hold."""


@dataclass
class Process:
    """One incarnation of the actor."""

    worker_id: bytes
    is_alive: bool = True

    @property
    def address(self) -> common_pb2.Address:
        return common_pb2.Address(worker_id=self.worker_id)


@dataclass
class Sent:
    """A call on its way."""

    task_id: bytes
    attempt: int
    on_done: OnDone
    is_cancelled: bool = False


class Line:
    """A connection to a process: Peer, channel and stub in one."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.channel = self.stub = self
        self.CancelTask = SimpleNamespace(start=self._cancel)
        self.is_closed = not process.is_alive
        self.to_run: deque[Sent] = deque()
        self.answers: deque[tuple[Sent, Any]] = deque()
        self._next_number = 0
        self._last_task = b""
        self._close_callbacks: list[Callable[[str], None]] = []

    def push(self, template: CallTemplate, request: Any, on_done: OnDone) -> None:
        if self.is_closed:
            on_done(None, LOST)
            return
        if request.sequence_number == 0:
            # The caller begins anew: with what it was not answered before.
            self._next_number, self._last_task = 0, b""
        if request.sequence_number != self._next_number or request.task_id <= self._last_task:
            raise BrokenRule(f"call {request} after {self._next_number} calls, the last {self._last_task!r}")
        self._next_number += 1
        self._last_task = request.task_id
        self.to_run.append(Sent(request.task_id, request.attempt, on_done))

    def on_close(self, callback: Callable[[str], None]) -> None:
        if self.is_closed:
            callback("closed")
        else:
            self._close_callbacks.append(callback)

    def _cancel(self, request: Any, on_done: OnDone) -> None:
        for sent in self.to_run:
            sent.is_cancelled |= sent.task_id == request.task_id

    def deliver(self) -> None:
        sent, reply = self.answers.popleft()
        sent.on_done(reply, None)

    def end(self) -> None:
        """What was not delivered is lost."""
        self.is_closed = True
        waiting = [*(sent for sent, _ in self.answers), *self.to_run]
        self.answers.clear()
        self.to_run.clear()
        for sent in waiting:
            sent.on_done(None, LOST)
        for callback in self._close_callbacks:
            callback("lost")


@dataclass
class Gcs:
    """The row of the actor, and the caller's open watch."""

    state: int = common_pb2.PENDING_CREATION
    version: int = 1
    process: Process | None = None
    watch: tuple[int, OnDone] | None = None
    made: int = 0

    def change(self, state: int, process: Process | None) -> None:
        self.state, self.process = state, process
        self.version += 1

    def start_actor(self) -> Process:
        self.made += 1
        self.change(common_pb2.ALIVE, Process(b"worker %d" % self.made))
        assert self.process is not None
        return self.process

    def open_watch(self, request: Any, on_done: OnDone) -> None:
        if self.watch is not None:
            raise BrokenRule("two watches of one actor at once")
        self.watch = (request.after_version, on_done)

    @property
    def has_news(self) -> bool:
        return self.watch is not None and self.version > self.watch[0]

    def answer(self, error: RpcError | None = None) -> None:
        assert self.watch is not None
        (_, on_done), self.watch = self.watch, None
        info = common_pb2.ActorInfo(actor_id=ACTOR_ID, state=self.state, version=self.version)
        if self.process is not None:
            info.address.CopyFrom(self.process.address)
        on_done(None if error else info, error)


@dataclass
class Call:
    """One call as the test knows it."""

    task: PendingTask
    max_retries: int
    argument: bytes | None
    runs: int = 0
    is_cancelled: bool = False
    has_failed_argument: bool = False
    outcome: tuple[bytes, bytes | None] | None = None
    """Metadata and data of its value, once there is one."""


@dataclass
class CalledActor:
    """The actor, its world, and a real ActorSubmitter, TaskManager, Cancellation and tables that call it."""

    gcs: Gcs = field(default_factory=Gcs)
    lines: list[Line] = field(default_factory=list)
    timers: list[Callable[[], None]] = field(default_factory=list)
    probes: list[tuple[Line, OnDone]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory_store = MemoryStore()
        self.references = ReferenceCounter(self._out_of_scope)
        self.warnings: list[str] = []
        core: Any = SimpleNamespace(
            references=self.references,
            memory_store=self.memory_store,
            ownership=SimpleNamespace(
                ask_owner=lambda object_id: None, references_inside=lambda object_id: []
            ),
            reactor=SimpleNamespace(
                is_closed=False, call_later=lambda delay_s, then: self.timers.append(then)
            ),
            pid=1,
            node=SimpleNamespace(host="host"),
            warn_driver=lambda kind, message: self.warnings.append(message),
            gcs=SimpleNamespace(WatchActor=SimpleNamespace(start=self.gcs.open_watch)),
            peer=self._line_to,
            stub_for=self._stub_for,
            creation_done=lambda object_id, metadata, data: None,
        )
        core.tasks = self.tasks = TaskManager(core)
        core.actor_submitter = self.submitter = ActorTaskSubmitter(core)
        self.cancellation = TaskCanceller(core)
        self.actor = self.submitter.actor(ACTOR_ID)
        self.actor.creation_id = CREATION_ID
        self.references.add_owned(CREATION_ID)
        spec = common_pb2.TaskSpec(type=common_pb2.ACTOR_TASK, name="method", num_returns=1)
        spec.actor_task.actor_id = ACTOR_ID
        self.template = CallTemplate(spec, 1)

    def _out_of_scope(self, object_id: bytes, reference: Reference) -> None:
        self.memory_store.remove(object_id)

    def _line_to(self, address: common_pb2.Address) -> Line:
        for line in self.lines:
            if line.process.worker_id == address.worker_id and not line.is_closed:
                return line
        processes = [line.process for line in self.lines] + ([self.gcs.process] if self.gcs.process else [])
        known = [process for process in processes if process.worker_id == address.worker_id]
        line = Line(known[0] if known else Process(address.worker_id, is_alive=False))
        self.lines.append(line)
        return line

    def _stub_for(self, address: common_pb2.Address) -> Any:
        line = self._line_to(address)
        start = lambda request, on_done: self.probes.append((line, on_done))  # noqa: E731
        return SimpleNamespace(RemoveObjectLocation=SimpleNamespace(start=start))

    # ---- the caller

    def submit(self, max_retries: int, has_argument: bool) -> Call:
        """A call; with an argument it waits for that."""
        number = len(self.calls) + 1
        task_id = number.to_bytes(24, "big")
        argument = b"argument %d" % number if has_argument else None
        args = []
        if argument is not None:
            self.references.add_owned(argument)
            self.memory_store.expect(argument)
            args = [common_pb2.TaskArg(reference=common_pb2.ObjectReference(object_id=argument))]
        held = [CREATION_ID, *([argument] if argument is not None else [])]
        task = PendingTask(task_id, self.template, b"", args, 0, held)
        task.retries_left = max_retries
        self.references.add_submitted(held)
        if argument is not None:
            # Only the call needs it.
            self.references.remove_local(argument)
        (return_id,) = task.return_ids
        self.references.add_owned(return_id)
        self.memory_store.expect(return_id)
        call = Call(task, max_retries, argument)
        self.calls.append(call)
        self.tasks.add(task)
        self.submitter.submit(self.actor, task)
        return call

    def cancel(self, call: Call) -> None:
        call.is_cancelled |= self.cancellation.cancel_own(call.task.task_id, False, False)

    def argument_arrives(self, call: Call) -> None:
        assert call.argument is not None
        self.memory_store.put_inline(call.argument, b"", b"an argument")

    def argument_fails(self, call: Call) -> None:
        assert call.argument is not None
        call.has_failed_argument = True
        error = serialization.serialize_error(RayTaskError("made", "its traceback", ValueError("lost")))
        self.memory_store.put_inline(call.argument, error.metadata, error.to_bytes())

    # ---- the actor

    def run(self, line: Line) -> None:
        """The process takes the next call that arrived on a connection, and answers it."""
        sent = line.to_run.popleft()
        call = self.calls[int.from_bytes(sent.task_id, "big") - 1]
        if sent.is_cancelled:
            line.answers.append((sent, core_worker_pb2.PushTaskReply(status=CANCELLED)))
            return
        call.runs += 1
        if call.runs > call.max_retries + 1 or sent.attempt > call.max_retries:
            raise BrokenRule(
                f"{sent} runs for the {call.runs}. time, and may be retried {call.max_retries} times"
            )
        value = b"%d, run %d" % (int.from_bytes(sent.task_id, "big"), call.runs)
        reply = core_worker_pb2.PushTaskReply(status=DONE, has_inline=True, inline_data=value)
        reply.inline_metadata = serialization.PLAIN
        line.answers.append((sent, reply))

    def die(self, will_restart: bool) -> None:
        """What its process had answered may be delivered still, and its connections end when they end."""
        if self.gcs.process is not None:
            self.gcs.process.is_alive = False
        self.gcs.change(common_pb2.RESTARTING if will_restart else common_pb2.DEAD, None)

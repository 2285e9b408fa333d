"""A worker without a process around it, and what its callers push to it.

    worker = Worker(monkeypatch)
    call = worker.ask(worker.function(lambda x: x + 1), 1)
    worker.run()
    assert call.value == 2

Its main thread is the test's. User code takes no time, but by `worker.busy`.
"""

from __future__ import annotations

import itertools
import os
import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.task_execution import (
    actor_runtime,
    async_group,
    executor,
    interrupter,
    process_title,
    shared_runner,
)
from ray_mono.core_worker.task_execution.execution import Execution
from ray_mono.core_worker.task_wire import plains_of, shared_push
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, object_manager_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import (
    JOB_ID,
    STORE_BYTES,
    Connection,
    Scene,
    SceneReactor,
    Served,
    WouldHang,
    address_of,
    as_read,
)
from tests.waiting import wait_until

WAIT_S = 30.0
CALLER = address_of(b"caller")
OTHER_OWNER = address_of(b"other")
"""Who owns what is no caller's and not the worker's."""
ACTOR_ID = b"a" * 16
Spec = common_pb2.TaskSpec
Reply = core_worker_pb2.PushTaskReply


class Rests(BaseException):
    """Nothing is left to run."""


class DaemonThread(threading.Thread):
    """A CallThread for which the test's process does not wait."""

    def __init__(self, target: Callable[..., None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


LARGE = b"x" * (INLINE_BYTES_MAX + 1)
"""A value that goes into the store."""


class Pushed(Served):
    """One call that was pushed, and what its caller was told."""

    def __init__(self, connection: Connection, reactor: SceneReactor, task_id: bytes) -> None:
        super().__init__(connection)
        self.task_id = task_id
        self.said: list[Any] = []
        """Parts and the reply, in order."""
        self.on_reply: Callable[[], None] = lambda: None
        self.reply_failures: list[BaseException] = []
        """What the next replies raise."""
        self._reactor = reactor
        self._flushes = 0
        self._is_answered = threading.Event()

    def returned_id(self, index: int = 1) -> bytes:
        """Of its return."""
        return self.task_id + index.to_bytes(4, "little")

    def part(self, message: Any, rings: bool = False) -> None:
        assert self._reactor.lock._is_owned()  # type: ignore[attr-defined]
        super().part(message)
        self.said.append(message)

    def part_bytes(self, payload: bytes, rings: bool = False) -> None:
        self.part(core_worker_pb2.PushTaskReply.FromString(payload), rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        self.reply(core_worker_pb2.PushTaskReply.FromString(payload), rings)

    def reply(self, message: Any, rings: bool = True) -> None:
        if self.reply_failures:
            raise self.reply_failures.pop(0)
        assert self._reactor.lock._is_owned()  # type: ignore[attr-defined]
        self.on_reply()
        super().reply(message, rings)
        self.said.append(message)
        self._flushes = self._reactor.num_flushes
        self._is_answered.set()

    def wait(self) -> Any:
        """The answer, which another thread gives, or leaves to whoever leads."""

        def is_answered() -> bool:
            if self._reactor.is_flushed_later:
                self._reactor.turn()
            return self._is_answered.is_set()

        wait_until(is_answered, "the answer", WAIT_S)
        return self.answer

    @property
    def is_flushed(self) -> bool:
        """Whether the answer has left."""
        return bool(self.replies) and self._reactor.num_flushes > self._flushes

    @property
    def status(self) -> int | None:
        """None: no answer yet."""
        return self.answer.status if self.replies else None  # type: ignore[no-any-return]

    @property
    def value(self) -> Any:
        """What it returned; of several the list. An error as what it is."""
        reply = self.wait()
        if reply.HasField("plain"):
            return serialization.deserialize(serialization.PLAIN, reply.plain)
        values = [serialization.deserialize(each.value.metadata, each.value.data) for each in reply.returns]
        return values[0] if len(values) == 1 else values

    @property
    def items(self) -> list[Any]:
        """Those of a generator that were sent."""
        return [
            serialization.deserialize(item.metadata, item.data) for part in self.parts for item in part.items
        ]


class PushedTogether(Served):
    """Calls that were pushed in one frame, and what their caller was told."""

    def __init__(self, connection: Connection, num_calls: int) -> None:
        super().__init__(connection)
        self.task_ids: list[bytes] = []
        self.outcomes: list[Any] = [None] * num_calls
        """Of each its value, its error, or the status of its answer; None while there is none."""
        self.parts_had: list[int] = []
        """How many answers each part had, and the reply."""
        self._is_answered = threading.Event()

    def wait_all(self) -> None:
        """The answers, which other threads give."""
        assert self._is_answered.wait(WAIT_S), "they were not answered"

    def part(self, message: Any, rings: bool = False) -> None:
        super().part(message)
        self._take(message)

    def reply(self, message: Any, rings: bool = True) -> None:
        super().reply(message, rings)
        assert len(self.replies) == 1
        self._take(message)

    def _take(self, answers: Any) -> None:
        found = [serialization.deserialize(serialization.PLAIN, plain) for plain in plains_of(answers)]
        if not found:
            reply = answers.reply
            if reply.status != Reply.DONE:
                one: Any = reply.status
            elif reply.HasField("plain"):
                one = serialization.deserialize(serialization.PLAIN, reply.plain)
            else:
                (returned,) = reply.returns
                one = serialization.deserialize(returned.value.metadata, returned.value.data)
            found = [one] * answers.count
        end = answers.first + len(found)
        assert self.outcomes[answers.first : end] == [None] * len(found), "answered twice"
        self.outcomes[answers.first : end] = found
        self.parts_had.append(len(found))
        if self.replies:
            self._is_answered.set()


class Worker(Scene):
    """A scene of a worker, with user code."""

    def __init__(self, patch: pytest.MonkeyPatch, store_file: Any = "", **limits: Any) -> None:
        """store_file: a file that becomes the store's memory."""
        if store_file:
            store_file.write_bytes(bytes(STORE_BYTES))
        super().__init__(is_driver=False, store_file=str(store_file), **limits)
        self.execution: Execution  # there is one
        self.connection = Connection()
        self.titles: list[str] = []
        self.struck: list[int] = []
        """Signals that the main thread was sent."""
        self.room: int | None = None
        """How many objects the store takes; None: all."""
        self._names = itertools.count(1)
        self._numbers: dict[int, tuple[int, Spec]] = {}
        self._stored_bytes = 0
        self._busy_s = 0.0
        self._ends_at_rest = False
        self.reactor.wait = self._wait  # type: ignore[method-assign]
        self.wire.replies["KvGet"] = code_reply
        self.wire.replies["ReportWorkerDeath"] = lambda request: common_pb2.Empty()
        self.wire.replies["Create"] = self._create
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(process_title, "setproctitle", self.titles.append)
        patch.setattr(interrupter, "strike_main_thread", self.struck.append)
        patch.setattr(shared_runner, "perf_counter", lambda: self._busy_s)
        patch.setattr(executor, "time", SimpleNamespace(perf_counter=lambda: self._busy_s))
        for module in (actor_runtime, async_group):
            patch.setattr(module, "CallThread", DaemonThread)
        _here[:] = [self.core]

    def _create(self, request: Any) -> Any:
        if self.room is not None:
            self.room -= 1
            if self.room < 0:
                raise RpcError(StatusCode.RESOURCE_EXHAUSTED, "full")
        offset, self._stored_bytes = self._stored_bytes, self._stored_bytes + request.size_bytes
        return object_manager_pb2.CreateReply(offset=offset)

    # ---- code

    def function(self, function: Callable[..., Any], name: str = "f", **fields: Any) -> Spec:
        """A task's specification; fields: of it."""
        key = b"%d" % next(self._names)
        CODE[key] = function
        python = common_pb2.PythonFunctionDescriptor(module_name="m", function_name=name, function_hash=key)
        given: dict[str, Any] = {"type": common_pb2.NORMAL_TASK, "num_returns": 1, "caller": CALLER}
        return Spec(
            name=name,
            job_id=JOB_ID,
            function=common_pb2.FunctionDescriptor(python=python),
            **{**given, **fields},
        )

    def method(self, name: str, group: str = "", task_name: str = "", **fields: Any) -> Spec:
        """A call's of the actor."""
        call = common_pb2.ActorTaskSpec(actor_id=ACTOR_ID, concurrency_group=group, task_name=task_name)
        given: dict[str, Any] = {"type": common_pb2.ACTOR_TASK, "num_returns": 1, "caller": CALLER}
        return Spec(name=name, actor_task=call, **{"job_id": JOB_ID, **given, **fields})

    def actor(self, cls: type, *args: Any, groups: Any = (), strategy: Any = None, **creation: Any) -> Pushed:
        """The worker becomes an actor's. creation: of ActorCreationSpec; groups: (name, limit, *methods)."""
        made = common_pb2.ActorCreationSpec(
            actor_id=ACTOR_ID,
            concurrency_groups=[
                common_pb2.ConcurrencyGroup(name=name, max_concurrency=limit, method_names=methods)
                for name, limit, *methods in groups
            ],
            **creation,
        )
        spec = self.function(
            cls,
            f"{cls.__qualname__.rpartition('.')[2]}.__init__",
            type=common_pb2.ACTOR_CREATION_TASK,
            actor_creation=made,
            strategy=strategy,
        )
        call = self.ask(spec, *args)
        self.run()
        return call

    def before_next_call(self, happens: Callable[[], object]) -> None:
        """While the next call is prepared: it is a function that every worker of the job runs first."""
        key = b"run %d" % next(self._names)
        CODE[key] = lambda worker_info: happens()
        with self.env.lock:
            self.core.worker_runs.learn([JOB_ID + key])

    def busy(self, us: int) -> None:
        """User code computes for so long."""
        self._busy_s += us / 1e6

    # ---- calls

    def ask(
        self,
        spec: Spec,
        *args: Any,
        name: bytes = b"",
        connection: Connection | None = None,
        by_reference: Any = (),
        keywords: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Pushed:
        """Somebody pushes a call. args: positional; name: of the task; by_reference: TaskArgs."""
        task_id = (name or b"task %d" % next(self._names)).ljust(24, b".")
        connection = connection or self.connection
        call = Pushed(connection, self.reactor, task_id)
        number, _ = self._numbers.setdefault(id(spec), (len(self._numbers) + 1, spec))
        flat = [each for value in args for each in (None, value)]
        flat += [each for item in (keywords or {}).items() for each in item]
        request = core_worker_pb2.PushTaskRequest(
            template_id=number,
            task_id=task_id,
            flat_args=pickle.dumps(flat) if flat else b"",
            args=by_reference,
            **fields,
        )
        if number not in connection.state:
            request.spec.CopyFrom(spec)
        with self.env.lock:
            self.execution.receiver.PushTask(as_read(request), call)  # type: ignore[arg-type]
        return call

    def ask_all(self, spec: Spec, items: Any, connection: Connection | None = None) -> PushedTogether:
        """Somebody pushes calls in one frame, behind a push that named their template: an item for each."""
        items = list(items)
        call = PushedTogether(connection or self.connection, len(items))
        task_ids = [b"%08d" % next(self._names) + b"." * 16 for _ in items]
        number = self._numbers[id(spec)][0]
        request = core_worker_pb2.PushTasksRequest.FromString(shared_push(number, 1, task_ids, items))
        call.task_ids = task_ids
        with self.env.lock:
            self.execution.receiver.PushTasks(request, call)  # type: ignore[arg-type]
        return call

    def run(self, *meanwhile: Callable[[], None]) -> bool:
        """Runs what is queued. Whether the worker goes on.

        meanwhile: what happens while its tasks wait, one after the other.
        """
        self.execution.receiver.awake()
        self.reactor.meanwhile[:] = meanwhile
        self._ends_at_rest, self.reactor.has_hung = True, False
        try:
            self.execution.executor.run()
        except Rests:
            return True
        finally:
            self._ends_at_rest = False
            if self.reactor.has_hung:
                raise WouldHang("in a task")
        return False

    def _wait(self, waiter: Any, timeout_s: float | None = None) -> bool:
        if not (self._ends_at_rest and self.execution.receiver.is_resting):
            return SceneReactor.wait(self.reactor, waiter, timeout_s)
        self.turn()
        while self.reactor.meanwhile and not waiter.done:
            self.reactor.meanwhile.pop(0)()
            self.turn()
        if not waiter.done and not self.reactor.is_closed:
            raise Rests
        return True

    def idle(self) -> None:
        """Nothing comes for long."""
        self.execution.receiver.awake()
        with pytest.raises(WouldHang):
            self.execution.executor.run()

    def cancel(self, task_id: bytes, **fields: Any) -> bool:
        """On another thread, as what reads the sockets does. Whether the task was found."""
        found: list[bool] = []
        request = core_worker_pb2.CancelTaskRequest(task_id=task_id, **fields)
        cancel = self.execution.interrupter.cancel

        def on_thread() -> None:
            with self.env.lock:
                found.append(cancel(request))

        thread = threading.Thread(target=on_thread)
        thread.start()
        thread.join(WAIT_S)
        return found[0]

    def as_raylet(self) -> BoardOfAnother:
        """The raylet's view of what it runs."""
        return BoardOfAnother(os.getpid(), self.board.fd, b"w" * 28)

    def sealed(self) -> list[bytes]:
        """Objects that the store keeps from now on, though this process may end."""
        return [said.request.object_id for said in self.wire.all("Seal")]

    def given_up(self) -> list[bytes]:
        """Objects whose room the store was given back before they were sealed."""
        return [said.request.object_id for said in self.wire.all("Abort")]

    def deaths(self) -> list[common_pb2.DeathCause]:
        """What the GCS was told of its end."""
        return [said.request.death_cause for said in self.wire.all("ReportWorkerDeath")]


# ---- code and references on their way

CODE: dict[bytes, Any] = {}
_here: list[CoreWorker] = []
"""The worker that was made last."""


class Code:
    """What CODE has by this key, pickled as that, whatever it is."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __reduce__(self) -> Any:
        return code_of, (self._key,)


def code_of(key: bytes) -> Any:
    return CODE[key]


def code_reply(request: Any) -> Any:
    """The GCS's answer to KvGet."""
    return gcs_pb2.KvGetReply(found=True, value=pickle.dumps(Code(request.key.removeprefix(JOB_ID))))


class Made:
    """An argument that is an instance of the class with this key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __reduce__(self) -> Any:
        return make, (self._key,)


def make(key: bytes) -> Any:
    return CODE[key]()


class Arriving:
    """An argument that is, or holds, a reference when it is unpickled in the worker that was made last."""

    def __init__(self, object_id: bytes, owner: common_pb2.Address = CALLER) -> None:
        self._object_id = object_id
        self._owner = owner

    def __reduce__(self) -> Any:
        return arrive, (self._object_id, self._owner.SerializeToString(deterministic=True))


def arrive(object_id: bytes, owner: bytes) -> Any:
    return _here[-1].reference_arrived(object_id, owner)


def referenced(object_id: bytes, position: int = 1, owner: common_pb2.Address = CALLER, **fields: Any) -> Any:
    """An argument by reference, for `by_reference`; its place in the flat list."""
    reference = common_pb2.ObjectReference(object_id=object_id, owner=owner)
    return common_pb2.TaskArg(reference=reference, position=position, **fields)

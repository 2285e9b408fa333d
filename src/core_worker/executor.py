"""Running tasks: the worker's side of PushTask.

The main thread takes tasks from one queue in the order of arrival and runs them itself: normal tasks, and the calls
of a plain actor. For an actor with concurrency it only prepares a call (fetches and unpickles its arguments, in
order) and hands it to the actor's threads or event loop (concurrency.py). While user code runs, the reactor's
background thread answers peers.

    PushTask ──queue──► prepare: job, code, arguments ──► user code ──► returns serialized, references handed over ──► reply

The end of a task is ARCHITECTURE's rules 1 and 2: nested references of returns are registered for the caller,
references that stay here are named or registered, and only then the reply goes out.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

from ray_mono.common.exceptions import RayError
from ray_mono.core_worker.answers import Answers, flush_output
from ray_mono.core_worker.call import Call, Reply
from ray_mono.core_worker.context import TaskContext, resource_ids_of
from ray_mono.core_worker.task_failure import TITLE, argument_error, describe_error
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError

if TYPE_CHECKING:
    from ray_mono.core_worker.actor_runtime import ActorRuntime
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.rpc.reactor_server import ServerCall

logger = logging.getLogger(__name__)

GCS_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 10.0
"""For the last answers of a worker that ends."""
LEAVE_POLL_S = 0.01


class ActorExit(BaseException):
    """Raised by exit_actor(): ends the actor after this call, without an error and without a restart."""


class TaskFailed(Exception):
    """The call has an error for a value; carries it to the reply."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Executor:
    """The queue and the main loop of one worker."""

    def __init__(self, core: CoreWorker, bind_job: Callable[[bytes], None]) -> None:
        self.core = core
        self._bind_job = bind_job
        self._queue: deque[Call | None] = deque()
        self._waiter: Waiter | None = None
        self._num_calls: dict[bytes, int] = {}
        self.answers = Answers(core, self)
        self._exiting = False
        self._label = ""
        self.actor: ActorRuntime | None = None

    # ---- served; lock held

    def PushTask(self, request: Any, call: ServerCall) -> None:
        wanted = request.intended_worker_id
        leaves = self._exiting or (self._queue and self._queue[-1] is None)
        if (wanted and wanted != self.core.worker_id) or leaves:
            call.reply(Reply(status=Reply.WRONG_WORKER))
            return
        number = request.template_id
        if not number:
            spec = request.spec
        elif request.HasField("spec"):
            spec = call.connection.state[number] = request.spec
        else:
            spec = call.connection.state[number]
        self._enqueue(Call(spec, request, call))

    def GiveBackTasks(self, request: Any, call: ServerCall) -> None:
        self._give_back(call.connection)

    def give_back_all(self) -> None:
        """The running task waits for others, perhaps for one that waits here."""
        with self.core.lock:
            self._give_back(None)

    def _give_back(self, connection: Any) -> None:
        """Answers NOT_STARTED to queued normal tasks, of one connection or all."""
        if not self._queue:
            return
        kept: deque[Call | None] = deque()
        for item in self._queue:
            if (
                item is not None
                and item.spec.type == common_pb2.NORMAL_TASK
                and connection in (None, item.to.connection)
            ):
                item.to.reply(Reply(status=Reply.NOT_STARTED))
            else:
                kept.append(item)
        self._queue = kept
        self.core.reactor.wake()

    def is_disposable(self) -> bool:
        """Whether nobody would miss this worker: nothing runs or waits here, and nothing of ours is referenced."""
        core = self.core
        core.drain()
        return self._waiter is not None and not self._queue and not core.tasks.pending and not len(core.references)

    def exit_after_queue(self) -> None:
        """Ends the process once what is queued has run."""
        self._enqueue(None)

    def _enqueue(self, item: Call | None) -> None:
        self._queue.append(item)
        if self._waiter is not None:
            self._waiter.set()

    @property
    def is_exiting(self) -> bool:
        return self._exiting

    # ---- the main thread

    def run(self) -> None:
        """Until the process is told to end."""
        core = self.core
        while not self._exiting and not core.reactor.is_closed:
            with core.lock:
                if self._queue:
                    item = self._queue.popleft()
                    waiter = None
                else:
                    waiter = self._waiter = Waiter(core.reactor)
            if waiter is not None:
                core.reactor.wait(waiter)
                self._waiter = None
                continue
            if item is None:
                break
            self._handle(item)
            item = None
        self._leave()

    def _handle(self, call: Call) -> None:
        spec = call.spec
        if call.request.lease_id:
            self.core.getter.lease_id = call.request.lease_id
        self._bind_job(spec.job_id)
        if spec.type == common_pb2.NORMAL_TASK:
            self.core.getter.task_begins()
        task = self._task_context(call)
        try:
            # Emptied by whoever runs it: arguments must not outlive the call, or their references would count as kept.
            prepared = list(self._prepare(call, task))
        except TaskFailed as failed:
            self.answers.finish_error(call, task, failed.error)
            return
        if self.actor is not None and self.actor.is_concurrent and spec.type == common_pb2.ACTOR_TASK:
            self.actor.dispatch(call, task, prepared)
            return
        self.run_here(call, task, prepared)

    def run_here(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        """Runs the user's function on this thread and answers. prepared: [function, positional, keywords], emptied."""
        target, args, kwargs = prepared
        prepared.clear()
        core = self.core
        token = core.context.enter(task)
        self._show(call.spec)
        try:
            started_s = time.perf_counter()
            value = target(*args, **kwargs)
            task.run_us = int((time.perf_counter() - started_s) * 1e6)
        except ActorExit:
            del args, kwargs
            self.finish_exit()
            return
        except BaseException as error:
            del args, kwargs
            self.answers.finish_error(call, task, describe_error(call.spec, error, self.actor, core))
            return
        finally:
            core.context.leave(token)
        del args, kwargs
        self.answers.finish(call, task, value)

    # ---- preparing

    def _task_context(self, call: Call) -> TaskContext:
        spec, own = call.spec, call.own
        task = TaskContext(
            task_id=own.task_id, job_id=spec.job_id, name=spec.name, depth=own.depth, attempt=own.attempt
        )
        if spec.type == common_pb2.ACTOR_TASK:
            actor = self.actor
            if actor is not None:
                task.actor_id = actor.actor_id
                task.resources = actor.resources
                task.resource_ids = actor.resource_ids
            return task
        task.actor_id = spec.actor_creation.actor_id
        # Made into a ResourceSet by whoever asks.
        task.resources = spec.resources
        if call.request.resource_ids:
            task.resource_ids = resource_ids_of(call.request.resource_ids)
        return task

    def _prepare(self, call: Call, task: TaskContext) -> tuple[Any, list[Any], dict[str, Any]]:
        """The callable and its arguments. Raises TaskFailed."""
        spec = call.spec
        try:
            if spec.type == common_pb2.ACTOR_TASK:
                if self.actor is None:
                    raise RayError("this worker holds no actor")
                target: Any = self.actor.method(spec.name)
            else:
                self.core.getter.arrivals.collect_into(task.arrived)
                try:
                    target = self.core.functions.load(spec.job_id, spec.function)
                finally:
                    self.core.getter.arrivals.collect_into(None)
            if spec.type == common_pb2.ACTOR_CREATION_TASK:
                target = self._creator(spec, task, target)
        except BaseException as error:
            raise TaskFailed(describe_error(spec, error, self.actor, self.core)) from None
        if not call.own.flat_args:
            return target, [], {}
        try:
            args, kwargs = self._arguments(call.own, task)
        except BaseException as error:
            raise TaskFailed(argument_error(spec, error, self.actor, self.core)) from None
        return target, args, kwargs

    def _arguments(self, own: Any, task: TaskContext) -> tuple[list[Any], dict[str, Any]]:
        core = self.core
        core.getter.arrivals.collect_into(task.arrived)
        try:
            flat = pickle.loads(own.flat_args)
            references = []
            for arg in own.args:
                if arg.WhichOneof("arg") == "value":
                    flat[arg.position] = core.getter.read(b"", arg.value.metadata, arg.value.data)
                else:
                    references.append(arg)
            if references:
                values = self._fetch(references, task)
                for arg, value in zip(references, values, strict=True):
                    flat[arg.position] = value
        finally:
            core.getter.arrivals.collect_into(None)
        args = [flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is None]
        if 2 * len(args) == len(flat):
            return args, {}
        return args, {flat[i]: flat[i + 1] for i in range(0, len(flat), 2) if flat[i] is not None}

    def _fetch(self, references: list[Any], task: TaskContext) -> list[Any]:
        """Values of arguments by reference. The caller holds them until our reply, so no owner is told."""
        core = self.core
        with core.lock:
            for arg in references:
                object_id = arg.reference.object_id
                if object_id not in core.references:
                    core.references.borrow(object_id, arg.reference.owner.SerializeToString(deterministic=True))
                if object_id not in task.held:
                    core.references.add_submitted([object_id])
                    task.held.append(object_id)
                if arg.location_node_ids and core.memory_store.get(object_id) is None:
                    core.memory_store.put_in_store(object_id, list(arg.location_node_ids), 0)
        return core.getter.get_ids([arg.reference.object_id for arg in references], None)

    def _creator(self, spec: Any, task: TaskContext, cls: Any) -> Callable[..., None]:
        from ray_mono.core_worker.actor_runtime import ActorRuntime

        def create(*args: Any, **kwargs: Any) -> None:
            # Made before the constructor runs, which may call methods of its own actor's handle.
            runtime = ActorRuntime(self, self.core, spec, task)
            runtime.instance = cls(*args, **kwargs)
            self.actor = runtime

        return create

    # ---- ends

    def finish_exit(self) -> None:
        """exit_actor(): the call is not answered, as in Ray; its caller hears from the GCS that the actor ended, and why.

        The GCS is told first, so that this death is not taken for a crash.
        """
        core = self.core
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.EXITED, message="exit_actor() was called")
        info = common_pb2.WorkerInfo(worker_id=core.worker_id, node_id=core.node_id, pid=core.pid, death_cause=cause)
        try:
            core.gcs.ReportWorkerDeath(info, timeout_s=GCS_TIMEOUT_S)
        except RpcError as error:
            logger.error("the GCS was not told of exit_actor(): %s", error)
        self._exiting = True

    @property
    def has_queued(self) -> bool:
        return bool(self._queue)

    def ends_after(self, spec: Any) -> bool:
        """Whether the worker ends with this answer: it is told to, or this was the last call that max_calls allows."""
        if self._exiting or not spec.max_calls:
            return self._exiting
        digest = spec.function.python.function_hash
        self._num_calls[digest] = self._num_calls.get(digest, 0) + 1
        if self._num_calls[digest] >= spec.max_calls:
            self._exiting = True
        return self._exiting

    # ---- what people see

    def _show(self, spec: Any) -> None:
        """Process title and the labels that the log monitor reads, where they change."""
        if spec.type == common_pb2.ACTOR_TASK:
            return
        kind, name = "task", spec.name
        if spec.type == common_pb2.ACTOR_CREATION_TASK:
            kind, name = "actor", spec.name.removesuffix(".__init__")
        label = f":{kind}_name:{name}"
        if label != self._label:
            self._label = label
            setproctitle(TITLE + name)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # user code may have closed it
                    print(label, file=stream, flush=True)

    def _leave(self) -> None:
        """Lets the last replies out, runs exit handlers, ends."""
        core = self.core
        with core.lock:
            self._exiting = True
            self._give_back(None)
        self._let_replies_out()
        if self.actor is not None:
            self.actor.close()
        try:
            atexit._run_exitfuncs()
        except BaseException:
            logger.exception("an exit handler failed")
        core.shutdown()
        flush_output()
        os._exit(0)

    def _let_replies_out(self) -> None:
        """Waits until every answer has left this process: some wait for owners, some for room in a socket."""
        reactor = self.core.reactor
        deadline_s = time.monotonic() + LEAVE_TIMEOUT_S
        while time.monotonic() < deadline_s and not reactor.is_closed:
            with self.core.lock:
                reactor.flush()
                if not self.answers.num_unsettled and not self.core.server.has_unsent:
                    return
            reactor.wait(Waiter(reactor), LEAVE_POLL_S)

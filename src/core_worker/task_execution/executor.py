"""Running tasks: the worker's side of PushTask.

The main thread takes calls from one queue (task_receiver.py) in the order of arrival and runs them itself:
normal tasks, and the calls of a plain actor. For an actor with concurrency it only prepares a call (fetches
and unpickles its arguments, in order) and hands it to the actor's threads or event loops (actor_runtime.py).
While user code runs, the reactor's background thread answers peers.

    queue ──► prepare: job, code, arguments ──► user code ──► returns serialized, references handed over
          ──► reply

The end of a task is ARCHITECTURE's rules 1 and 2 (task_reply.py). The end of the worker is
process/worker_exit.py's.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.our_bug import known
from ray_mono.common.raw_error import is_a
from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.store_reads import NoRoomHere
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.task_errors import (
    ActorExit,
    TaskFailed,
    argument_error,
    cancelled_error,
    describe_error,
)
from ray_mono.core_worker.task_execution.actor_runtime import ActorParts, ActorRuntime
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, Reply, context_of
from ray_mono.core_worker.task_execution.call_arguments import ArgumentReader
from ray_mono.core_worker.task_execution.exit_reports import report_exit
from ray_mono.core_worker.task_execution.generator_runner import GENERATORS, GeneratorRunner
from ray_mono.core_worker.task_execution.interrupter import Interrupter
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_execution.process_title import ProcessTitle
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.shared_calls import SharedCalls
from ray_mono.core_worker.task_execution.shared_runner import SharedRunner
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_execution.task_reply import TaskReplies
from ray_mono.core_worker.task_execution.visible_devices import VisibleDevices
from ray_mono.core_worker.task_submission.function_manager import FunctionManager
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.protobuf.common_pb2 import ACTOR_CREATION_TASK, ACTOR_TASK, NORMAL_TASK

logger = logging.getLogger(__name__)

IDLE_TITLE_S = 0.2
"""How long a worker's title still names its last task."""


class Executor:
    """The main loop of one worker."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        bind_job: Callable[[Any], None],
        worker_runs: WorkerRuns,
        board: StartBoard,
        kept: KeptAnswers,
        running: Running,
        receiver: TaskReceiver,
        replies: TaskReplies,
        interrupter: Interrupter,
        generators: GeneratorRunner,
        events: TaskEvents,
        functions: FunctionManager,
        arguments: ArgumentReader,
        unpickled: UnpickledReferences,
        blocked: BlockedNotice,
    ) -> None:
        """bind_job(spec) is called before the first call: the worker becomes its job's. It raises RpcError if
        the GCS does not answer. Then it is called again before the next one."""
        self._env = env
        self._context = context
        self._bind_job = bind_job
        self._is_bound = False
        self._worker_runs = worker_runs
        self._board = board
        self._running = running
        self._began = running.began
        self._receiver = receiver
        self._replies = replies
        self._interrupter = interrupter
        self._generators = generators
        self._events = events
        self._functions = functions
        self._arguments = arguments
        self._unpickled = unpickled
        self._blocked = blocked
        self._title = ProcessTitle()
        # An error holds the frames of its task, and one of them often holds the error. Such a cycle keeps the
        # references in these frames until the collector runs.
        self._left_cycles = False
        self._devices = VisibleDevices()
        self._actor: ActorRuntime | None = None
        self._shared = SharedRunner(
            env,
            context,
            board,
            kept,
            running,
            receiver,
            interrupter,
            generators,
            events,
            blocked,
            self._title,
            self._ready_target,
            self,
        )

    @property
    def actor(self) -> ActorRuntime | None:
        """The actor that this worker holds."""
        return self._actor

    # ---- the main thread

    def run(self) -> None:
        """Runs calls until the process is told to end. The caller gives back what waits then."""
        with contextlib.suppress(SystemExit):  # of a SIGTERM, at rest
            self._run_calls()

    def _run_calls(self) -> None:
        lock, reactor, receiver, running = self._env.lock, self._env.reactor, self._receiver, self._running
        while not running.is_ending and not reactor.is_closed:
            lock.acquire()  # `with` takes twice as long, as in TaskReplies._answer_usual
            try:
                queue = receiver.queue
                call = queue[0] if queue else receiver.rest()
                if type(call) is Call:
                    # As most are. Whoever looks for the task finds it in the queue or in Running.
                    queue.popleft()
                    task = context_of(call, self._actor)
                    running.begin(task)
            finally:
                lock.release()
            if type(call) is Call:
                try:
                    self._handle(call, task)
                except BaseException as error:
                    self.fell_through(call, task, error)
                running.over()
            elif type(call) is SharedCalls:
                if not self._shared.run(call):
                    with lock:
                        receiver.part_next_of(call)
            elif call is None:
                with lock:
                    receiver.queue.popleft()
                break
            else:
                if not reactor.wait(call, None if self._title.shown is None else IDLE_TITLE_S):
                    self._became_idle()
                receiver.awake()

    def _became_idle(self) -> None:
        self._title.show_idle()
        with self._env.lock:
            self._events.send()
        if self._left_cycles and self._actor is None:
            self._left_cycles = False
            gc.collect()

    def fell_through(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """An interrupt struck between the steps before the user's code, or our own code failed."""
        if self._running.was_struck and is_a(error, SystemExit):
            raise error
        self._interrupter.fell_through()
        if task.is_cancelled and is_a(error, KeyboardInterrupt):
            self._replies.finish_error(call, task, TaskCancelledError(task.task_id.hex()))
        else:
            self._replies.answer_anyhow(call, error)

    def _handle(self, call: Call, task: TaskContext) -> None:
        spec = call.spec
        if spec.type == NORMAL_TASK:
            if not self._board.may_begin(call.number, spec.name):
                self.not_begun(call)
                return
            if self._blocked.num_blocked:
                self._blocked.task_begins()
        try:
            # Whoever runs the call empties this. If arguments outlived the call, their references would count
            # as kept.
            prepared = self._prepare(call, task)
        except TaskFailed as failed:
            if self._running.was_struck:
                raise SystemExit(1) from None
            self._not_prepared(call, task, failed.error)
            return
        if spec is not self._title.shown:
            self._title.show(spec)
        if spec.type == ACTOR_TASK and self._actor is not None and self._actor.is_concurrent:
            self._actor.dispatch(call, task, prepared)
            return
        if spec.type != NORMAL_TASK and self._board.is_time_over():
            self.out_of_time()
        self.run_here(call, task, prepared)

    def out_of_time(self) -> None:
        """An actor's code does not begin where the head may start the actor elsewhere."""
        logger.warning("no head has confirmed this node for too long: its actors may be elsewhere")
        os._exit(1)

    def not_begun(self, call: Call) -> None:
        """Its lease was closed: it runs elsewhere."""
        with self._env.lock:
            call.answer_to.reply(Reply(status=Reply.NOT_STARTED))
            self._env.reactor.flush()

    def _not_prepared(self, call: Call, task: TaskContext, error: BaseException) -> None:
        self._interrupter.user_code_ended(task)
        if task.is_cancelled:
            error = TaskCancelledError(task.task_id.hex())
        if isinstance(error, NoRoomHere):
            self._replies.finish_unstarted(call, task)
        else:
            self._replies.finish_error(call, task, error)

    def run_here(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        """Runs the user's function on this thread and answers. prepared: [function, positional, keywords],
        emptied."""
        target, args, kwargs = prepared
        prepared.clear()
        token = self._context.enter(task)
        began = self._began
        began[task] = started_s = time.perf_counter()
        try:
            try:
                if task.is_cancelled:
                    raise KeyboardInterrupt
                value = target(*args, **kwargs)
                if type(value) in GENERATORS:
                    value = self._generators.run(call, task, value)
            finally:
                ended_s = time.perf_counter()
                del began[task]
                task.ran(ended_s - started_s)
                if task.is_cancelled:
                    self._interrupter.user_code_ended(task)
                if not call.spec.hides_events:
                    # Before the answer: whoever has that may ask for the timeline.
                    self._events.add(task, started_s, ended_s)
        except BaseException as error:
            del args, kwargs
            self.raised(call, task, error)
            return
        finally:
            self._context.leave(token)
        del args, kwargs
        if task.is_cancelled:
            self.returned(call, task, value)
        else:
            self._replies.finish(call, task, value)

    def raised(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """This left the user's code."""
        if is_a(error, (ActorExit, SystemExit)):
            self.finish_exit(error)
        else:
            self._left_cycles = True
            self._replies.finish_error(call, task, self._end_by(call, task, error))

    def returned(self, call: Call, task: TaskContext, value: Any) -> None:
        """The user's code did."""
        if task.is_cancelled and call.spec.type == ACTOR_TASK:
            # It could not be stopped, but nobody wants its value.
            self._replies.finish_error(call, task, TaskCancelledError(task.task_id.hex()))
        else:
            self._replies.finish(call, task, value)

    def _end_by(self, call: Call, task: TaskContext, error: BaseException) -> BaseException:
        """What the caller gets for what left the user's code."""
        if is_a(error, KeyboardInterrupt):
            # Also one that the user's code raised by itself, as in Ray.
            return cancelled_error(call.spec, task, error, self._actor, self._env)
        if task.is_cancelled and self._actor is not None and is_a(error, TaskCancelledError):
            return TaskCancelledError(task.task_id.hex())
        return describe_error(call.spec, error, self._actor, self._env)

    # ---- preparing

    def _prepare(self, call: Call, task: TaskContext) -> list[Any]:
        """The callable and its arguments: [function, positional, keywords]. Raises TaskFailed."""
        spec = call.spec
        kind, target = spec.type, None
        try:
            if not self._is_bound or self._worker_runs.has_pending:
                self._join_job(spec)
            if kind == NORMAL_TASK:
                # Not before the job is bound: half of a job, this worker could serve nobody.
                self._interrupter.user_code_begins(task)
                target = self._functions.loaded.get(spec.function_hash)
            elif kind == ACTOR_TASK and self._actor is not None:
                target = self._actor.methods.get(spec.name)
            if kind != ACTOR_TASK and (task.kind.resource_ids or self._devices.is_set):
                self._devices.show(task.kind.resource_ids)
            if target is None:  # it was not called before
                target = self._target(spec, task)
        except BaseException as error:
            raise TaskFailed(describe_error(spec, error, self._actor, self._env)) from None
        if not call.flat_args:
            return [target, [], {}]
        # A task that was moved already waits here for room; and a call of an actor has no other place.
        may_go_elsewhere = kind != ACTOR_TASK and not call.extras.waits_for_room
        try:
            args, kwargs = self._arguments.read(call, task, may_go_elsewhere)
        except NoRoomHere as error:
            raise TaskFailed(error) from None
        except BaseException as error:
            raise TaskFailed(argument_error(spec, error, self._actor, self._env)) from None
        return [target, args, kwargs]

    def _join_job(self, spec: KnownSpec) -> None:
        """The first call makes this worker its job's. Before any call, functions that every worker of the job
        runs may have become known."""
        if not self._is_bound:
            self._bind_job(spec.message)
            self._is_bound = True
        self._worker_runs.run_pending(spec.caller)

    def _target(self, spec: KnownSpec, task: TaskContext) -> Any:
        """What a call runs, if it is not at hand: the first of its function or method, or a constructor."""
        if spec.type == ACTOR_TASK:
            return known(self._actor, "the actor of this worker").method(spec.name)
        self._unpickled.collect_into(task.arriving)
        try:
            # An actor may outlive all others who have its code.
            is_kept = spec.type == ACTOR_CREATION_TASK
            target = self._functions.load(spec.job_id, spec.function, spec.caller, is_kept)
        finally:
            self._unpickled.collect_into(None)
        return self._creator(spec, task, target) if spec.type == ACTOR_CREATION_TASK else target

    def _ready_target(self, spec: KnownSpec) -> Callable[..., Any] | None:
        """What calls of this specification run, where nothing has to be prepared for each."""
        if spec.max_calls or self._devices.is_set:
            return None
        try:
            self._join_job(spec)
            if spec.type == NORMAL_TASK:
                return self._functions.loaded.get(spec.function_hash)
            return None if self._actor is None or self._actor.is_concurrent else self._actor.method(spec.name)
        except Exception:
            return None  # each call is told by itself

    def _creator(self, spec: KnownSpec, task: TaskContext, cls: Any) -> Callable[..., None]:
        def create(*args: Any, **kwargs: Any) -> None:
            # Made before the constructor runs, since that may call methods by a handle of its own actor.
            parts = ActorParts(
                self._env,
                self._context,
                self._running,
                self._receiver,
                self._replies,
                self._generators,
                self._events,
                self.run_here,
                self.finish_exit,
                self._board.is_time_over,
                self.out_of_time,
            )
            runtime = ActorRuntime(parts, spec, task)
            with self._env.lock:
                self._context.hold(runtime, task)
            runtime.construct(cls, args, kwargs)
            self._actor = runtime
            self._running.hold(runtime, runtime.is_asyncio)
            self._interrupter.calls_cancelled_by(runtime.cancel)
            self._title.name_actor(runtime.repr_name())

        return create

    # ---- ends

    def finish_exit(self, error: BaseException) -> None:
        """exit_actor() or sys.exit(): the call is not answered, as in Ray, and the process ends. A task is
        run again elsewhere while its retries last. An actor's caller hears from the GCS that it ended, and
        why; only an exit that failed (a status other than 0) counts as a crash, after which the actor may be
        restarted.

        The GCS is told first, so that an intended end is not taken for a crash.
        """
        running = self._running
        if (self._actor is not None or self._context.get().kind.actor_id) and not running.is_terminated:
            report_exit(self._env, ActorExit() if running.take_leave() else error)
        elif isinstance(error, SystemExit):
            running.exit_by(error)
        running.end_after_this()

    def exit_from_thread(self) -> None:
        """exit_actor() on a thread of the user's."""
        with self._env.lock:
            self._running.leave_from_thread()
            self._receiver.exit_after_queue()

"""Running tasks: the worker's side of PushTask.

The main thread takes tasks from one queue in the order of arrival and runs them itself: normal tasks, and the calls
of a plain actor. For an actor with concurrency it only prepares a call (fetches and unpickles its arguments, in
order) and hands it to the actor's threads or event loops (actor_runtime.py). While user code runs, the reactor's
background thread answers peers.

    PushTask ──queue──► prepare: job, code, arguments ──► user code ──► returns serialized, references handed over ──► reply

The end of a task is ARCHITECTURE's rules 1 and 2 (task_reply.py).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import RayError, TaskCancelledError
from ray_mono.common.raw_error import is_a
from ray_mono.common.start_board import LEASE_SHIFT, StartBoard
from ray_mono.core_worker.context import TaskContext, context_of
from ray_mono.core_worker.objects.store_reads import NoRoomHere
from ray_mono.core_worker.process.termination import Termination
from ray_mono.core_worker.process.worker_exit import cause_of_exit, leave, report_exit
from ray_mono.core_worker.task_errors import argument_error, cancelled_error, describe_error
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, Reply
from ray_mono.core_worker.task_execution.call_arguments import read_arguments
from ray_mono.core_worker.task_execution.generator_runner import GENERATORS, GeneratorRunner
from ray_mono.core_worker.task_execution.interrupter import Interrupter
from ray_mono.core_worker.task_execution.process_title import ProcessTitle
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_reply import TaskReplies
from ray_mono.core_worker.task_execution.visible_devices import VisibleDevices
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.reactor import Waiter

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_execution.actor_runtime import ActorRuntime
    from ray_mono.rpc.reactor_server import ServerCall

IDLE_TITLE_S = 0.2
"""How long a worker's title still names its last task."""


class ActorExit(BaseException):
    """Raised by exit_actor(): ends the actor after this call, without an error and without a restart."""


class TaskFailed(Exception):
    """The call has an error for a value; carries it to the reply."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Executor:
    """The queue and the main loop of one worker."""

    def __init__(self, core: CoreWorker, bind_job: Callable[[Any], None], board: StartBoard) -> None:
        self.core = core
        self._board = board
        self._next_number = 0  # of the lease's next task; 0 where its holder does not count them
        self._bind_job = bind_job
        self._queue: deque[Call | None] = deque()
        self._waiter: Waiter | None = None
        self._num_calls: dict[bytes, int] = {}
        self.answers = TaskReplies(core, self, board)
        self.events = TaskEvents(core)
        self.generators = GeneratorRunner(core)
        self.interrupts = Interrupter(core, self)
        self.termination = Termination(core, self)
        # What the main thread has taken from the queue and not finished.
        self.running: TaskContext | None = None
        self._exiting = False
        # By exit_actor() on a thread of the user's; the GCS is not told yet.
        self._left = False
        # Somebody waits for a call that will not be answered: the end of this process is what tells them.
        self.owes_answer = False
        # What a task did to end its worker.
        self.exit_cause = ""
        self._title = ProcessTitle()
        # An error holds the frames of its task, and often one of them the error: references in there would stay until enough else is made.
        self._left_cycles = False
        self._devices = VisibleDevices()
        self.actor: ActorRuntime | None = None

    # ---- served; lock held

    def PushTask(self, request: Any, call: ServerCall) -> None:
        wanted = request.intended_worker_id
        leaves = self._exiting or (self._queue and self._queue[-1] is None)
        if (wanted and wanted != self.core.worker_id) or leaves:
            call.reply(Reply(status=Reply.WRONG_WORKER))
            return
        if request.lease_id:
            # Not when it runs: it may be given back before, and then no other task of the lease names it.
            self.core.getter.lease_id = request.lease_id
            self._next_number = (request.lease_number << LEASE_SHIFT) + 1 if request.lease_number else 0
        number = request.template_id
        if not number:
            spec = KnownSpec(request.spec)
        elif request.HasField("spec"):
            spec = call.connection.state[number] = KnownSpec(request.spec)
            self.core.worker_runs.learn(request.run_first)
        else:
            spec = call.connection.state[number]
        pushed = Call(spec, request, call)
        if self._next_number:
            pushed.number = self._next_number
            self._next_number += 1
        self._enqueue(pushed)

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

    def take_queued(self, task_id: bytes) -> Call | None:
        """Takes a call that has not begun out of the queue."""
        for call in self._queue:
            if call is not None and call.own.task_id == task_id:
                self._queue.remove(call)
                return call
        return None

    def is_disposable(self) -> bool:
        """Whether nobody would miss this worker: nothing runs or waits here, and nothing of ours is referenced."""
        core = self.core
        core.drain()
        return (
            self._waiter is not None
            and not self._queue
            and not core.tasks.pending
            and not len(core.references)
        )

    def exit_after_queue(self) -> None:
        """Ends the process once what is queued has run."""
        self._enqueue(None)

    def _enqueue(self, item: Call | None) -> None:
        self._queue.append(item)
        if self._waiter is not None:
            self._waiter.set()

    @property
    def is_resting(self) -> bool:
        """Nothing runs or waits on the main thread."""
        return self._waiter is not None and not self._queue

    @property
    def is_exiting(self) -> bool:
        return self._exiting

    # ---- the main thread

    def run(self) -> None:
        """Until the process is told to end, which it does then."""
        with contextlib.suppress(SystemExit):  # of a SIGTERM, at rest
            self._run_calls()
        self.termination.await_calls()
        with self.core.lock:
            self._exiting = True
            self._give_back(None)
            self.core.reactor.flush()
        if self._left:
            report_exit(self.core, ActorExit())
        leave(self.core, self)

    def _run_calls(self) -> None:
        core = self.core
        while not self._exiting and not core.reactor.is_closed:
            with core.lock:
                if self._queue:
                    item = self._queue.popleft()
                    self.running = (
                        None if item is None else context_of(item, self.actor)
                    )  # a cancel finds it here now
                    waiter = None
                else:
                    waiter = self._waiter = Waiter(core.reactor)
            if waiter is not None:
                if not core.reactor.wait(waiter, None if self._title.is_idle else IDLE_TITLE_S):
                    self._title.show_idle()
                    with core.lock:
                        self.events.send()
                    if self._left_cycles and self.actor is None:
                        self._left_cycles = False
                        gc.collect()
                self._waiter = None
                continue
            if item is None:
                break
            assert self.running is not None
            try:
                self._handle(item, self.running)
            except BaseException as error:
                if self.termination.has_struck and is_a(error, SystemExit):
                    raise
                self._failed_early(item, self.running, error)
            self.running = item = None

    def _handle(self, call: Call, task: TaskContext) -> None:
        spec = call.spec
        if spec.type == common_pb2.NORMAL_TASK:
            if not self._board.may_begin(call.number, spec.name):
                with self.core.lock:
                    call.to.reply(Reply(status=Reply.NOT_STARTED))
                    self.core.reactor.flush()
                return
            self.core.getter.task_begins()
        try:
            # Emptied by whoever runs it: arguments must not outlive the call, or their references would count as kept.
            prepared = list(self._prepare(call, task))
        except TaskFailed as failed:
            if self.termination.has_struck:
                raise SystemExit(1) from None
            error = failed.error
            self.interrupts.interruptible = None
            if task.is_cancelled:
                self.interrupts.over()
                error = TaskCancelledError(task.task_id.hex())
            if isinstance(error, NoRoomHere):
                self.answers.finish_unstarted(call, task)
            else:
                self.answers.finish_error(call, task, error)
            return
        self._title.show(spec)
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
        started_s = time.perf_counter()
        try:
            try:
                if task.is_cancelled:
                    raise KeyboardInterrupt
                value = target(*args, **kwargs)
                if type(value) in GENERATORS:
                    value = self.generators.run(call, task, value)
            finally:
                task.run_us = int((time.perf_counter() - started_s) * 1e6)
                self.interrupts.interruptible = None
                if task.is_cancelled:
                    self.interrupts.over()
                if not call.spec.hides_events:
                    self.events.add(
                        task, started_s
                    )  # before the answer: who has that may ask for the timeline
        except (ActorExit, SystemExit) as error:
            del args, kwargs
            self.finish_exit(error)
            return
        except BaseException as error:
            del args, kwargs
            self._left_cycles = True
            self.answers.finish_error(call, task, self._end_by(call, task, error))
            return
        finally:
            core.context.leave(token)
        del args, kwargs
        if task.is_cancelled and call.spec.type == common_pb2.ACTOR_TASK:
            # It could not be stopped, but nobody wants its value.
            self.answers.finish_error(call, task, TaskCancelledError(task.task_id.hex()))
        else:
            self.answers.finish(call, task, value)

    def _end_by(self, call: Call, task: TaskContext, error: BaseException) -> BaseException:
        """What the caller gets for what left the user's code."""
        if is_a(error, KeyboardInterrupt):
            # Also one that the user's code raised by itself, as in Ray.
            return cancelled_error(call.spec, task, error, self.actor, self.core)
        if task.is_cancelled and self.actor is not None and is_a(error, TaskCancelledError):
            return TaskCancelledError(task.task_id.hex())
        return describe_error(call.spec, error, self.actor, self.core)

    def _failed_early(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """An interrupt struck between the steps before the user's code, or our own code failed."""
        self.interrupts.interruptible = None
        self.interrupts.over()
        if task.is_cancelled and is_a(error, KeyboardInterrupt):
            self.answers.finish_error(call, task, TaskCancelledError(task.task_id.hex()))
        else:
            self.answers.answer_anyhow(call, task, error)

    # ---- preparing

    def _prepare(self, call: Call, task: TaskContext) -> tuple[Any, list[Any], dict[str, Any]]:
        """The callable and its arguments. Raises TaskFailed."""
        spec = call.spec
        try:
            self._bind_job(spec)
            if spec.type == common_pb2.NORMAL_TASK:
                # Not before: half set up, this worker would serve nobody.
                self.interrupts.interruptible = task
                if task.is_cancelled:
                    raise KeyboardInterrupt
            if spec.type != common_pb2.ACTOR_TASK and (task.resource_ids or self._devices.is_set):
                self._devices.show(task.resource_ids)
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
            args, kwargs = read_arguments(self.core, call.own, task, may_go_elsewhere=_may_go_elsewhere(call))
        except NoRoomHere as error:
            raise TaskFailed(error) from None
        except BaseException as error:
            raise TaskFailed(argument_error(spec, error, self.actor, self.core)) from None
        return target, args, kwargs

    def _creator(self, spec: Any, task: TaskContext, cls: Any) -> Callable[..., None]:
        from ray_mono.core_worker.task_execution.actor_runtime import ActorRuntime

        def create(*args: Any, **kwargs: Any) -> None:
            # Made before the constructor runs, which may call methods of its own actor's handle.
            runtime = ActorRuntime(self, self.core, spec, task)
            runtime.construct(cls, args, kwargs)
            self.actor = runtime
            self._title.name_actor(runtime.repr_name())

        return create

    # ---- ends

    def finish_exit(self, error: BaseException) -> None:
        """exit_actor() or sys.exit(): the call is not answered, as in Ray, and the process ends. A task is run again elsewhere while its
        retries last. An actor's caller hears from the GCS that it ended, and why; only an exit that failed (a status other than 0)
        counts as a crash, after which the actor may be restarted.

        The GCS is told first, so that an intended end is not taken for a crash.
        """
        if (self.actor is not None or self.core.context.get().actor_id) and not self.termination.is_wanted:
            report_exit(self.core, ActorExit() if self._left else error)
            self._left = False
        elif isinstance(error, SystemExit):
            self.exit_cause = cause_of_exit(error)
        self.owes_answer = self._exiting = True

    def exit_from_thread(self) -> None:
        """exit_actor() on a thread of the user's: the process ends after the call that runs now, as in Ray."""
        with self.core.lock:
            self._left = self.owes_answer = self._exiting = True
            self._enqueue(None)

    def end_after_this(self) -> None:
        """SIGTERM, or a constructor that failed: no other call begins, and who waits for one hears of it by the end of the process."""
        self.owes_answer = self._exiting = True

    @property
    def is_next_short(self) -> bool:
        """Whether a call is queued here whose method ran short the last time. Lock held."""
        following = self._queue[0] if self._queue else None
        return following is not None and following.spec.is_short

    def ends_after(self, spec: Any) -> bool:
        """Whether the worker ends with this answer: it is told to, or this was the last call that max_calls allows."""
        if self._exiting or not spec.max_calls:
            return self._exiting
        digest = spec.function.python.function_hash
        self._num_calls[digest] = self._num_calls.get(digest, 0) + 1
        if self._num_calls[digest] >= spec.max_calls:
            self._exiting = True
        return self._exiting


def _may_go_elsewhere(call: Call) -> bool:
    return call.spec.type != common_pb2.ACTOR_TASK and not call.request.waits_for_room

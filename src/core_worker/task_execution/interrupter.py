"""`cancel`: the worker's side. A call that waits here is dropped; one that runs is told to stop, in the way that its kind has.

    normal task     KeyboardInterrupt in the user's code, on the main thread; with force the process ends
    plain, threaded actor   nothing happens to it, but get_runtime_context().is_canceled() is true, and its value becomes the error
    async actor     asyncio.CancelledError in its coroutine

The interrupt is a SIGINT to the main thread, so that it ends a sleep as well; its handler raises only while user code runs
(`interruptible`), and not where our own state may be half changed (rpc/interruption.py). There it is noted (Reactor.interrupted), to be
raised by the next wait, and sent again after AGAIN_S for code that does not wait.
It is raised once per request. A SIGINT that nobody here sent is the terminal's Ctrl-C, which is the driver's.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from ray_mono.core_worker.task_execution.call import Reply
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.interruption import strike_main_thread

if TYPE_CHECKING:
    from ray_mono.core_worker.context import TaskContext
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_execution.executor import Executor

AGAIN_S = 0.01


class Interrupter:
    """Cancels what one worker has. Lock held, but for on_signal and over, which are the main thread's."""

    def __init__(self, core: CoreWorker, executor: Executor) -> None:
        self._core = core
        self._executor = executor
        # The normal task whose user code runs, set and cleared by the executor.
        self.interruptible: TaskContext | None = None
        # The task that is to be interrupted, until it is.
        self._wanted: TaskContext | None = None
        self._is_noted = False

    def cancel(self, request: Any) -> bool:
        """Whether the task is here and not over."""
        executor = self._executor
        call = executor.take_queued(request.task_id)
        if call is not None:
            call.to.reply(Reply(status=Reply.CANCELLED))
            return True
        task = executor.running
        actor = executor.actor
        if task is None or task.task_id != request.task_id:
            task = actor.calls.get(request.task_id) if actor is not None else None
            if task is None:
                return False
        task.is_cancelled = True
        if request.recursive:
            self._core.cancellation.cancel_children(task, request.force)
        if request.force:
            self._tell_forced_end()
            executor.events.send()
            self._core.reactor.flush()
            os._exit(1)
        if actor is not None:
            actor.cancel(request.task_id)
            executor.generators.cancel(request.task_id)
        elif self.interruptible is task:
            self._interrupt(task)
        return True

    def _tell_forced_end(self) -> None:
        """Before its raylet takes it for a crash."""
        core = self._core
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KILLED, message="its task was cancelled with force=True"
        )
        core.gcs.ReportWorkerDeath.notify(
            common_pb2.WorkerInfo(
                worker_id=core.worker_id, node_id=core.node_id, pid=core.pid, death_cause=cause
            )
        )

    def _interrupt(self, task: TaskContext) -> None:
        self._wanted = task
        self._is_noted = False
        if threading.current_thread() is threading.main_thread():
            # It waits, and reads the sockets meanwhile: the wait will raise it.
            self._is_noted = self._core.reactor.interrupted = True
        else:
            self._send(task)

    def _send(self, task: TaskContext) -> None:
        if self._wanted is task and self.interruptible is task:
            strike_main_thread(signal.SIGINT)
            self._core.reactor.call_later(AGAIN_S, lambda: self._send(task))

    def on_signal(self, signum: int, frame: Any) -> None:
        """The worker's handler of SIGINT. Raises KeyboardInterrupt."""
        task, reactor = self._wanted, self._core.reactor
        if task is None or task is not self.interruptible:
            return
        if self._is_noted and not reactor.interrupted:
            self._wanted = None  # a wait has raised it
        elif reactor.may_interrupt(frame):
            self._wanted = None
            reactor.interrupted = False
            raise KeyboardInterrupt
        else:
            self._is_noted = reactor.interrupted = True

    def over(self) -> None:
        """The user's code of a task that was cancelled is over: what was not raised yet never is."""
        self._wanted = None
        self._core.reactor.interrupted = False

"""`cancel`: the worker's side. A call that waits here is dropped; one that runs is told to stop, in the way
that its kind has.

    normal task     KeyboardInterrupt in the user's code, on the main thread; with force the process ends
    plain, threaded actor   nothing happens to it, but get_runtime_context().is_canceled() is true, and its value becomes the error
    async actor     asyncio.CancelledError in its coroutine

The interrupt is a SIGINT to the main thread, so that it ends a sleep as well; its handler raises only while
user code runs (`interruptible`), and not where our own state may be half changed (rpc/interruption.py). There
it is noted (Reactor.note_interrupt), to be raised by the next wait, and sent again after AGAIN_S for code
that does not wait. It is raised once per request. A SIGINT that nobody here sent is the terminal's Ctrl-C,
which is the driver's.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.call import Reply
from ray_mono.core_worker.task_execution.generator_runner import GeneratorRunner
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.interruption import strike_main_thread

AGAIN_S = 0.01


class Interrupter:
    """Cancels what one worker has. Lock held, but for on_signal and over, which are the main thread's."""

    def __init__(
        self,
        env: Environment,
        running: Running,
        receiver: TaskReceiver,
        generators: GeneratorRunner,
        events: TaskEvents,
        canceller: TaskCanceller,
    ) -> None:
        self._env = env
        self._running = running
        self._receiver = receiver
        self._generators = generators
        self._events = events
        self._canceller = canceller
        self._cancel_call: Callable[[bytes], None] | None = None
        # The normal task whose user code runs.
        self._interruptible: TaskContext | None = None
        # The task that is to be interrupted, until it is.
        self._wanted: TaskContext | None = None
        self._is_noted = False

    def calls_cancelled_by(self, cancel_call: Callable[[bytes], None]) -> None:
        """cancel_call(task id): has the actor's call stop, in the way that its kind has. Lock held."""
        self._cancel_call = cancel_call

    def user_code_begins(self, task: TaskContext) -> None:
        """Of a normal task: it may be interrupted. On the main thread; raises KeyboardInterrupt for one that
        was cancelled already."""
        self._interruptible = task
        if task.is_cancelled:
            raise KeyboardInterrupt

    def user_code_ended(self, task: TaskContext) -> None:
        """What was not raised yet never is."""
        self._interruptible = None
        if task.is_cancelled:
            self._over()

    def fell_through(self) -> None:
        """An interrupt struck between the steps before the user's code, or our own code failed."""
        self._interruptible = None
        self._over()

    def cancel(self, request: Any) -> bool:
        """Whether the task is here and not over."""
        call = self._receiver.take_queued(request.task_id)
        if call is not None:
            call.answer_to.reply(Reply(status=Reply.CANCELLED))
            return True
        task = self._running.find(request.task_id)
        if task is None:
            return False
        task.cancel()
        if request.recursive:
            self._canceller.cancel_children(task, request.force)
        if request.force:
            self._tell_forced_end()
            self._events.send()
            self._env.reactor.flush()
            os._exit(1)
        if self._cancel_call is not None:
            self._cancel_call(request.task_id)
            self._generators.cancel(request.task_id)
        elif self._interruptible is task:
            self._interrupt(task)
        return True

    def _tell_forced_end(self) -> None:
        """Before its raylet takes it for a crash."""
        env = self._env
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KILLED, message="its task was cancelled with force=True"
        )
        env.gcs.ReportWorkerDeath.notify(
            common_pb2.WorkerInfo(
                worker_id=env.worker_id, node_id=env.node_id, pid=env.pid, death_cause=cause
            )
        )

    def _interrupt(self, task: TaskContext) -> None:
        self._wanted = task
        self._is_noted = False
        if threading.current_thread() is threading.main_thread():
            # It waits, and reads the sockets meanwhile: the wait will raise it.
            self._note()
        else:
            self._send(task)

    def _send(self, task: TaskContext) -> None:
        if self._wanted is task and self._interruptible is task:
            strike_main_thread(signal.SIGINT)
            self._env.reactor.call_later(AGAIN_S, lambda: self._send(task))

    def on_signal(self, signum: int, frame: Any) -> None:
        """The worker's handler of SIGINT. Raises KeyboardInterrupt."""
        task, reactor = self._wanted, self._env.reactor
        if task is None or task is not self._interruptible:
            return
        if self._is_noted and not reactor.interrupted:
            self._wanted = None  # a wait has raised it
        elif reactor.may_interrupt(frame):
            self._wanted = None
            reactor.note_interrupt(False)
            raise KeyboardInterrupt
        else:
            self._note()

    def _note(self) -> None:
        """A wait raises it."""
        self._is_noted = True
        self._env.reactor.note_interrupt(True)

    def _over(self) -> None:
        self._wanted = None
        self._env.reactor.note_interrupt(False)

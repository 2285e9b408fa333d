"""The worker's side of `cancel`. A call that waits here is dropped. A call that runs is told to stop, in a
way that depends on its kind:

    normal task             KeyboardInterrupt in the user's code, on the main thread; with force the process
                            ends
    plain, threaded actor   nothing stops the call, but get_runtime_context().is_canceled() is true, and a
                            TaskCancelledError takes the place of its value
    async actor             asyncio.CancelledError in its coroutine

A normal task is interrupted by a SIGINT to the main thread, which ends a sleep as well. The handler raises
only while user code runs (`_interruptible`), and not where our own state may be half changed
(rpc/interruption.py). There the interrupt is noted (Reactor.note_interrupt). The next wait raises it; for
code that does not wait the signal is sent again after AGAIN_S. An interrupt is raised once per request. A
SIGINT that nobody here sent is Ctrl-C in the terminal, which is meant for the driver.
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
    """Cancels calls that one worker has. `cancel` needs the lock held. The main thread calls on_signal,
    user_code_begins, user_code_ended and fell_through."""

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
        # The normal task whose user code began last. It may be interrupted until that has run (_runs).
        self._interruptible: TaskContext | None = None
        # The task that is to be interrupted, until that has happened.
        self._wanted: TaskContext | None = None
        self._is_noted = False

    def calls_cancelled_by(self, cancel_call: Callable[[bytes], None]) -> None:
        """cancel_call(task id) has an actor's call stop, in the way of its kind. Lock held."""
        self._cancel_call = cancel_call

    def user_code_begins(self, task: TaskContext) -> None:
        """The user code of a normal task begins, and may be interrupted. Raises KeyboardInterrupt if the task
        was cancelled already."""
        self._interruptible = task
        if task.is_cancelled:
            raise KeyboardInterrupt

    def user_code_ended(self, task: TaskContext) -> None:
        """An interrupt that was not raised by now never is. A task that has run, and was not cancelled, needs
        no such call."""
        self._interruptible = None
        if task.is_cancelled:
            self._over()

    def fell_through(self) -> None:
        """An interrupt struck between the steps around the user's code, or our own code failed there."""
        self._interruptible = None
        self._over()

    def cancel(self, request: Any) -> bool:
        """Cancels a task. Returns whether it was here and not over."""
        was_queued = False
        # More than one attempt may wait, or wait beside one that runs, if the caller lost a connection.
        while (call := self._receiver.take_queued(request.task_id)) is not None:
            call.answer_to.reply(Reply(status=Reply.CANCELLED))
            was_queued = True
        task = self._running.find(request.task_id)
        if task is None:
            return was_queued
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
        elif self._runs(task):
            self._interrupt(task)
        return True

    def _tell_forced_end(self) -> None:
        """Tells the GCS why this process ends, before its raylet reports a crash."""
        env = self._env
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KILLED, message="its task was cancelled with force=True"
        )
        env.gcs.ReportWorkerDeath.notify(
            common_pb2.WorkerInfo(
                worker_id=env.worker_id, node_id=env.node_id, pid=env.pid, death_cause=cause
            )
        )

    def _runs(self, task: TaskContext) -> bool:
        """Whether this is a normal task whose user code runs."""
        return task is self._interruptible and not task.has_run

    def _interrupt(self, task: TaskContext) -> None:
        self._wanted = task
        self._is_noted = False
        if threading.current_thread() is threading.main_thread():
            # The main thread waits, and reads the sockets meanwhile. Its wait will raise the interrupt.
            self._note()
        else:
            self._send(task)

    def _send(self, task: TaskContext) -> None:
        if self._wanted is task and self._runs(task):
            strike_main_thread(signal.SIGINT)
            self._env.reactor.call_later(AGAIN_S, lambda: self._send(task))

    def on_signal(self, signum: int, frame: Any) -> None:
        """The worker's handler of SIGINT. Raises KeyboardInterrupt."""
        task, reactor = self._wanted, self._env.reactor
        if task is None or not self._runs(task):
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
        """Has the main thread's next wait raise the interrupt."""
        self._is_noted = True
        self._env.reactor.note_interrupt(True)

    def _over(self) -> None:
        self._wanted = None
        self._env.reactor.note_interrupt(False)

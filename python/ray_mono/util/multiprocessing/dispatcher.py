"""The dispatcher of a pool: one thread hands batches to idle processes, and results to who waits.

    submit ──► waiting ──► an idle worker's run_batch ──► result.add_batch

Every arrow is an event in one queue.

A worker has one batch at a time: no task waits behind another while there is an idle process, as in the
standard library. A process that dies is restarted as an actor; the batch that it had fails, since it may have
run, and it is idle again when it has answered. After `maxtasksperchild` batches a worker is replaced.

close() lets everything end that was submitted, feeders of imap included; terminate() ends the processes at
once and fails the rest.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ray_mono._private.worker import get, is_initialized, kill, put
from ray_mono.exceptions import ActorDiedError, ActorUnavailableError, RayError, RaySystemError
from ray_mono.util.multiprocessing.pool_actor import Calls, Failure

if TYPE_CHECKING:
    from ray_mono.util.multiprocessing.results import Window

logger = logging.getLogger(__name__)

# What a process may need to end after its last task (exit handlers of the program); then it is killed.
END_TIMEOUT_S = 10.0


class Result(Protocol):
    """What takes the outcomes of batches: AsyncResult, IMapIterator."""

    def add_batch(self, index: int, outcomes: list[Any]) -> None: ...


class SharedFunction:
    """A function for several batches, pickled once: when the first of them is sent."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._ref: Any = None

    def argument(self) -> Any:
        """What stands for it in a call. Raises TypeError if it cannot be pickled."""
        if self._ref is None:
            self._ref = put(self._function)
        return self._ref


@dataclass
class Batch:
    """Some calls of one function, which run one after another in one process."""

    function: Any
    """A SharedFunction, or the function itself."""
    calls: Calls
    result: Result
    index: int
    """Among the batches of its result."""

    def fail(self, error: BaseException) -> None:
        self.result.add_batch(self.index, [Failure(error)] * len(self.calls))


@dataclass(eq=False)
class _Worker:
    actor: Any
    num_batches: int = 0
    """That it was given so far."""


@dataclass
class Dispatcher:
    """Owns the processes and the thread.

    Args:
        make_actor: makes a process of the pool.
        num_workers: how many.
        batches_per_worker_max: after so many a process is replaced; None for no limit.
    """

    make_actor: Callable[[], Any]
    num_workers: int
    batches_per_worker_max: int | None
    _events: queue.SimpleQueue[Callable[[], None]] = field(default_factory=queue.SimpleQueue)
    _idle: deque[_Worker] = field(default_factory=deque)
    _busy: dict[_Worker, Batch] = field(default_factory=dict)
    _restarting: set[_Worker] = field(default_factory=set)
    _waiting: deque[Batch] = field(default_factory=deque)
    _windows: set[Window] = field(default_factory=set)
    """Of the feeders that have not come to their end."""
    _ending: dict[Future[Any], Any] = field(default_factory=dict)
    """Processes that were told to end: the actor by the end of that call."""
    _is_closed: bool = False
    _is_terminated: bool = False

    def start(self) -> None:
        """Starts the processes and waits until they are initialized.

        Raises what an initializer raised, as ActorDiedError.
        """
        actors = [self.make_actor() for _ in range(self.num_workers)]
        try:
            get([actor.__ray_ready__.remote() for actor in actors])
        except BaseException:
            for actor in actors:
                kill(actor)
            raise
        self._idle.extend(_Worker(actor) for actor in actors)
        self._thread = threading.Thread(target=self._run, name="ray_mono-pool", daemon=True)
        self._thread.start()

    # ---- called by any thread

    def submit(self, batch: Batch) -> None:
        """Has the batch run as soon as a process is idle. After terminate() it fails."""
        self._events.put(lambda: self._waiting.append(batch))

    def add_feeder(self, window: Window) -> None:
        """Somebody will submit batches until it calls remove_feeder."""
        self._events.put(lambda: self._add_feeder(window))

    def remove_feeder(self, window: Window) -> None:
        self._events.put(lambda: self._windows.discard(window))

    def close(self) -> None:
        """Ends the processes after the last batch."""
        self._events.put(self._close)

    def terminate(self) -> None:
        """Ends the processes now."""
        self._events.put(self._terminate)

    def join(self) -> None:
        """Waits until the processes are gone: after close() or terminate()."""
        self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        while not (
            self._is_closed
            and not self._busy
            and not self._restarting
            and not self._waiting
            and not self._windows
        ):
            self._events.get()()
            while not self._events.empty():
                self._events.get()()
            self._dispatch()
        for worker in self._idle:
            self._end(worker)
        self._idle.clear()
        self._wait_for_ending()

    def _dispatch(self) -> None:
        if self._is_terminated:
            while self._waiting:
                self._waiting.popleft().fail(
                    ActorDiedError("The pool was terminated before the call had run.")
                )
        while self._waiting and self._idle:
            self._give(self._idle.popleft(), self._waiting.popleft())

    def _give(self, worker: _Worker, batch: Batch) -> None:
        try:
            _check_session()
            function = batch.function
            argument = function.argument() if isinstance(function, SharedFunction) else function
            future = worker.actor.run_batch.remote(argument, batch.calls).future()
        except Exception as error:  # pickling errors of any type; the end of the session
            self._idle.appendleft(worker)
            batch.fail(error)
            return
        worker.num_batches += 1
        self._busy[worker] = batch
        future.add_done_callback(lambda done: self._events.put(lambda: self._take(worker, done)))

    def _take(self, worker: _Worker, future: Future[list[Any]]) -> None:
        batch = self._busy.pop(worker)
        error = future.exception()
        if error is None:
            batch.result.add_batch(batch.index, future.result())
        else:
            batch.fail(error)
        if self._is_terminated:
            return
        if isinstance(error, ActorUnavailableError):
            self._await_restart(worker)
            return
        self._make_idle(worker)

    def _await_restart(self, worker: _Worker) -> None:
        """Its process died: what it is given while it is restarted would fail.

        Only a call with retries waits for it.
        """
        try:
            _check_session()
            future = worker.actor.__ray_ready__.options(max_task_retries=-1).remote().future()
        except RayError:
            self._make_idle(worker)
            return
        self._restarting.add(worker)
        future.add_done_callback(lambda done: self._events.put(lambda: self._restarted(worker)))

    def _restarted(self, worker: _Worker) -> None:
        """Or not: then the next batch fails, and says why."""
        if worker in self._restarting:
            self._restarting.remove(worker)
            self._make_idle(worker)

    def _make_idle(self, worker: _Worker) -> None:
        if self.batches_per_worker_max is None or worker.num_batches < self.batches_per_worker_max:
            self._idle.append(worker)
            return
        self._end(worker)
        try:
            _check_session()
            self._idle.append(_Worker(self.make_actor()))
        except RayError:
            # Nobody is left to run what waits. At the end of a session that is as it should be.
            if is_initialized():
                logger.exception("a process of a pool cannot be replaced")
            self._terminate()

    def _add_feeder(self, window: Window) -> None:
        self._windows.add(window)
        if self._is_closed:
            window.lift()
        if self._is_terminated:
            window.close()

    def _close(self) -> None:
        self._is_closed = True
        for window in self._windows:
            window.lift()

    def _terminate(self) -> None:
        self._is_closed = self._is_terminated = True
        for window in self._windows:
            window.close()
        for worker in (*self._idle, *self._busy, *self._restarting):
            with contextlib.suppress(RayError):  # the session is over
                kill(worker.actor)
        self._idle.clear()
        self._restarting.clear()

    def _end(self, worker: _Worker) -> None:
        with contextlib.suppress(RayError):
            self._ending[worker.actor.__ray_terminate__.remote().future()] = worker.actor
        self._ending = {end: actor for end, actor in self._ending.items() if not end.done()}

    def _wait_for_ending(self) -> None:
        for end in concurrent.futures.wait(self._ending, timeout=END_TIMEOUT_S).not_done:
            with contextlib.suppress(RayError):
                kill(self._ending[end])
        self._ending.clear()


def _check_session() -> None:
    """Raises RaySystemError where the session has ended: what is called here would start a new cluster
    otherwise."""
    if not is_initialized():
        raise RaySystemError("the pool's processes ended with shutdown(): make a new pool")

"""Pool: the standard library's process pool, whose processes are actors of a cluster.

What it shares with the standard library: the methods, when they wait and when they return, one task at a time
per process, callbacks in a thread of the pool before the result counts as ready, errors as they were raised
with the worker's traceback as their cause.

What it has of its own: functions travel by value, so lambdas and functions of the program itself may be
passed, and each call brings them anew; what an initializer has set in its module's globals they still find.
imap reads its iterable only a little ahead of the reader. A process that dies fails what it was doing, with
RayActorError, and is replaced.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ray_mono._private.argument_checks import plain
from ray_mono._private.node import bootstrap
from ray_mono._private.remote_decorator import remote
from ray_mono._private.state import cluster_resources
from ray_mono._private.worker import init, is_initialized
from ray_mono.util.multiprocessing.dispatcher import Batch, Dispatcher, SharedFunction
from ray_mono.util.multiprocessing.pool_actor import Calls, Failure, PoolActor
from ray_mono.util.multiprocessing.results import (
    AsyncResult,
    IMapIterator,
    OrderedIMapIterator,
    UnorderedIMapIterator,
    Window,
)

logger = logging.getLogger("ray_mono")
__tracebackhide__ = True

I = TypeVar("I", bound=IMapIterator)  # noqa: E741
_Callback = Callable[[Any], Any] | None

# A map's default: so many batches for each process, so that slow ones are evened out.
BATCHES_PER_PROCESS = 4
# How many batches of imap may be ahead of the reader, for each process, and at least: the processes stay
# busy, memory stays small.
AHEAD_PER_PROCESS = 4
AHEAD_MIN = 16


class Pool:
    """A pool of processes in a cluster."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        """Starts the processes, and a cluster if this process has none.

        Args:
            processes: how many; None: as many as the cluster has CPUs.
            initializer, initargs: called in each process when it starts.
            maxtasksperchild: after so many tasks (for map: batches) a process is replaced; None: never.
            context: of no use here: processes are made by the cluster. Accepted for programs that pass one; a
                warning says so.
            ray_address: of the cluster, as for `init`; only used if this process is not connected.
            ray_remote_args: options of the actors that the processes are, e.g. {"num_cpus": 1}. By default
                they hold no CPU.

        Raises ValueError for processes below 1 or beyond the cluster's CPUs, TypeError for what is not
        callable, ActorDiedError where the initializer raised, and what `init` raises.
        """
        processes, maxtasksperchild = plain(processes), plain(maxtasksperchild)
        if processes is not None and (not isinstance(processes, int) or processes < 1):
            raise ValueError(
                f"processes must be a positive whole number, or None for one per CPU, got {processes!r}"
            )
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None, got {initializer!r}")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError(
                f"maxtasksperchild must be a positive whole number or None, got {maxtasksperchild!r}"
            )
        if context is not None:
            logger.warning("Pool(context=%r) has no effect: the cluster starts the processes.", context)
        self._is_closed = False
        self._num_processes = _connect(processes, ray_address)
        actor_class: Any = remote(PoolActor)
        # A process that dies comes back; its work fails.
        options = {"num_cpus": 0, "max_restarts": -1, **(ray_remote_args or {})}
        arguments = (initializer, tuple(initargs or ()))
        self._dispatcher: Dispatcher | None = None
        dispatcher = Dispatcher(
            lambda: actor_class.options(**options).remote(*arguments), self._num_processes, maxtasksperchild
        )
        dispatcher.start()
        self._dispatcher = dispatcher

    # ---- one call

    def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The value of func(*args, **kwargs), run in one of the processes."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        callback: _Callback = None,
        error_callback: _Callback = None,
    ) -> AsyncResult:
        """As `apply`, without waiting.

        Args:
            callback: called with the value, before the result counts as ready; should be quick, since results
                wait meanwhile.
            error_callback: called with the exception instead.
        """
        dispatcher = self._running(func)
        result = AsyncResult(1, True, callback, error_callback)
        dispatcher.submit(Batch(func, [(args or (), kwargs)], result, 0))
        return result

    # ---- many calls, one result

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """[func(item) for item in iterable], run by all processes. Raises the first error, after all calls
        have ended.

        Args:
            chunksize: how many items make a task.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: _Callback = None,
        error_callback: _Callback = None,
    ) -> AsyncResult:
        """As `map`, without waiting; callbacks as in apply_async, with the list."""
        calls: Iterator[Any] = (((item,), None) for item in iterable)
        return self._map_async(func, calls, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As `map`, for items that are the arguments: func(*item)."""
        return self.starmap_async(func, iterable, chunksize=chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        callback: _Callback = None,
        error_callback: _Callback = None,
        chunksize: int | None = None,
    ) -> AsyncResult:
        """As `starmap`, without waiting.

        The order of parameters is Ray's; the standard library has chunksize before the callbacks.
        """
        calls: Iterator[Any] = ((item, None) for item in iterable)
        return self._map_async(func, calls, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        calls: Iterator[Any],
        chunksize: int | None,
        callback: _Callback,
        error_callback: _Callback,
    ) -> AsyncResult:
        dispatcher = self._running(func)
        if chunksize is not None:
            _check_chunksize(chunksize)
        all_calls = list(calls)
        if chunksize is None:
            chunksize = -(-len(all_calls) // (self._num_processes * BATCHES_PER_PROCESS)) or 1
        batches = list(_batches(iter(all_calls), chunksize))
        result = AsyncResult(len(batches), False, callback, error_callback)
        shared = SharedFunction(func) if len(batches) > 1 else func
        for index, batch in enumerate(batches):
            dispatcher.submit(Batch(shared, batch, result, index))
        return result

    # ---- many calls, results one by one

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> OrderedIMapIterator:
        """An iterator over func(item) for item in iterable, in this order. A thread of its own reads the
        iterable.

        Args:
            chunksize: how many items make a task.
        """
        return self._imap(OrderedIMapIterator, func, iterable, chunksize)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> UnorderedIMapIterator:
        """As `imap`, with each result as soon as it is there."""
        return self._imap(UnorderedIMapIterator, func, iterable, chunksize)

    def _imap(
        self, kind: type[I], func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None
    ) -> I:
        dispatcher = self._running(func)
        chunksize = _check_chunksize(1 if chunksize is None else chunksize)
        calls: Iterator[Any] = (((item,), None) for item in iterable)
        window = Window(max(AHEAD_MIN, AHEAD_PER_PROCESS * self._num_processes))
        result = kind(window)
        dispatcher.add_feeder(window)
        arguments = (dispatcher, window, result, SharedFunction(func), _batches(calls, chunksize))
        threading.Thread(target=_feed, args=arguments, name="ray_mono-pool-feeder", daemon=True).start()
        return result

    # ---- the end

    def close(self) -> None:
        """No more work; the processes end when what was submitted has been done."""
        self._is_closed = True
        if self._dispatcher is not None:
            self._dispatcher.close()

    def terminate(self) -> None:
        """Ends the processes at once; what they have not done fails with ActorDiedError."""
        self._is_closed = True
        if self._dispatcher is not None:
            self._dispatcher.terminate()

    def join(self) -> None:
        """Waits until the processes have ended.

        Raises ValueError unless close() or terminate() was called.
        """
        if not self._is_closed:
            raise ValueError("Pool is still running: call close() or terminate() before join()")
        if self._dispatcher is not None:
            self._dispatcher.join()

    def __enter__(self) -> Pool:
        self._running(len)
        return self

    def __exit__(self, *error: object) -> None:
        self.terminate()

    def __del__(self) -> None:
        # What was submitted is finished: its results may be in somebody's hands.
        if getattr(self, "_dispatcher", None) is not None and not self._is_closed:
            self.close()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pools cannot be passed between processes or pickled")

    def _running(self, func: Any) -> Dispatcher:
        if not callable(func):
            raise TypeError(f"func must be callable, got {func!r} of type {type(func).__name__}")
        if self._is_closed or self._dispatcher is None:
            raise ValueError("Pool not running")
        return self._dispatcher


def _connect(processes: int | None, ray_address: str | None) -> int:
    """Connects if need be; returns how many processes the pool has."""
    if not is_initialized():
        if bootstrap.find_cluster(ray_address) is None:
            init(ray_address, num_cpus=processes)
        else:
            init(ray_address)
    num_cpus = int(cluster_resources().get("CPU", 0))
    if processes is None:
        return max(1, num_cpus)
    if processes > num_cpus:
        raise ValueError(f"processes={processes!r}, but the cluster has only {num_cpus} CPUs")
    return processes


def _check_chunksize(chunksize: Any) -> int:
    chunksize = plain(chunksize)
    if isinstance(chunksize, bool) or not isinstance(chunksize, int) or chunksize < 1:
        raise ValueError(f"chunksize must be a whole number of at least 1, got {chunksize!r}")
    return min(chunksize, sys.maxsize)


def _batches(calls: Iterator[Any], chunksize: int) -> Iterator[Calls]:
    while batch := list(itertools.islice(calls, chunksize)):
        yield batch


def _feed(
    dispatcher: Dispatcher,
    window: Window,
    result: IMapIterator,
    function: SharedFunction,
    batches: Iterator[Calls],
) -> None:
    """The thread that reads the iterable of an imap."""
    num_batches = 0
    try:
        for batch in batches:
            is_open = window.enter()
            dispatcher.submit(Batch(function, batch, result, num_batches))
            num_batches += 1
            if not is_open:  # and the batch will fail, which tells the reader
                break
    except Exception as error:  # of the iterable, and so of whoever reads on
        result.add_batch(num_batches, [Failure(error)])
        num_batches += 1
    finally:
        result.set_num_batches(num_batches)
        dispatcher.remove_feeder(window)

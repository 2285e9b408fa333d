"""The actor that a worker holds: its instance, its methods, and how its calls run beside each other.

    plain      one call at a time, on the main thread
    threaded   max_concurrency > 1: calls start in order on a pool of threads; each concurrency group has a pool of its own
    asyncio    coroutine methods: calls start in order on one event loop thread; at most max_concurrency (per group) are under way
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.resources import ResourceSet
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.executor import ActorExit
from ray_mono.core_worker.generator_runner import GENERATORS
from ray_mono.core_worker.task_failure import cancelled_error, describe_error

if TYPE_CHECKING:
    from ray_mono.core_worker.call import Call
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.executor import Executor

logger = logging.getLogger(__name__)

DEFAULT_GROUP = ""


class ActorRuntime:
    """One actor in its process."""

    def __init__(self, executor: Executor, core: CoreWorker, spec: Any, task: TaskContext) -> None:
        creation = spec.actor_creation
        self.actor_id: bytes = creation.actor_id
        self.job_id: bytes = spec.job_id
        self.name: str = creation.name
        self.class_name = spec.name.removesuffix(".__init__")
        self.module_name: str = spec.function.python.module_name
        self.resources = ResourceSet.from_proto(spec.resources)
        self.resource_ids = task.resource_ids
        self.instance: Any = None
        self._executor = executor
        self._core = core
        self._groups = {DEFAULT_GROUP: max(1, creation.max_concurrency)}
        self._group_of_method: dict[str, str] = {}
        for group in creation.concurrency_groups:
            self._groups[group.name] = group.max_concurrency
            for method in group.method_names:
                self._group_of_method[method] = group.name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._semaphores: dict[str, asyncio.Semaphore] = {}
        self._pools: dict[str, concurrent.futures.ThreadPoolExecutor] = {}
        self._running: dict[bytes, asyncio.Task[None]] = {}
        # Calls that were dispatched and are not over, by task id.
        self.calls: dict[bytes, TaskContext] = {}
        if creation.is_asyncio:
            self._start_loop()
        elif len(self._groups) > 1 or self._groups[DEFAULT_GROUP] > 1:
            for name, limit in self._groups.items():
                self._pools[name] = concurrent.futures.ThreadPoolExecutor(limit, thread_name_prefix=f"actor-{name or 'calls'}")

    @property
    def is_asyncio(self) -> bool:
        return self._loop is not None

    @property
    def is_concurrent(self) -> bool:
        return self._loop is not None or bool(self._pools)

    def repr_name(self) -> str:
        """repr() of the instance where the class defines one, else the class name."""
        if self.instance is None or "__repr__" not in {name for kind in type(self.instance).__mro__[:-1] for name in vars(kind)}:
            return self.class_name
        try:
            return repr(self.instance)
        except Exception:
            return self.class_name

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the instance, or one of those every actor has. Raises AttributeError."""
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_terminate__":
            return self._terminate if self._loop is None else self._terminate_after_earlier_calls
        if name == "__ray_call__":
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        bound: Callable[..., Any] = getattr(self.instance, name)
        return bound

    def _terminate(self) -> None:
        raise ActorExit

    async def _terminate_after_earlier_calls(self) -> None:
        """Waits for calls that came before this one, which run beside it or wait for their turn; for as long as they take."""
        this = asyncio.current_task()
        earlier = list(itertools.takewhile(lambda running: running is not this, self._running.values()))
        if earlier:
            await asyncio.wait(earlier)
        raise ActorExit

    # ---- concurrency

    def dispatch(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        """Starts a call beside others. On the main thread, in the order of the calls."""
        spec = call.spec
        group = spec.actor_task.concurrency_group or self._group_of_method.get(spec.name, DEFAULT_GROUP)
        if group not in self._groups:
            known = ", ".join(sorted(name for name in self._groups if name)) or "none"
            error = ValueError(f"{self.class_name} has no concurrency group {group!r}; it has: {known}")
            self._executor.answers.finish_error(call, task, describe_error(spec, error, self, self._core))
            return
        self.calls[task.task_id] = task
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start, group, call, task, prepared)
        else:
            self._pools[group].submit(self._run_threaded, call, task, prepared)

    def _run_threaded(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        try:
            self._executor.run_here(call, task, prepared)
        except BaseException as error:
            self._failed(call, task, error)
        self.calls.pop(task.task_id, None)
        self._check_exit()

    def cancel(self, task_id: bytes) -> None:
        """A coroutine is cancelled; threads have only been told. Lock held."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, task_id)

    def _cancel(self, task_id: bytes) -> None:
        running = self._running.get(task_id)
        if running is not None:
            running.cancel()

    def _failed(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """The user's method is over, but its answer could not be made: the caller must not wait for it."""
        logger.exception("running %s failed; this is a bug of ray_mono", call.spec.name)
        self._executor.answers.finish_error(call, task, describe_error(call.spec, error, self, self._core))

    def _start(self, group: str, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        assert self._loop is not None
        running = self._loop.create_task(self._run_async(group, call, task, prepared))
        self._running[task.task_id] = running

        def ended(running: asyncio.Task[None]) -> None:
            del self._running[task.task_id]
            self.calls.pop(task.task_id, None)
            if running.cancelled():
                # Before its turn came.
                prepared.clear()
                error = self._end_by(call, task, asyncio.CancelledError())
                self._executor.answers.finish_error(call, task, error)

        running.add_done_callback(ended)

    async def _run_async(self, group: str, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        async with self._semaphores[group]:
            target, args, kwargs = prepared
            prepared.clear()
            self._core.context.enter(task)
            started_s = time.perf_counter()
            try:
                try:
                    value = target(*args, **kwargs)
                    if inspect.isawaitable(value):
                        value = await value
                    if type(value) in GENERATORS:
                        value = await self._executor.generators.run_async(call, task, value)
                finally:
                    if not call.spec.hides_events:
                        self._executor.events.add(task, started_s)
                if task.is_cancelled:
                    # The method made the best of it, but nobody wants its value.
                    raise asyncio.CancelledError
            except (ActorExit, SystemExit) as error:
                self._executor.finish_exit(error)
                self._check_exit()
                return
            except BaseException as error:
                self._executor.answers.finish_error(call, task, self._end_by(call, task, error))
                return
            finally:
                del args, kwargs
            try:
                self._executor.answers.finish(call, task, value)
            except BaseException as error:
                self._failed(call, task, error)

    def _end_by(self, call: Call, task: TaskContext, error: BaseException) -> BaseException:
        """What the caller gets. As in Ray, a CancelledError that nobody asked for is a cancelled call too."""
        if isinstance(error, KeyboardInterrupt | asyncio.CancelledError) or (
            task.is_cancelled and isinstance(error, TaskCancelledError)
        ):
            return cancelled_error(call.spec, task, error, self, self._core)
        return describe_error(call.spec, error, self, self._core)

    def _check_exit(self) -> None:
        """After exit_actor() on another thread: the main thread sits in its queue."""
        if self._executor.is_exiting:
            with self._core.lock:
                self._executor.exit_after_queue()

    def _start_loop(self) -> None:
        started = threading.Event()

        def run() -> None:
            self._loop = loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            for name, limit in self._groups.items():
                self._semaphores[name] = asyncio.Semaphore(limit)
            loop.call_soon(started.set)
            loop.run_forever()

        threading.Thread(target=run, name="actor-loop", daemon=True).start()
        started.wait()

    def close(self) -> None:
        """The actor ends in order: its __ray_shutdown__ runs, where it has one, as in Ray. Calls under way end with the process."""
        hook = getattr(self.instance, "__ray_shutdown__", None)
        if hook is not None:
            try:
                hook()
            except BaseException:
                logger.exception("__ray_shutdown__ of %s failed", self.class_name)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

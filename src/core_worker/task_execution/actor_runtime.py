"""The actor that a worker holds: its instance, its methods, and how its calls run beside each other.

    plain      one call at a time, on the main thread
    threaded   max_concurrency > 1, or concurrency groups: calls start in order on the threads of their group
    asyncio    coroutine methods: calls start in order on the event loop of their group (async_group.py)

The methods are those that the class has before the constructor runs, as in Ray. It does not matter what the
instance, or the class, has under the same name later.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.output import utf8
from ray_mono.common.raw_error import is_a
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.threads import start
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import is_awaited
from ray_mono.core_worker.task_errors import ActorExit, cancelled_error, describe_error, users_traceback
from ray_mono.core_worker.task_execution.async_group import AsyncGroup, AsyncParts, construct, on_thread
from ray_mono.core_worker.task_execution.call import Call, KnownSpec
from ray_mono.core_worker.task_execution.call_thread import CallThread
from ray_mono.core_worker.task_execution.generator_runner import GeneratorRunner
from ray_mono.core_worker.task_execution.running import CALLS_POLL_S, Running
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_execution.task_reply import TaskReplies
from ray_mono.protobuf import common_pb2

logger = logging.getLogger(__name__)

DEFAULT_GROUP = ""
CLOSE_TIMEOUT_S = 5.0
"""How long coroutines that are cancelled at the end may take. One may block its thread."""


@dataclass(frozen=True)
class ActorParts:
    """The parts of its worker that an actor uses."""

    env: Environment
    context: WorkerContext
    running: Running
    receiver: TaskReceiver
    replies: TaskReplies
    generators: GeneratorRunner
    events: TaskEvents
    run_here: Callable[[Call, TaskContext, list[Any]], None]
    """Runs a call on the thread that calls it, and answers: Executor.run_here."""
    finish_exit: Callable[[BaseException], None]
    """The actor's code ended it: Executor.finish_exit."""
    is_time_over: Callable[[], bool]
    """Before a call begins: StartBoard.is_time_over."""
    out_of_time: Callable[[], None]
    """It is: Executor.out_of_time."""


class ActorRuntime:
    """One actor in its process."""

    def __init__(self, parts: ActorParts, spec: KnownSpec, task: TaskContext) -> None:
        creation = spec.actor_creation
        self.actor_id: bytes = creation.actor_id
        self.job_id: bytes = spec.job_id
        self.name: str = creation.name
        self.class_name = spec.name.removesuffix(".__init__")
        self.module_name: str = spec.function.python.module_name
        self.resources = ResourceSet.from_proto(spec.resources)
        self.resource_ids = task.kind.resource_ids
        self.group = spec.group
        self.is_detached: bool = creation.is_detached
        self.owner: common_pb2.Address = spec.caller
        self.instance: Any = None
        self._body: dict[str, Any] = {}
        self._parts = parts
        self._groups = {DEFAULT_GROUP: max(1, creation.max_concurrency)}
        self._group_of_method: dict[str, str] = {}
        for group in creation.concurrency_groups:
            self._groups[group.name] = group.max_concurrency
            for method in group.method_names:
                self._group_of_method[method] = group.name
        self.methods: dict[str, Callable[..., Any]] = {}
        """Those that were called, by name. `method` finds the others."""
        self._loops: dict[str, AsyncGroup] = {}
        self._pools: dict[str, ThreadGroup] = {}
        # The worker's calls that were dispatched and are not over.
        self._calls = parts.running.calls
        if creation.is_asyncio:
            group_parts = AsyncParts(
                parts.context,
                parts.env,
                parts.running.began,
                parts.running.call_over,
                parts.replies,
                parts.generators,
                parts.events,
                self.answer_error,
                self.exit_by,
                parts.is_time_over,
                parts.out_of_time,
            )
            for name, limit in self._groups.items():
                self._loops[name] = AsyncGroup(group_parts, name, limit)
        elif len(self._groups) > 1 or self._groups[DEFAULT_GROUP] > 1:
            for name, limit in self._groups.items():
                self._pools[name] = ThreadGroup(name, limit)
        self.is_concurrent = bool(self._loops or self._pools)
        """Whether calls run beside each other."""

    def construct(self, cls: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Makes the instance. Raises what the constructor raises."""
        self._body = body_of(cls)
        if self.is_asyncio:
            self.instance = self._loops[DEFAULT_GROUP].run(construct(cls, args, kwargs))
        else:
            self.instance = cls(*args, **kwargs)

    @property
    def is_asyncio(self) -> bool:
        return bool(self._loops)

    def repr_name(self) -> str:
        """The instance's repr() where its class defines one, else the name of the class."""
        if self.instance is None or "__repr__" not in {
            name for kind in type(self.instance).__mro__[:-1] for name in vars(kind)
        }:
            return self.class_name
        try:
            return utf8(repr(self.instance))
        except BaseException:
            return self.class_name

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the instance, or one of those that every actor has. Raises AttributeError."""
        found = self.methods.get(name)
        if found is None:
            found = self.methods[name] = self._find_method(name)
        return found

    def _find_method(self, name: str) -> Callable[..., Any]:
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_terminate__":
            return self._terminate_after_earlier_calls if self.is_asyncio else self._terminate
        if name == "__ray_call__":
            return self._call_on_thread if self.is_asyncio else self._call
        return method_of(self.instance, name, self._body)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    async def _call_on_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = await on_thread(lambda: function(self.instance, *args, **kwargs))
        return await value if is_awaited(value) else value

    def _terminate(self) -> None:
        """In a threaded actor it waits for earlier calls, as the next method does."""
        earlier = self._earlier_calls()
        while not earlier.isdisjoint(self._calls):
            time.sleep(CALLS_POLL_S)
        raise ActorExit

    async def _terminate_after_earlier_calls(self) -> None:
        """Waits for the calls that came before this one, as long as they take. They run beside it, or wait
        for their turn."""
        earlier = self._earlier_calls()
        for group in self._loops.values():
            await group.ended(earlier)
        raise ActorExit

    def _earlier_calls(self) -> set[bytes]:
        this = self._parts.context.task_id()
        return set(itertools.takewhile(lambda task_id: task_id != this, list(self._calls)))

    # ---- for `explain`

    def coroutine_of(self, task: TaskContext) -> tuple[asyncio.Task[None], int] | None:
        """Of a call that has begun, and its loop's thread; None where it is no coroutine's. Any thread."""
        return next(filter(None, (group.running(task) for group in self._loops.values())), None)

    def num_beside_calls(self) -> int:
        """How many asyncio tasks the actor's code has started that run. Any thread."""
        return sum(group.num_beside_calls() for group in self._loops.values())

    # ---- concurrency

    def concurrency_group_of(self, spec: KnownSpec) -> str:
        return spec.concurrency_group or self._group_of_method.get(spec.name, DEFAULT_GROUP)

    def dispatch(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        """Starts a call beside others. The main thread does so, in the order of the calls."""
        group = self.concurrency_group_of(call.spec)
        self._calls[task.task_id] = task
        if self._loops:
            self._loops[group].start(call, task, prepared)
        else:
            pool = self._pools[group]
            call.followed_if(pool.has_waiting)
            try:
                pool.submit(self._run_threaded, call, task, prepared)
            except OSError as error:
                self._parts.running.call_over(task)
                self.answer_error(call, task, error)

    def _run_threaded(self, call: Call, task: TaskContext, prepared: list[Any]) -> None:
        if self._parts.is_time_over():
            self._parts.out_of_time()
        try:
            self._parts.run_here(call, task, prepared)
        except BaseException as error:
            self._parts.replies.answer_anyhow(call, error)
        self._parts.running.call_over(task)
        self._check_exit()

    def cancel(self, task_id: bytes) -> None:
        """Cancels the call's coroutine. Nothing stops a call on a thread: get_runtime_context() tells it.
        Lock held."""
        for group in self._loops.values():
            group.cancel(task_id)

    def answer_error(self, call: Call, task: TaskContext, error: BaseException) -> None:
        """Answers a call by the error that left the user's code. As in Ray, a CancelledError that nobody
        asked for makes it a cancelled call, too."""
        if is_a(error, KeyboardInterrupt | asyncio.CancelledError) or (
            task.is_cancelled and is_a(error, TaskCancelledError)
        ):
            described = cancelled_error(call.spec, task, error, self, self._parts.env)
        else:
            described = describe_error(call.spec, error, self, self._parts.env)
        self._parts.replies.finish_error(call, task, described)

    def exit_by(self, error: BaseException) -> None:
        """A coroutine ended the actor."""
        self._parts.finish_exit(error)
        self._check_exit()

    def _check_exit(self) -> None:
        """After exit_actor() on another thread: has the main thread, which waits in its queue, end."""
        if self._parts.running.is_ending:
            with self._parts.env.lock:
                self._parts.receiver.exit_after_queue()

    def close(self) -> None:
        """The actor ends in order. Its __ray_shutdown__ runs if it has one, as in Ray. Then coroutines are
        cancelled, and the instance is let go. Calls on threads end with the process."""
        hook = getattr(self.instance, "__ray_shutdown__", None)
        if hook is not None:
            try:
                hook()
            except BaseException as error:
                logger.error("__ray_shutdown__ of %s failed: %s", self.class_name, users_traceback(error))
        del hook
        concurrent.futures.wait([group.close() for group in self._loops.values()], CLOSE_TIMEOUT_S)
        self.methods.clear()
        self.instance = None


def body_of(cls: type) -> dict[str, Any]:
    """The attributes that a class has now, with those that it inherits."""
    return {name: value for kind in reversed(cls.__mro__) for name, value in vars(kind).items()}


def method_of(instance: Any, name: str, body: dict[str, Any]) -> Any:
    """A method of the class's `body`, bound. Raises AttributeError."""
    kind = type(instance)
    if name not in body:
        return getattr(instance, name)
    static = body[name]
    bind = getattr(type(static), "__get__", None)
    return static if bind is None else bind(static, instance, kind)


class ThreadGroup:
    """A concurrency group of a threaded actor. Calls start in order on at most `limit` threads, which are
    made when they are needed; where there can be no more, calls wait for one. The end of the actor does not
    wait for the calls that they run."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = f"actor-{name or 'calls'}"
        self._limit = limit
        self._num_threads = 0
        # An item for each thread that waits for a call: a deque's steps are one each, a semaphore's many.
        self._idle: deque[None] = deque()
        # An item for each call that waits for a thread, though there are fewer than `limit`.
        self._late: deque[None] = deque()
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Called on the main thread only. Raises OSError where no thread may be made, and there is none."""
        self._calls.put((function, args))
        if self._idle:
            self._idle.pop()
        elif self._num_threads < self._limit:
            self._add_thread()

    def _add_thread(self) -> None:
        try:
            start(CallThread(self._run, f"{self._name}-{self._num_threads + 1}"))
        except OSError:
            if not self._num_threads:
                self._calls.get()  # the call that nobody takes
                raise
            self._late.append(None)
        else:
            self._num_threads += 1

    def _run(self) -> None:
        while True:
            function, args = self._calls.get()
            function(*args)
            del function, args
            try:
                if self._late:
                    self._late.pop()
                    continue
            except IndexError:
                pass  # another thread was faster
            self._idle.append(None)

    def has_waiting(self) -> bool:
        """Whether calls wait for a thread: they begin as soon as one ends."""
        return not self._calls.empty()

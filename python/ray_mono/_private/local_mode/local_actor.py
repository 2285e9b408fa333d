"""One actor of local mode: its instance, and the loop that its coroutine methods run on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from ray_mono._private.local_mode.local_call import LocalCall, describe
from ray_mono.common.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError
from ray_mono.common.raw_error import exit_code_of
from ray_mono.core_worker.context import InGroup
from ray_mono.core_worker.object_ref import ObjectRef, is_awaited
from ray_mono.core_worker.options import ActorOptions
from ray_mono.core_worker.task_errors import ActorExit, TaskFailed
from ray_mono.core_worker.task_execution.actor_runtime import body_of, method_of
from ray_mono.core_worker.task_execution.async_group import construct
from ray_mono.core_worker.task_execution.running import cause_of_exit
from ray_mono.core_worker.task_submission.task_builder import MethodTemplate
from ray_mono.protobuf import common_pb2


@dataclass(frozen=True)
class LocalActorState:
    """What a handle holds of its actor."""

    actor_id: bytes
    creation_ref: ObjectRef[Any] | None


class LocalActor:
    """An actor, alive until `death` says why it is not."""

    def __init__(self, actor_id: bytes, plain_class: type, options: ActorOptions) -> None:
        self.actor_id = actor_id
        self.options = options
        self.death: ActorDiedError | None = None
        self.num_restarts = 0
        self._class = plain_class
        self._arguments: tuple[list[Any], dict[str, Any]] = ([], {})
        self._instance: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def creation(self) -> LocalCall:
        return self._call(self.construct, MethodTemplate("__init__"))

    def call_of(self, template: MethodTemplate) -> LocalCall:
        return self._call(lambda args, kwargs: self.call(template.name, args, kwargs), template)

    def _call(self, function: Callable[[Any, Any], Any], template: MethodTemplate) -> LocalCall:
        options = self.options
        return LocalCall(
            function,
            template.task_name or f"{options.class_name}.{template.name}",
            template.num_returns,
            template.max_task_retries if template.retry_exceptions else 0,
            template.retry_exceptions,
            self.actor_id,
            describe(self._class, options.class_name, template.name),
            options.resources,
            template.generator_backpressure_num_objects,
            InGroup.of(options.strategy),
        )

    def construct(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Makes the instance. Raises what the constructor raises, and TaskFailed, which has the actor's
        death, if that exits."""
        self._arguments = (args, kwargs)
        self._body = body_of(self._class)
        try:
            if self.options.is_asyncio:
                self._instance = self._run_on_loop(construct(self._class, args, kwargs))
            else:
                self._instance = self._class(*args, **kwargs)
        except (ActorExit, SystemExit) as end:
            death = self.dead_because("its constructor ended its process")
            self.die(death)
            raise TaskFailed(death) from end

    def restart(self) -> bool:
        """Constructs the instance again; False where no restart is left."""
        if self.options.max_restarts != -1 and self.num_restarts >= self.options.max_restarts:
            return False
        self.num_restarts += 1
        self.construct(*self._arguments)
        return True

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Runs a method to its end. Raises what the method raises, and TaskFailed, which has the actor's
        death, if the method exits."""
        try:
            if name == "__ray_ready__":
                return True
            if name == "__ray_terminate__":
                raise ActorExit
            if name == "__ray_call__":
                result = args[0](self._instance, *args[1:], **kwargs)
            else:
                method = method_of(self._instance, name, self._body)
                result = (
                    self._run_on_loop(_call(method, args, kwargs))
                    if self.options.is_asyncio
                    else method(*args, **kwargs)
                )
            if inspect.iscoroutine(result):  # of __ray_call__, or of a method that is no `async def`
                result = self._run_on_loop(result)
            return (
                self._items_of(result)
                if inspect.isgenerator(result) or inspect.isasyncgen(result)
                else result
            )
        except (ActorExit, SystemExit) as end:
            raise self._ended_by(end) from None

    def _ended_by(self, end: BaseException) -> TaskFailed:
        """exit_actor() and sys.exit(0) end the actor for good. Another exit is a crash, after which it may be
        restarted."""
        death = self.dead_because(
            cause_of_exit(end) if isinstance(end, SystemExit) else "exit_actor() was called"
        )
        if not (isinstance(end, SystemExit) and exit_code_of(end) and self.restart()):
            self.die(death)
            return TaskFailed(death)
        return TaskFailed(ActorUnavailableError("it is restarting", self.actor_id))

    def dead_because(self, cause: str) -> ActorDiedError:
        """The error of later calls. It says which actor it is, as a cluster does."""
        options, actor_id = self.options, self.actor_id.hex()
        name = f"\tname: {options.name}\n" if options.name else ""
        text = (
            f"\tclass_name: {options.class_name}\n\tactor_id: {actor_id}\n"
            f"{name}\tnamespace: {options.namespace}\n\tcause: {cause}"
        )
        return ActorDiedError(text, actor_id)

    def _items_of(self, generator: Any) -> Iterator[Any]:
        """The items of a method that is a generator, of either kind."""
        try:
            if inspect.isgenerator(generator):
                yield from generator
                return
            end = object()
            while (item := self._run_on_loop(_next_of(generator, end))) is not end:
                yield item
        except (ActorExit, SystemExit) as end:
            raise self._ended_by(end) from None

    def _run_on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # A thread of its own: the caller may be in a loop itself, where a coroutine cannot be waited for.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="ray_mono local actor", daemon=True).start()
        context = contextvars.copy_context()
        future = asyncio.run_coroutine_threadsafe(_in_context(coroutine, context), self._loop)
        try:
            # Not by result(), whose frames would be in the traceback: only ours are left out of it.
            error = future.exception()
        except concurrent.futures.CancelledError:
            raise TaskCancelledError from None
        result = future.result() if error is None else None
        if isinstance(result, _LoopEnd):
            error = result.error
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback holds this frame: what the frames above hold would wait for the collector.
                error = future = None  # type: ignore[assignment]
        return result

    def die(self, death: ActorDiedError) -> None:
        self.death = death
        self._instance = None
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def info(self, job_id: bytes) -> common_pb2.ActorInfo:
        options = self.options
        return common_pb2.ActorInfo(
            actor_id=self.actor_id,
            job_id=job_id,
            state=common_pb2.ALIVE if self.death is None else common_pb2.DEAD,
            version=1,
            num_restarts=self.num_restarts,
            class_name=options.class_name,
            name=options.name,
            namespace=options.namespace,
            is_detached=options.is_detached,
            max_restarts=options.max_restarts,
            serialized_handle=options.handle_metadata,
        )


async def _call(method: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    result = method(*args, **kwargs)
    return await result if is_awaited(result) else result


async def _next_of(generator: AsyncIterator[Any], end: object) -> Any:
    return await anext(generator, end)


async def _in_context(coroutine: Coroutine[Any, Any, Any], context: contextvars.Context) -> Any:
    # The task that the coroutine belongs to is in the caller's context.
    return await asyncio.get_running_loop().create_task(_guarded(coroutine), context=context)


async def _guarded(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        return _LoopEnd(error)


@dataclass(frozen=True)
class _LoopEnd:
    """An error that would end the loop if it left the coroutine. The program would wait for ever then."""

    error: BaseException

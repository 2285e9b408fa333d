"""The worker's side of a streaming task: it runs the generator, and its items go to the caller, who owns
them, while the generator runs.

    user's generator ──yield──► serialized ──► part ──ITEM frame of the call──► owner
         ▲                          └── a large value goes into the node's store  │
         │                                                                        │
         └── rests while too much is on its way, or not taken ◄──AcknowledgeItems─┘

item_sender.py decides how items travel, and what is too much. A generator that rests frees its task's CPUs,
as a `get` does. If the owner's process goes, or an actor's call is cancelled, the generator is closed between
two items. If only the user's generator object goes, the generator runs to its end, as in Ray, and what it
yields is thrown away. `yield` gives the user's code a StreamingGeneratorStats.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any, NamedTuple

from ray_mono.common import raw_error
from ray_mono.common.explanation import WaitCode
from ray_mono.core_worker.context import TaskContext
from ray_mono.core_worker.object_ref_generator import StreamingGeneratorStats
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.task_execution.call import Call
from ray_mono.core_worker.task_execution.item_sender import ItemSender, SenderParts
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.reactor import Waiter

GENERATORS = (GeneratorType, AsyncGeneratorType)
STREAMED = object()
"""The value of a generator's task: its items are under way already."""


class GeneratorRunner:
    """The generators that run in this process."""

    def __init__(self, parts: SenderParts, blocked: BlockedNotice) -> None:
        self._parts = parts
        self._env = parts.env
        self._blocked = blocked
        self._senders: dict[bytes, ItemSender] = {}

    def AcknowledgeItems(self, request: Any) -> None:
        """Served; lock held."""
        sender = self._senders.get(request.task_id)
        if sender is not None:
            sender.acknowledge(request)

    def cancel(self, task_id: bytes) -> None:
        """Has the generator of an actor's call end between two items. (A normal task is interrupted instead.)
        Lock held."""
        sender = self._senders.get(task_id)
        if sender is not None:
            sender.stop()

    # ---- on the thread that runs the task

    def run(self, call: Call, task: TaskContext, generator: Any) -> Any:
        """Runs a generator to its end, on this thread. Returns the value of the task, and raises what the
        generator raises."""
        spec = call.spec
        if isinstance(generator, AsyncGeneratorType):
            raise TypeError(
                f"{spec.name}() is an async generator, which only an actor with async methods can run"
            )
        if spec.num_returns >= 0:
            return first_items(generator, spec.num_returns, spec.name, not spec.message.retry_exceptions)
        sender = self._open(call, task)
        stats: StreamingGeneratorStats | None = None
        try:
            # Where an item cannot be stored, too, its `finally` runs before the next task does.
            with contextlib.closing(generator):
                while True:
                    try:
                        value = generator.send(stats if _takes(generator) else None)
                    except StopIteration:
                        break
                    started_s = time.perf_counter()
                    if not sender.is_stopped:
                        sender.put(value)
                    stats = StreamingGeneratorStats(time.perf_counter() - started_s)
                    del value
                    if sender.is_full:
                        self._rest(sender)
                    if sender.is_stopped:
                        break
        finally:
            self._close(sender, call)
        return STREAMED

    async def run_async(self, call: Call, task: TaskContext, generator: AsyncGeneratorType[Any, Any]) -> Any:
        """Runs an async generator on this thread's event loop, which goes on while the generator rests."""
        if call.spec.num_returns >= 0:
            raise TypeError(
                f"{call.spec.name}() is an async generator: it needs num_returns='streaming' or 'dynamic'"
            )
        sender = self._open(call, task)
        stats: StreamingGeneratorStats | None = None
        try:
            async with contextlib.aclosing(generator):
                while True:
                    try:
                        value = await generator.asend(stats)
                    except StopAsyncIteration:
                        break
                    started_s = time.perf_counter()
                    if not sender.is_stopped:
                        sender.put(value)
                    stats = StreamingGeneratorStats(time.perf_counter() - started_s)
                    del value
                    if sender.is_full:
                        await self._rest_async(sender)
                    if sender.is_stopped:
                        break
        finally:
            self._close(sender, call)
        return STREAMED

    def _open(self, call: Call, task: TaskContext) -> ItemSender:
        connection = call.answer_to.connection
        with self._env.lock:
            sender = self._senders[call.task_id] = ItemSender(self._parts, call)
            call.sends(sender)
            senders = connection.state.get("senders")
            if senders is None:
                senders = connection.state["senders"] = set()
                connection.on_close(partial(_stop_all, senders))
            senders.add(sender)
            if task.is_cancelled and call.spec.type == common_pb2.ACTOR_TASK:
                sender.stop()  # the cancel came before there was a sender to stop
        return sender

    def _close(self, sender: ItemSender, call: Call) -> None:
        with self._env.lock:
            sender.close()
            call.answer_to.connection.state["senders"].discard(sender)
            if self._senders.get(call.task_id) is sender:
                del self._senders[call.task_id]

    def _rest(self, sender: ItemSender) -> None:
        """Waits until there is room, or the owner is gone, or this process leaves."""
        env = self._env
        while True:
            waiter = Waiter(env.reactor)
            with env.lock:
                if env.reactor.is_closed or sender.start_wait(waiter.set):
                    return
            with self._rests(sender):
                self._blocked.wait(waiter, None)

    async def _rest_async(self, sender: ItemSender) -> None:
        loop = asyncio.get_running_loop()
        while True:
            room = asyncio.Event()
            with self._env.lock:
                if sender.start_wait(partial(_set_on, loop, room)):
                    return
            with self._rests(sender):
                await room.wait()

    def _rests(self, sender: ItemSender) -> contextlib.AbstractContextManager[None]:
        """Around a wait for room."""
        if not sender.is_ahead:
            return contextlib.nullcontext()
        made, taken = sender.num_made, sender.num_taken
        what = f"its caller, who has taken {taken} of the {made} items that it yielded"
        unblock = "take items of it, or let it run further ahead (_generator_backpressure_num_objects)"
        return self._blocked.noted(WaitCode.BACKPRESSURE, what, sender.taken_by, sender.task_id, unblock)


def _takes(generator: GeneratorType[Any, Any, Any]) -> bool:
    """Whether the generator may be sent a value. A generator in `yield from` hands the value on, and not
    every iterator takes one."""
    inner = generator.gi_yieldfrom
    while type(inner) is GeneratorType:
        inner = inner.gi_yieldfrom
    return inner is None or hasattr(inner, "send")


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _stop_all(senders: set[ItemSender], reason: str) -> None:
    """The connection of these senders has ended."""
    for sender in list(senders):
        sender.stop()


class Failed(NamedTuple):
    """Stands for a value that was not yielded."""

    error: Exception


def first_items(generator: Any, num_returns: int, name: str, keeps_first: bool) -> Any:
    """A fixed number of returns out of a generator: its first items, as in Ray.

    The generator may raise, or yield fewer items, which is a ValueError. If `keeps_first`, the items that
    came before stay, and the other returns are Failed. Otherwise the error is raised: a task that is run
    again yields everything again.
    """
    values: list[Any] = []
    try:
        with contextlib.closing(generator):
            for value in itertools.islice(generator, num_returns):
                values.append(value)  # noqa: PERF402 - these stay when the next one is an error
        if len(values) < num_returns:
            raise ValueError(f"{name}() has num_returns={num_returns} but yielded only {len(values)} values")
    except Exception as error:
        if not (values and keeps_first):
            raise
        # This frame holds the values, which would stay as long as the error does. So the error goes without.
        trace = raw_error.traceback_of(error)
        raw_error.set_traceback(error, trace and trace.tb_next)
        values += [Failed(error)] * (num_returns - len(values))
    return values[0] if num_returns == 1 else values

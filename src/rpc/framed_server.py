"""The answering end of a framed connection: requests in, servicers' methods run, answers out.

Requests are started in the order of their arrival, by a dispatcher: one task per connection that takes
request after request and runs each handler itself. A handler that never really waits costs no task. When one
does wait, the dispatcher becomes that handler's task for the rest of its life, and another dispatcher goes on
with the next request: so a handler always runs in a task of its own from its first line (asyncio.timeout and
current_task work), and later requests pass it.

A client that does not read its answers is not read from: above framed_connection.WRITE_HIGH_BYTES reading
stops, the dispatcher and the streams wait, and only handlers that already run can add to it. At most
CALLS_MAX calls of a connection run at once.

When the connection ends, its running handlers are cancelled; then its on_close callbacks have run.
CANCEL cancels one handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from ray_mono.rpc import framing
from ray_mono.rpc.errors import error_of_handler, serialize_reply, unknown_method, unparsable_request
from ray_mono.rpc.framed_connection import FramedConnection
from ray_mono.rpc.framing import Frame, FrameError, MethodPaths
from ray_mono.rpc.surface import Handler, Handlers, RpcError, StatusCode

# Long polls are cheap (a task each), but not free: 100,000 take some 200 MB.
CALLS_MAX = 100_000
# A stream that never waits lets others run after so many items.
STREAM_ITEMS_PER_TURN = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FramedCallContext:
    """surface.CallContext; shared by all calls of a connection that are alike."""

    connection: ServerConnection
    is_oneway: bool


class ServerConnection(FramedConnection):
    """One client (surface.Connection)."""

    def __init__(self, handlers: Handlers, peer: str) -> None:
        super().__init__()
        self.peer = peer
        self.state: dict[str, Any] = {}
        self._handlers = handlers
        self._paths = MethodPaths()
        self._context = FramedCallContext(self, is_oneway=False)
        self._oneway_context = FramedCallContext(self, is_oneway=True)
        self._inbox: deque[Frame] = deque()
        # The dispatcher; None when there is none (it became a handler's task), until more arrives.
        self._dispatcher: asyncio.Task[None] | None = None
        self._more: asyncio.Future[None] | None = None  # what an idle dispatcher waits on
        # Who waits until the client has read enough.
        self._write_waiters: list[asyncio.Future[None]] = []
        # Handlers that wait for something, by call id; one-way ones, which have no id, by a negative number.
        self._running: dict[int, asyncio.Task[None]] = {}
        self._oneway_count = 0

    def __str__(self) -> str:
        return f"from {self.peer}"

    async def until_handlers_ended(self, timeout_s: float) -> list[str]:
        """After the end: waits for the cancelled handlers.
        Returns the names of those that go on nevertheless.
        """
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        return [task.get_name() for task in tasks if not task.done()]

    def _tasks(self) -> list[asyncio.Task[None]]:
        tasks = dict.fromkeys(self._running.values())
        if self._dispatcher is not None:
            tasks[self._dispatcher] = None
        return list(tasks)

    # ---- incoming

    def _on_frames(self, frames: list[Frame]) -> None:
        self._inbox.extend(frames)
        if self._dispatcher is None:
            self._start_dispatcher()
        elif self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _start_dispatcher(self) -> None:
        self._dispatcher = self._loop.create_task(self._dispatch(), name="dispatcher")

    async def _dispatch(self) -> None:
        try:
            rest = None
            while rest is None:
                # A handler may have closed the connection; then nothing cancelled the task that it ran in.
                if self._end_reason:
                    return
                if self.is_write_paused:
                    await self.until_writable()
                elif not self._inbox:
                    self._more = self._loop.create_future()
                    await self._more
                rest = self._dispatch_inbox()
        except FrameError as error:
            self.protocol_error(error)
            return
        except asyncio.CancelledError:
            # Nobody would read this connection any more.
            self.abort("its dispatcher was cancelled")
            raise
        task, self._dispatcher = self._dispatcher, None
        if self._inbox:
            self._start_dispatcher()
        if task is not None:
            await self._finish(task, rest)

    def _dispatch_inbox(self) -> _Rest | None:
        """Starts what is in the inbox, until it is empty, or the client must read first, or a handler waits:
        then returns the rest of that one, which the dispatcher's task must run. Raises FrameError."""
        inbox = self._inbox
        was_corked = self.cork()
        try:
            while inbox and not self.is_write_paused:
                kind, number, call_id, payload = inbox.popleft()
                if kind == framing.REQUEST or kind == framing.ONEWAY:
                    rest = self._start(number, call_id, payload, kind == framing.ONEWAY)
                    if rest is not None:
                        return rest
                elif kind == framing.CANCEL:
                    task = self._running.pop(call_id, None)
                    if task is not None:
                        task.cancel()
                elif kind == framing.METHOD:
                    self._paths.add(number, payload)
                else:
                    raise FrameError(f"a client does not send frames of kind {kind}")
        finally:
            self.uncork(was_corked)
        return None

    # ---- one call

    def _start(self, number: int, call_id: int, payload: bytes, is_oneway: bool) -> _Rest | None:
        """Runs one handler to its end or its first wait; then registers it and returns the rest of it."""
        path = self._paths.path_of(number)
        if call_id in self._running:
            raise FrameError(f"call id {call_id} is still in use")
        if is_oneway:
            self._oneway_count += 1
            call_id = -self._oneway_count
        handler = self._handlers.get(path)
        if handler is None:
            self._answer_error(call_id, unknown_method(path))
            return None
        try:
            request = handler.request_type.FromString(payload)
        except Exception as error:
            self._answer_error(call_id, unparsable_request(path, error))
            return None
        if len(self._running) >= CALLS_MAX:
            message = f"{path}: {CALLS_MAX} calls of this connection are running already"
            self._answer_error(call_id, RpcError(StatusCode.RESOURCE_EXHAUSTED, message))
            return None
        context = self._oneway_context if is_oneway else self._context
        if handler.streaming:
            task = self._loop.create_task(self._run_stream(call_id, path, handler, request), name=path)
            self._running[call_id] = task
            return None
        try:
            call = handler.function(request, context)
            waits_for = call.send(None)
        except StopIteration as stop:
            self._answer(call_id, path, handler, stop.value)
        except (Exception, asyncio.CancelledError) as error:
            self._answer_exception(call_id, path, error)
        else:
            if self._dispatcher is not None:
                self._running[call_id] = self._dispatcher
            return _Rest(call_id, path, handler, call, waits_for)
        return None

    async def _finish(self, task: asyncio.Task[None], rest: _Rest) -> None:
        """The rest of a handler that waits, in its own task."""
        call_id, path, handler = rest.call_id, rest.path, rest.handler
        task.set_name(path)
        try:
            reply = await rest
        except (Exception, asyncio.CancelledError) as error:
            if self._is_wanted(call_id, task):
                self._answer_exception(call_id, path, error)
            elif not isinstance(error, asyncio.CancelledError):
                logger.warning("the handler of %s failed when it was cancelled", path, exc_info=error)
        else:
            if self._is_wanted(call_id, task):
                self._answer(call_id, path, handler, reply)

    async def _run_stream(self, call_id: int, path: str, handler: Handler[Any, Any], request: Any) -> None:
        task = self._running[call_id]
        try:
            context = self._oneway_context if call_id < 0 else self._context
            async with contextlib.aclosing(handler.function(request, context)) as items:
                await self._send_items(call_id, handler, items)
        except (Exception, asyncio.CancelledError) as error:
            if self._is_wanted(call_id, task):
                self._answer_exception(call_id, path, error)
            elif not isinstance(error, asyncio.CancelledError):
                logger.warning("the stream %s failed when it was cancelled", path, exc_info=error)
        else:
            if self._is_wanted(call_id, task) and call_id > 0:
                self.send(framing.encode(framing.END, 0, call_id, b""))

    async def _send_items(self, call_id: int, handler: Handler[Any, Any], items: AsyncIterator[Any]) -> None:
        count = 0
        async for item in items:
            if call_id > 0:
                self.send(framing.encode(framing.ITEM, 0, call_id, serialize_reply(handler, item)))
            count += 1
            if self.is_write_paused:
                await self.until_writable()
            elif count % STREAM_ITEMS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _is_wanted(self, call_id: int, task: asyncio.Task[None]) -> bool:
        """Takes the call off the books;
        False if it was cancelled before (its id may by now be another call's).
        """
        if self._running.get(call_id) is not task:
            return False
        del self._running[call_id]
        return not self._end_reason

    # ---- answers

    def _answer(self, call_id: int, path: str, handler: Handler[Any, Any], reply: Any) -> None:
        if call_id < 0:
            return
        try:
            frame = framing.encode(framing.REPLY, 0, call_id, serialize_reply(handler, reply))
        except Exception as error:
            self._answer_exception(call_id, path, error)
        else:
            self.send(frame)

    def _answer_exception(self, call_id: int, path: str, exception: BaseException) -> None:
        if isinstance(exception, asyncio.CancelledError):
            error = RpcError(StatusCode.CANCELLED, f"{path} was cancelled by the server")
        else:
            error = error_of_handler(exception, path)
        self._answer_error(call_id, error)

    def _answer_error(self, call_id: int, error: RpcError) -> None:
        if call_id > 0:
            self.send(framing.encode_error(call_id, error))
        else:
            logger.warning("a one-way message from %s failed: %s", self.peer, error)

    # ---- backpressure and the end

    def pause_writing(self) -> None:
        super().pause_writing()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._transport.resume_reading()
        waiters, self._write_waiters = self._write_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until_writable(self) -> None:
        """Waits until the client has read enough, or the connection ends (which cancels who waits)."""
        while self.is_write_paused and not self._end_reason:
            waiter = self._loop.create_future()
            self._write_waiters.append(waiter)
            await waiter

    def _on_ended(self, reason: str) -> None:
        self._inbox.clear()
        current = asyncio.current_task(self._loop)
        # The dispatcher may be one of them, when it is about to become a handler's task;
        # each is cancelled once.
        for task in self._tasks():
            # A handler may close its own connection; it ends by itself.
            if task is not current:
                task.cancel()


class _Rest:
    """Awaits what is left of a handler's coroutine that already ran up to its first wait."""

    def __init__(
        self,
        call_id: int,
        path: str,
        handler: Handler[Any, Any],
        coroutine: Coroutine[Any, Any, Any],
        waits_for: Any,
    ) -> None:
        self.call_id = call_id
        self.path = path
        self.handler = handler
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, waits_for = self._coroutine, self._waits_for
        while True:
            error: BaseException | None = None
            value = None
            try:
                value = yield waits_for
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as thrown:
                error = thrown
            try:
                waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value

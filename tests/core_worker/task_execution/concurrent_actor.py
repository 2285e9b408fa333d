"""Actors that run calls beside each other, which a test holds and lets go."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.core_worker.worker_scene import CODE, WAIT_S, Code, Pushed, Worker


class Log:
    """What an actor's code did, in order, as the test takes it."""

    def __init__(self) -> None:
        self._steps: queue.Queue[str] = queue.Queue()
        self.add = self._steps.put

    def next(self) -> str:
        return self._steps.get(timeout=WAIT_S)

    @property
    def is_empty(self) -> bool:
        return self._steps.empty()


class Concurrent(Worker):
    """An actor whose method `wait` waits until it is let go by name, and `do` runs what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.go: dict[str, threading.Event] = {}

    def start(self, *names: str, group: str = "") -> list[Pushed]:
        spec = self.method("wait", group=group)
        for name in names:
            self.go[name] = threading.Event()
        calls = [self.ask(spec, name) for name in names]
        self.run()
        return calls

    def do(self, function: Callable[[], Any], **fields: Any) -> Pushed:
        """Has the actor run it."""
        key = b"do %d" % len(CODE)
        CODE[key] = function
        call = self.ask(self.method("do", **fields), Code(key))
        self.run()
        return call

    def let_go(self, *names: str) -> None:
        for name in names:
            self.go[name].set()


class Group(Concurrent):
    """An async actor that runs `limit` calls at a time. Its calls wait until they are let go by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int = 1, **creation: Any) -> None:
        super().__init__(monkeypatch)
        self.log = log = Log()
        go = self.go

        class Actor:
            async def wait(self, name: str) -> str:
                log.add(name)
                try:
                    while not go[name].is_set():
                        await asyncio.sleep(0.001)
                finally:
                    log.add(f"end of {name}")
                return f"value of {name}"

            async def do(self, function: Callable[[], Any]) -> Any:
                value = function()
                return await value if inspect.iscoroutine(value) else value

        self.actor(Actor, is_asyncio=True, max_concurrency=limit, **creation)

    def start_on_loop(self, *names: str) -> list[Pushed]:
        """As `start`. Returns when the calls have come to the actor's loop, where they run or wait."""
        loops: list[asyncio.AbstractEventLoop] = []
        assert self.do(lambda: loops.append(asyncio.get_running_loop())).value is None
        calls = self.start(*names)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loops[0]).result(WAIT_S)
        return calls

    def close(self) -> None:
        self.execution.close_actor()

"""A simulated process: a name on a host, and the tasks and callbacks that live and die with it.

Real services are objects in one interpreter here; what makes them processes is the context that their
callbacks run in. Everything that a callback schedules inherits it, so killing the process silences all of it
at once, without running a line of clean-up.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from ray_mono.core_worker.core_worker import CoreWorker
from tests.simulation.baton import SimThread
from tests.simulation.handles import CURRENT_PROCESS, SimTask
from tests.simulation.loop import VirtualLoop


class SimProcess:
    """One process. Made by SimNetwork.start_process; ended by kill()."""

    def __init__(self, loop: VirtualLoop, host_name: str, name: str, pid: int) -> None:
        self.loop = loop
        self.host_name = host_name
        self.name = name
        self.pid = pid
        self.is_alive = True
        self.stopped_until_s = 0.0
        self.has_run = False
        self.core: CoreWorker | None = None
        """Of a driver or worker that has joined."""
        self.site: Any = None
        self.judge: Callable[..., Any] = lambda judgement, *args: judgement(*args)
        self.main_thread: SimThread | None = None
        self.on_sigint: Callable[[int, Any], None] | None = None
        self.context = contextvars.Context()
        self.context.run(CURRENT_PROCESS.set, self)
        self._on_death: list[Callable[[str], None]] = []

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str | None = None) -> SimTask:
        """Runs a coroutine inside this process."""
        return self.loop.create_task(coroutine, name=name, context=self.context.copy())

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function inside this process, now."""
        return self.context.copy().run(function, *args)

    def on_death(self, callback: Callable[[str], None], is_first: bool = False) -> None:
        """callback(reason) runs outside the process when it is killed (at once if it was). is_first: before
        all others, which end its connections."""
        if self.is_alive:
            self._on_death.insert(0 if is_first else len(self._on_death), callback)
        else:
            callback("it was dead already")

    def stop(self, until_s: float) -> None:
        """SIGSTOP, and SIGCONT at that time."""
        self.stopped_until_s = max(self.stopped_until_s, until_s)

    @property
    def is_stopped(self) -> bool:
        return self.stopped_until_s > self.loop.time()

    def kill(self, reason: str) -> None:
        """Ends the process at this instant, as SIGKILL does. Nothing happens to one that is dead."""
        if not self.is_alive:
            return
        self.is_alive = False
        outside = contextvars.Context()
        for callback in self._on_death:
            outside.copy().run(callback, reason)

    def __repr__(self) -> str:
        return f"SimProcess({self.name}, pid {self.pid}{'' if self.is_alive else ', dead'})"

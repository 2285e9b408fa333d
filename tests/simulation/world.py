"""One simulated world: a loop, a network, clocks and generators, all from one seed.

Each user of randomness gets a generator of its own, named: drawing more in one place does not change what
another place draws. A run fails on the first error that a service logs, on the first exception that nobody
handles, and on a checker's word. Whatever fails carries the seed, and the last messages before it.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import logging
import random
import tempfile
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from ray_mono.object_manager.seams import PeerAddress
from tests.simulation.baton import Baton, Killed
from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.loop import SimulationError, VirtualLoop, new_loop
from tests.simulation.machine import Machine
from tests.simulation.network import NetworkKnobs, SimNetwork
from tests.simulation.process import SimProcess
from tests.simulation.scripts import Scripts
from tests.simulation.trace import Trace
from tests.simulation.transport import SimTransport

T = TypeVar("T")

SECRET = "the secret of the simulated cluster"
EPOCH_S = 1_700_000_000.0
"""Wall-clock time at the start of every simulation."""


class SimClock:
    """Clock: the loop's virtual time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def time_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return EPOCH_S + self._loop.time()

    def awake_or_asleep_s(self) -> float:
        return self._loop.time()


class _ErrorLog(logging.Handler):
    """Turns errors that services log into failures of the run, but for those that end as a fault's do."""

    def __init__(self, errors: list[str], baton: Baton, explained: tuple[str, ...]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors
        self._baton = baton
        self._explained = explained

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().endswith(self._explained):
            return
        process = CURRENT_PROCESS.get()
        if process is None or process.is_alive:
            self._errors.append(f"{process.name if process else '-'} logged: {self.format(record)}")
        elif self._baton.current is not None:
            raise Killed  # a thread that is unwound, and swallowed that


class World:
    """Use it in a `with`: the end cleans up. `check` functions run at the end of every instant of virtual
    time. explained: how errors end that services may log in this run.
    """

    def __init__(
        self,
        seed: int,
        knobs: NetworkKnobs | None = None,
        trace: Trace | None = None,
        explained: tuple[str, ...] = (),
    ) -> None:
        self.seed = seed
        self.loop = new_loop()
        self.trace = trace or Trace()
        self.clock = SimClock(self.loop)
        self.network = SimNetwork(self.loop, self.rng("network"), self.trace, knobs or NetworkKnobs())
        self.folder = ""
        self.stores: dict[PeerAddress, Any] = {}
        """The living object managers, by where others fetch from them."""
        self.baton = Baton(self.loop)
        self.machine = Machine(self.baton)
        self.scripts = Scripts()
        self._error_log = _ErrorLog(self.loop.errors, self.baton, explained)
        self._ending = contextlib.ExitStack()

    def rng(self, name: str) -> random.Random:
        """A generator that depends on the seed and the name alone."""
        return random.Random(f"{self.seed}/{name}")

    def transport(self, process: SimProcess) -> SimTransport:
        return SimTransport(self.network, process, SECRET)

    def judge(self, judgement: Callable[..., T], *args: Any) -> T:
        """Asks a checker, from within a simulated process: what it raises ends the run, whoever catches
        it."""
        try:
            return judgement(*args)
        except SimulationError as error:
            self.loop.errors.append(f"{self.loop.time():.6f} s: {type(error).__name__}: {error}")
            raise

    def check(self, check: Callable[[], None]) -> None:
        """check() runs at the end of every instant; what it raises ends the run."""
        self.loop.checks.append(check)

    def run(self, coroutine: Coroutine[Any, Any, T], limit_s: float) -> T:
        """Runs a coroutine outside of every process until it ends. limit_s: virtual seconds it may take."""
        try:
            task = self.loop.create_task(coroutine, name="the scenario", context=contextvars.Context())
            result: T = self.loop.run_until_complete(task, limit_s)
            return result
        except Exception as error:
            error.add_note(
                f"seed {self.seed} at {self.loop.time():.6f} s; threads that wait:\n{self.baton.describe()}\n"
                f"the last messages:\n{self.trace.tail()}"
            )
            raise

    def __enter__(self) -> World:
        logging.getLogger("ray_mono").addHandler(self._error_log)
        # What is freed when is part of the run: finalizers of cycles must not depend on what else is in
        # memory.
        gc.collect()
        gc.disable()
        gc.freeze()
        self.folder = self._ending.enter_context(tempfile.TemporaryDirectory(prefix="ray_mono-sim-"))
        self._ending.enter_context(self.machine.installed(self.folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.network.is_over = True
        self.baton.end()
        logging.getLogger("ray_mono").removeHandler(self._error_log)
        try:
            gc.collect()  # tells of exceptions that nobody looked at
            gc.enable()
            gc.unfreeze()
            unseen = list(self.loop.errors)
        finally:
            self.loop.end()
            self._ending.close()
        if unseen and error is None:
            failure = SimulationError("\n".join(unseen))
            failure.add_note(f"seed {self.seed}")
            raise failure


class UnjudgedWorld(World):
    """One whose judges are not asked: other runs have them."""

    def judge(self, judgement: Callable[..., Any], *args: Any) -> Any:
        """What was right there is taken to be right here."""

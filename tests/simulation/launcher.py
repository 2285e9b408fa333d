"""SimWorkerLauncher: the raylet's door to worker processes, which here are simulated ones on the raylet's
host.

Like the template it takes a moment to fork, tells the raylet of every end, and takes its workers with it when
the raylet dies.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.node_time import NS_PER_S
from ray_mono.raylet.worker.launcher import WorkerExit, WorkerOrder
from tests.simulation.checkers import Journal
from tests.simulation.core_process import Place, SimWorker, WorkerStart
from tests.simulation.process import SimProcess
from tests.simulation.world import World

FORK_DELAY_S = (0.005, 0.04)
REAP_DELAY_S = (0.0001, 0.005)
LEASE_POLL_S = (0.0, 0.5)
"""Between the end of the node's time and when the template sees it."""
TERMINATE_DELAY_S = (0.001, 0.05)
"""Between SIGTERM and a worker's end."""


class SimWorkerLauncher:
    """WorkerLauncher of one raylet."""

    def __init__(self, world: World, raylet: SimProcess, place: Place, journal: Journal) -> None:
        """place: where its workers join."""
        self._world = world
        self._raylet = raylet
        self._place = place
        self._journal = journal
        self._rng: random.Random = world.rng(f"{raylet.name} launcher")
        self._on_exit: Callable[[WorkerExit], None] = lambda exit_: None
        # By startup token: orders that are being forked (None), and workers.
        self._workers: dict[int, SimProcess | None] = {}
        self._is_closed = False
        self._lease_timer: asyncio.TimerHandle | None = None
        raylet.on_death(lambda _reason: self._raylet_died())

    async def open(self, on_exit: Callable[[WorkerExit], None], tasks: BackgroundTasks) -> None:
        self._on_exit = on_exit

    def start(self, order: WorkerOrder) -> None:
        self._workers[order.startup_token] = None
        self._world.loop.call_later(self._rng.uniform(*FORK_DELAY_S), self._fork, order)

    def kill(self, startup_token: int, force: bool) -> None:
        if startup_token not in self._workers:
            return
        delay_s = 0.0 if force else self._rng.uniform(*TERMINATE_DELAY_S)
        self._world.loop.call_later(delay_s, self._end, startup_token, 9 if force else 15)

    def registered(self, startup_token: int, pid: int) -> None:
        """Forks are told at once."""

    def cpu_time_s(self, startup_token: int) -> float | None:
        """Simulated tasks only sleep."""
        return 0.0 if self._workers.get(startup_token) is not None else None

    def found_dead(self, startup_token: int) -> WorkerExit | None:
        """Every end is told."""
        return None

    def lease_ends(self, at_ns: int, awake_ns: int) -> None:
        self._end_at(at_ns / NS_PER_S)

    def _end_at(self, at_s: float) -> None:
        if self._lease_timer is not None:
            self._lease_timer.cancel()
        at_s += self._rng.uniform(*LEASE_POLL_S)
        self._lease_timer = self._world.loop.call_at(at_s, self._time_is_over, context=contextvars.Context())

    def _time_is_over(self) -> None:
        """The template sees it when it runs."""
        stopped_until_s = self._world.network.stopped_until_s(self._raylet.host_name)
        if stopped_until_s > self._world.loop.time():
            self._end_at(stopped_until_s)
        else:
            self._end_all("its node's time is over")

    async def close(self) -> None:
        self._on_exit = lambda exit_: None
        self._is_closed = True
        for token in list(self._workers):
            self._end(token, 9)

    def living(self) -> list[SimProcess]:
        """The workers that run, oldest first: what a fault chooses from."""
        return [process for process in self._workers.values() if process is not None]

    # ---- inside

    def _fork(self, order: WorkerOrder) -> None:
        if order.startup_token not in self._workers:
            return  # killed before it was forked
        process = self._world.network.start_process(
            self._raylet.host_name, f"worker {order.worker_id.hex()[:8]}"
        )
        self._workers[order.startup_token] = process
        start = WorkerStart(order.worker_id, order.startup_token)
        process.on_death(lambda reason: self._died(order, process, reason))
        worker = SimWorker(self._world, process, start, self._place, self._journal)
        worker.start(worker.main)

    def _end(self, startup_token: int, signal: int) -> None:
        if startup_token not in self._workers:
            return
        process = self._workers[startup_token]
        if process is not None:
            process.kill(f"signal {signal}")
            return
        del self._workers[startup_token]
        self._tell(WorkerExit(startup_token, 0, 0, 0, "it was ended before it was started"))

    def _died(self, order: WorkerOrder, process: SimProcess, reason: str) -> None:
        """Outside of every process: the kernel and the template notice."""
        self._journal.worker_died(order.worker_id)
        del self._workers[order.startup_token]
        exit_ = WorkerExit(order.startup_token, process.pid, 0, 9, f"worker pid {process.pid}: {reason}")
        self._tell(exit_)

    def _tell(self, exit_: WorkerExit) -> None:
        if not self._is_closed:
            delay_s = self._rng.uniform(*REAP_DELAY_S)
            context = self._raylet.context.copy()
            self._world.loop.call_later(delay_s, lambda: self._on_exit(exit_), context=context)

    def _raylet_died(self) -> None:
        """The kernel ends the template and what it forked."""
        self._end_all("its raylet died")

    def _end_all(self, reason: str) -> None:
        self._is_closed = True
        for process in self.living():
            process.kill(reason)
        self._workers.clear()

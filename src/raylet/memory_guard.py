"""Keeps the node's memory from running out: kills a worker by the rules of `memory/` before the kernel kills
what it likes, and says so.

    usage ──► MemoryMonitor: is it time? ──► choose(): whom ──► LocalProcesses.kill ──► the usual report of a
    every memory_monitor_refresh_ms                                                      death, OUT_OF_MEMORY

Idle workers that use much are asked to end before anybody is killed: that loses nothing. One that owns what
others need refuses.

Ray's monitor counts how long a worker has had its lease. A lease serves many tasks here, so what counts is
how long its task runs: the worker's board names it, and each look sees whether it is still the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from ray_mono.common.limited_log import LimitedLog
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.effects import EndMode, WarnJob
from ray_mono.raylet.local_processes import LocalProcesses
from ray_mono.raylet.memory.killing_policy import RunningWorker, Victim, choose
from ray_mono.raylet.memory.memory_monitor import MemoryMonitor
from ray_mono.raylet.memory.memory_usage import Memory, MemoryUsage
from ray_mono.raylet.memory.oom_report import OomReport
from ray_mono.raylet.memory.process_memory import Processes, ProcessMemory
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.leases import WorkerLease
from ray_mono.raylet.worker.worker_pool import WorkerPool
from ray_mono.raylet.worker.worker_states import WorkerState

IDLE_BYTES_MIN = 100 << 20
"""An idle worker that uses less is left alone: the next one in its place would use as much."""
IDLE_ASK_AGAIN_S = 5.0
"""One that has refused may own nothing any more after this."""
IDLE_END_S = 1.0
"""How long those that were asked may take to end before somebody is killed all the same."""
JOBS_MAX = 1000
"""Jobs whose killed workers are counted. Beyond that the one that was counted first is forgotten."""

_RUN = (WorkerState.LEASED, WorkerState.ACTOR)
_REST = (WorkerState.IDLE, WorkerState.ENDING)

logger = logging.getLogger(__name__)


class MemoryGuard:
    """Of one raylet."""

    def __init__(
        self,
        config: RayletConfig,
        clock: Clock,
        memory: Memory,
        clients: Clients,
        pool: WorkerPool,
        leases: LeaseManager,
        processes: LocalProcesses,
        effects: EffectRunner,
    ) -> None:
        self._config = config
        self._clock = clock
        self._memory = memory
        self._clients = clients
        self._pool = pool
        self._leases = leases
        self._processes = processes
        self._effects = effects
        self._monitor = MemoryMonitor(config.memory_usage_threshold, config.memory_kill_wait_s)
        self._report = OomReport(config.host, config.node_id, config.memory_usage_threshold)
        # By worker: the number of the task that it began last, and when a look first saw that.
        self._begun: dict[bytes, tuple[int, float]] = {}
        # By job: how many of its workers were killed.
        self._killed: dict[bytes, int] = {}
        # By worker that was killed and may not be gone yet: what it had started.
        self._orphans: dict[bytes, list[ProcessMemory]] = {}
        # By worker that was asked to end a while ago, and has not worked since: when it was.
        self._asked: dict[bytes, float] = {}
        # As it was read last.
        self._usage: MemoryUsage | None = None
        self._log = LimitedLog(logger, clock.time_s, lines_max=1)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self._config.memory_monitor_refresh_ms / 1000)

    def look(self) -> None:
        """Kills a worker where that is due."""
        try:
            usage = self._usage = self._memory.usage()
            self._note_what_began()
            self._end_orphans()
            self._forget_asked()
            if self._monitor.is_due(usage, self._memory.has_memory, self._clock.time_s()):
                processes = self._memory.processes(usage)
                if self._ask_idle(processes):
                    return  # later looks see what that has brought
                victim = choose(self._running(processes))
                if victim is not None:
                    self._kill(victim, usage, processes)
                else:
                    self._log.warning("memory runs short, and no worker runs anything: %s", usage)
        except (OSError, ValueError) as error:
            # There is none to read, or no descriptor to read it by just now.
            self._log.warning("how much memory is used cannot be read: %s", error)

    def describe(self) -> dict[str, Any]:
        """For people."""
        usage = self._usage
        return {
            "of": usage.of if usage is not None else "not known",
            "used_bytes": usage.used_bytes if usage is not None else 0,
            "limit_bytes": usage.limit_bytes if usage is not None else 0,
            "threshold": self._config.memory_usage_threshold,
            "workers_killed_by_job": {job_id.hex(): times for job_id, times in self._killed.items()},
        }

    # ---- who runs what

    def _leased(self) -> Iterator[tuple[ClientProcess, WorkerLease]]:
        """Workers with a lease that were not told to end."""
        for worker in self._pool:
            client, lease = self._clients.get(worker.worker_id), self._leases.granted(worker.lease_id or b"")
            if worker.state in _RUN and client is not None and lease is not None:
                yield client, lease

    def _note_what_began(self) -> None:
        now_s, seen, self._begun = self._clock.time_s(), self._begun, {}
        for client, _ in self._leased():
            if client.board is not None:
                begun, last = client.board.last_begun, seen.get(client.worker_id)
                is_same = last is not None and last[0] == begun
                self._begun[client.worker_id] = last if last is not None and is_same else (begun, now_s)

    def _running(self, processes: Processes) -> Iterator[RunningWorker]:
        """The workers with a lease."""
        for client, lease in self._leased():
            request = lease.request
            _, task_began_s = self._begun.get(client.worker_id, (0, lease.granted_at_s))
            yield RunningWorker(
                worker_id=client.worker_id,
                pid=client.pid,
                job_id=request.job_id,
                runs=_what_runs(client, lease),
                is_actor=request.for_actor,
                owner_id=request.owner_id,
                is_retriable=request.is_retriable,
                began_at_s=lease.granted_at_s if request.for_actor else task_began_s,
                leased_at_s=lease.granted_at_s,
                used_bytes=processes.used_by(client.pid),
            )

    # ---- the end of one

    def _ask_idle(self, processes: Processes) -> bool:
        """Asks those to end that use much, each once. Whether one is about to end."""
        now_s = self._clock.time_s()
        for worker in [each for each in self._pool if each.state is WorkerState.IDLE]:
            client = self._clients.get(worker.worker_id)
            if client is None or worker.worker_id in self._asked:
                continue
            if processes.used_by(client.pid) >= IDLE_BYTES_MIN:
                self._asked[worker.worker_id] = now_s
                reason = "it was idle, and its node ran short of memory"
                self._effects.run(self._pool.end(worker, EndMode.ASK, reason, now_s))
        return any(
            now_s - asked_s < IDLE_END_S and self._is_in(worker_id, WorkerState.ENDING)
            for worker_id, asked_s in self._asked.items()
        )

    def _forget_asked(self) -> None:
        """Those that have worked since, or were asked long ago."""
        since_s = self._clock.time_s() - IDLE_ASK_AGAIN_S
        self._asked = {
            worker_id: asked_s
            for worker_id, asked_s in self._asked.items()
            if asked_s > since_s and self._is_in(worker_id, *_REST)
        }

    def _is_in(self, worker_id: bytes, *states: WorkerState) -> bool:
        worker = self._pool.get(worker_id)
        return worker is not None and worker.state in states

    def _kill(self, victim: Victim, usage: MemoryUsage, processes: Processes) -> None:
        config, worker = self._config, victim.worker
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.OUT_OF_MEMORY,
            message=self._report.cause(victim, usage, processes, self._named()),
            oom_retries=common_pb2.OomRetries(
                retries_max=0 if victim.is_last else config.task_oom_retries,
                pause_s=config.task_oom_retry_delay_base_ms / 1000,
            ),
        )
        self._processes.kill(worker.worker_id, True, cause)
        family = processes.family(worker.pid)
        self._orphans[worker.worker_id] = [process for process in family if process.pid != worker.pid]
        self._monitor.killed(family, self._clock.time_s())
        times = self._killed[worker.job_id] = self._killed.get(worker.job_id, 0) + 1
        if len(self._killed) > JOBS_MAX:
            del self._killed[next(iter(self._killed))]
        if not times & (times - 1):
            warning = self._report.warning(victim, usage, times)
            self._effects.run([WarnJob(worker.job_id, "out_of_memory", warning)])

    def _end_orphans(self) -> None:
        """Ends what a killed worker had started, once that is gone: it has memory, too, and its task may run
        again. Not before, or the task could tell of it."""
        for worker_id in [each for each in self._orphans if self._clients.get(each) is None]:
            for process in self._orphans.pop(worker_id):
                self._memory.kill(process)

    def _named(self) -> dict[int, str]:
        """What the processes of the cluster are, by pid."""
        leases = {client.worker_id: lease for client, lease in self._leased()}
        named = {}
        for client in self._clients:
            lease = leases.get(client.worker_id)
            runs = _what_runs(client, lease) if lease is not None else ""
            if client.is_driver:
                runs = f"driver of job {client.job_id.hex()}"
            named[client.pid] = runs or "idle worker"
        return named


def _what_runs(client: ClientProcess, lease: WorkerLease) -> str:
    """As a sentence has it; empty between two tasks."""
    if lease.request.for_actor:
        return f"actor {lease.request.task_name.removesuffix('.__init__')}"
    name = client.board.running() if client.board is not None else ""
    return f"task {name}" if name else "" if client.board is not None else "a task"

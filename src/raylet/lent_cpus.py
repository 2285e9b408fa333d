"""CPUs of workers whose tasks wait, though not in `get`: for a file, a lock, another machine.

Such a worker does not say that it waits. Whoever holds its lease asks for its CPUs where tasks need them that
were to begin before its task (the core worker's overtaking.py). They are lent as those of a worker that
blocks in `get` are, if the worker, with all processes that it started, has used next to none since it was
named last. The lease's end ends that.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.world import Clock
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.worker.launcher import WorkerLauncher

IDLE_SHARE = 0.2
"""Of one CPU. To look for a file each millisecond takes less; a task that computes has more, also on a busy
machine."""
LATELY_S = 5.0
"""What was seen longer ago says nothing of the task that runs now."""


class LentCpus:
    """Of one raylet."""

    def __init__(
        self,
        clock: Clock,
        clients: Clients,
        leases: LeaseManager,
        launcher: WorkerLauncher,
        effects: EffectRunner,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._leases = leases
        self._launcher = launcher
        self._effects = effects
        # By lease: when it was named last, and how much CPU its worker had used.
        self._seen: dict[bytes, tuple[float, float]] = {}

    def lend(self, lease_ids: Sequence[bytes], most: int) -> list[bytes]:
        """Lends the CPUs of so many of these leases, and returns those."""
        now_s = self._clock.time_s()
        self._seen = {each: seen for each, seen in self._seen.items() if now_s - seen[0] < LATELY_S}
        lent: list[bytes] = []
        for lease_id in lease_ids:
            lease = self._leases.granted(lease_id)
            worker = self._clients.get(lease.worker_id) if lease is not None and lease.worker_id else None
            used_s = self._launcher.cpu_time_s(worker.startup_token) if worker is not None else None
            if lease is None or lease.worker_id is None or used_s is None:
                continue
            before = self._seen.get(lease_id)
            self._seen[lease_id] = now_s, used_s
            if before is None or len(lent) >= most:
                continue
            if used_s - before[1] < IDLE_SHARE * (now_s - before[0]):
                lent.append(lease_id)
                self._effects.run(self._leases.worker_blocked(lease.worker_id, lease_id, True, now_s))
        return lent

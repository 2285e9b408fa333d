"""CPUs of workers whose tasks wait, though not in `get`: for a file, a lock, another machine.

Such a worker does not say that it waits. Whoever holds its lease asks for its CPUs where tasks need them that
were to begin before its task (the core worker's overtaking.py). They are lent as those of a worker that
blocks in `get` are, if the worker, with all processes that it started, has used next to none since it was
named last. They are its own again as soon as it uses some, or comes out of a `get`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.world import Clock
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.worker.launcher import WorkerLauncher

IDLE_SHARE = 0.2
"""Of one CPU. To look for a file each millisecond takes less; a task that computes has more, also on a busy
machine."""
LOOK_S = 1.0
LATELY_S = 5.0
"""What was seen longer ago says nothing of the task that runs now."""


class LentCpus:
    """Of one raylet."""

    def __init__(
        self,
        clock: Clock,
        clients: Clients,
        leases: LeaseManager,
        ledger: ResourceLedger,
        launcher: WorkerLauncher,
        effects: EffectRunner,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._leases = leases
        self._ledger = ledger
        self._launcher = launcher
        self._effects = effects
        # By lease: when it was looked at last, and how much CPU its worker had used.
        self._seen: dict[bytes, tuple[float, float]] = {}
        # Those that are lent; an ordered set.
        self._lent: dict[bytes, None] = {}

    def lend(self, lease_ids: Sequence[bytes], most: int) -> list[bytes]:
        """Lends the CPUs of so many of these leases, those counted that are lent already. Returns all of
        them that are."""
        self.look()
        lent = [lease_id for lease_id in lease_ids if lease_id in self._lent]
        for lease_id in lease_ids:
            is_idle = lease_id not in self._lent and self._is_idle(lease_id)
            if is_idle and len(lent) < most:
                lent.append(lease_id)
                self._lent[lease_id] = None
                self._block(lease_id, True)
        return lent

    def look(self) -> None:
        """Sees to those that are lent. To be called every LOOK_S or so, and before others are."""
        now_s = self._clock.time_s()
        for lease_id in list(self._lent):
            if not self._ledger.is_blocked(lease_id):
                del self._lent[lease_id]  # it has ended, or come out of a `get`
            elif now_s - self._seen[lease_id][0] >= LOOK_S and not self._is_idle(lease_id):
                del self._lent[lease_id]
                self._block(lease_id, False)
        self._seen = {
            lease_id: seen
            for lease_id, seen in self._seen.items()
            if lease_id in self._lent or now_s - seen[0] < LATELY_S
        }

    def _is_idle(self, lease_id: bytes) -> bool:
        """Whether its worker has used next to no CPU since the last such look. Not if there was none."""
        now_s, before, lease = self._clock.time_s(), self._seen.get(lease_id), self._leases.granted(lease_id)
        if before is not None and now_s - before[0] < LOOK_S / 2:
            return False  # so short a time says nothing
        worker = self._clients.get(lease.worker_id) if lease is not None and lease.worker_id else None
        used_s = self._launcher.cpu_time_s(worker.startup_token) if worker is not None else None
        if used_s is None:
            return False
        self._seen[lease_id] = now_s, used_s
        return before is not None and used_s - before[1] < IDLE_SHARE * (now_s - before[0])

    def _block(self, lease_id: bytes, is_blocked: bool) -> None:
        lease, now_s = self._leases.granted(lease_id), self._clock.time_s()
        if lease is not None and lease.worker_id is not None:
            self._effects.run(self._leases.worker_blocked(lease.worker_id, lease_id, is_blocked, now_s))

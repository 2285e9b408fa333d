"""Until when this node may run actors: a lease from the head, renewed each time that the head says that the
node is alive.

The node counts from when it asked, by a clock that does not stop while the machine sleeps. So its time is
over before the head, which counts from its answer, starts the actors elsewhere (gcs/node_fences.py). It may
be cut off, or the head may be dead: a node cannot tell, and it waits for both equally long. Then three see to
it that no code of an actor runs here, each by itself and by the same clock:

    the raylet      ends, and the node with it
    the template    kills the workers, also while the raylet is stopped
    each worker     of an actor ends by itself, also where both are stopped or the template is dead; and looks
                    before it begins a call of an actor, also where the whole node was stopped

Beside a head that none elsewhere can take over from (its store is on this machine) only the time awake
counts: nobody starts the node's actors elsewhere while the machine sleeps. So a laptop may sleep.
"""

from __future__ import annotations

from ray_mono.common.node_time import NS_PER_S
from ray_mono.common.world import Clock
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.worker.launcher import WorkerLauncher

RENEWALS = 12
"""In the time of a lease. A head that is away costs a node as much less than its lease as passes between
two."""


class HeadLease:
    """Of one raylet. Times are its now_s()."""

    def __init__(
        self,
        duration_s: float,
        clock: Clock,
        launcher: WorkerLauncher,
        clients: Clients,
        is_beside_head: bool = False,
    ) -> None:
        """The first one begins now: until it registers the node runs no actors. is_beside_head: as above."""
        self._duration_s = duration_s
        self._is_beside_head = is_beside_head
        self.now_s = clock.time_s if is_beside_head else clock.awake_or_asleep_s
        self.ends_s = self.now_s() + duration_s
        self._clock = clock
        self._launcher = launcher
        self._clients = clients

    @property
    def period_s(self) -> float:
        """Between two renewals."""
        return self._duration_s / RENEWALS

    def confirmed(self, asked_s: float) -> None:
        """A head said that this node is alive, asked at this time."""
        self.ends_s = max(self.ends_s, asked_s + self._duration_s)
        self._launcher.lease_ends(*self._end_ns())
        for client in self._clients:
            self.tell(client)

    def tell(self, client: ClientProcess) -> None:
        if client.board is not None:
            client.board.lease_ends(*self._end_ns())

    def _end_ns(self) -> tuple[int, int]:
        """As in common/node_time.py."""
        end_ns = round(self.ends_s * NS_PER_S)
        if not self._is_beside_head:
            return end_ns, 0
        left_s = self.ends_s - self.now_s()
        return round((self._clock.awake_or_asleep_s() + left_s) * NS_PER_S), end_ns

    def is_over(self) -> bool:
        return self.now_s() >= self.ends_s

"""The machine that knows until when a node that is held to be dead may still run actors.

No two incarnations of an actor run at the same time. A node that is silent may only be cut off, and run on.
So each node has a lease: for `head_lease_s` after the head last confirmed it, its actors may run. The node
counts from when it asked, this head from when it was asked, which is later. When the node's time is over it
kills its workers. A margin later the head starts their actors elsewhere: for the node's end, and for two
clocks that do not go alike. A node whose processes have ended is not waited for.

A head that takes over knows no times of the one before. That one confirms nothing any more, so the time of
the takeover stands for all of its confirmations. On an empty store it does not even know the nodes: one that
the head before held to be dead is named by nobody. So whatever node it does not know has that time as well,
and has it under the next head, on the store of this one.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_mono.common.ids import NodeID

CLOCKS_DIFFER = 1 / 20
"""A node's clock may go slower than the head's by this part."""


class NodeFences:
    """Times are monotonic seconds of the head's clock, given by the caller."""

    def __init__(self, margin_s: float) -> None:
        """margin_s: beyond what the clocks may differ by."""
        self._margin_s = margin_s
        # Of nodes that are held to be alive.
        self._confirmed_s: dict[NodeID, float] = {}
        # Of dead ones. What is over has ended.
        self._end_s: dict[NodeID, float] = {}
        # Of nodes that this head does not know.
        self._end_of_unknown_s = 0.0
        self._taken_over_s: float | None = None

    def takes_over(self, head_lease_s: float, now_s: float) -> None:
        """A node of the head before has this lease, as it tells, or the store. That head has confirmed
        nothing since the first of these was heard of."""
        if self._taken_over_s is None:
            self._taken_over_s = now_s
        end_s = self._taken_over_s + self._after_s(head_lease_s)
        self._end_of_unknown_s = max(self._end_of_unknown_s, end_s)

    def _after_s(self, head_lease_s: float) -> float:
        """How long after a confirmation nothing runs any more."""
        return head_lease_s * (1 + CLOCKS_DIFFER) + self._margin_s if head_lease_s > 0 else 0.0

    def confirmed(self, node_id: NodeID, now_s: float) -> None:
        """A living node hears that it is alive."""
        self._confirmed_s[node_id] = now_s

    def died(self, node_id: NodeID, head_lease_s: float, now_s: float) -> None:
        """It is held to be dead, and its processes may live. head_lease_s: its own; 0 where it has none."""
        last_s = self._confirmed_s.pop(node_id, now_s)
        self._end_s[node_id] = last_s + self._after_s(head_lease_s)

    def ended(self, node_id: NodeID) -> None:
        """Its processes are gone."""
        self._confirmed_s.pop(node_id, None)
        self._end_s[node_id] = 0.0

    def forget(self, node_id: NodeID) -> None:
        """It ended long ago."""
        self._confirmed_s.pop(node_id, None)
        self._end_s.pop(node_id, None)

    def missing_worker_s(self, head_leases_s: Iterable[float], now_s: float) -> float:
        """For how long, at most, a worker runs that no living node names. 0: for ever.

        head_leases_s: of the nodes that are held to be alive. One may be cut off with a worker that started
        just before.
        """
        ends_s = [self._after_s(lease_s) for lease_s in head_leases_s]
        return max([self._end_of_unknown_s - now_s, *ends_s]) if ends_s and all(ends_s) else 0.0

    def left_s(self, node_id: NodeID | None, now_s: float) -> float:
        """How much longer actors may run on a dead node; 0 where they do not, and for None."""
        if node_id is None or node_id in self._confirmed_s:
            return 0.0
        return max(0.0, self._end_s.get(node_id, self._end_of_unknown_s) - now_s)

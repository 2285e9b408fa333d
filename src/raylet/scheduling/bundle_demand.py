"""Bundles of a placement group that wait for their turn: a request in the queue of leases. Pure.

A raylet that is asked for bundles takes what is free. A flood of tasks leaves nothing free, ever. So bundles
may wait as requests for leases do: for all of them together, on this node and no other. What fair_share.py
says of requests holds for them. When such a request has its turn, its bundles are held, and it is over.

It goes under the group's id: a group has one on each node at most. Like a request for an actor it comes from
the head, which decides what becomes of it, and tells drivers why it waits. So it does not end with its job,
and is never sent to another node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_mono.common.scheduling.resources import SCALE, UNIT_INSTANCE_RESOURCES, ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.scheduling.leases import LeaseRequest


def bundle_demand(
    group_id: bytes,
    job_id: bytes,
    bundles: Mapping[int, ResourceSet],
    node_id: bytes,
    requester: int,
    waited_s: float = 0.0,
) -> LeaseRequest:
    """node_id: this node. bundles: by index. requester: whose end withdraws it. waited_s: so far."""
    return LeaseRequest(
        lease_id=group_id,
        requester=requester,
        requester_node_id=b"",
        job_id=job_id,
        resources=_together(bundles.values()),
        placement_resources=ResourceSet(),
        strategy=Strategy(StrategyKind.NODE_AFFINITY, node_id),
        for_actor=True,
        task_name=f"placement group {group_id.hex()[:8]}",
        bundles=bundles,
        waited_s=waited_s,
    )


def _together(bundles: Iterable[ResourceSet]) -> ResourceSet:
    """Of accelerators whole ones where it is more than one: only such amounts can be free or not."""
    needed = ResourceSet.sum_of(bundles)
    return ResourceSet(
        {
            name: -(-amount // SCALE) * SCALE
            if name in UNIT_INSTANCE_RESOURCES and amount > SCALE
            else amount
            for name, amount in needed.items()
        }
    )

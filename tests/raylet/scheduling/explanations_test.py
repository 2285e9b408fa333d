"""What people are told of a lease that waits."""

from __future__ import annotations

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.explanations import best_node


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


def node(name: str, is_alive: bool = True, **total: float) -> NodeSnapshot:
    return NodeSnapshot(name.encode() * 28, name, 1, units(**total), units(), is_alive)


def test_the_nearest_node_is_the_one_that_lacks_least() -> None:
    nodes = [node("a", CPU=4), node("c", CPU=4, A=1), node("d", CPU=4, A=9, is_alive=False)]
    nearest = best_node(units(CPU=1, A=2), nodes)
    assert nearest is not None and nearest.host == "c"

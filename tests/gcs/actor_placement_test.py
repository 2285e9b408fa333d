"""Which node is asked for an actor, and what is said when none can be."""

from __future__ import annotations

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.actor_placement import NODES_TOLD_MAX, Demand, PlacementNode, choose_node, explain

A, B, C = (NodeID(letter * 28) for letter in (b"a", b"b", b"c"))


def node(node_id: NodeID, total: float, free: float, **more: float) -> PlacementNode:
    extra = {name: amount for name, amount in more.items()}
    return PlacementNode(
        node_id,
        "10.0.0.1",
        ResourceSet.from_units({"CPU": total, **extra}),
        ResourceSet.from_units({"CPU": free, **extra}),
    )


def needs(cpus: float = 1, **more: object) -> Demand:
    return Demand(ResourceSet.from_units({"CPU": cpus}), **more)  # type: ignore[arg-type]


def test_the_owners_node_is_taken_when_the_actor_fits_there() -> None:
    nodes = [node(A, 4, 4), node(B, 4, 1)]
    assert choose_node(needs(preferred_node_id=B), nodes) == B
    assert choose_node(needs(cpus=2, preferred_node_id=B), nodes) == A


def test_actors_gather_on_the_first_node_until_it_is_half_used_and_then_spread() -> None:
    assert choose_node(needs(), [node(A, 4, 3), node(B, 4, 4)]) == A
    assert choose_node(needs(), [node(A, 4, 2), node(B, 4, 4)]) == B
    assert choose_node(needs(), [node(A, 4, 1), node(B, 4, 2)]) == B


def test_spread_takes_the_node_that_is_used_least() -> None:
    assert choose_node(needs(is_spread=True, preferred_node_id=A), [node(A, 4, 3), node(B, 4, 4)]) == B


def test_where_nothing_is_free_a_node_that_could_hold_the_actor_is_asked() -> None:
    assert choose_node(needs(cpus=3), [node(A, 2, 2), node(B, 4, 0)]) == B
    assert choose_node(needs(cpus=5), [node(A, 2, 2), node(B, 4, 0)]) is None
    assert choose_node(needs(), []) is None


def test_hard_affinity_waits_for_its_node_and_soft_affinity_does_not() -> None:
    nodes = [node(A, 4, 4), node(B, 4, 0)]
    assert choose_node(needs(affinity_node_id=B), nodes) == B
    assert choose_node(needs(affinity_node_id=C), nodes) is None
    assert choose_node(needs(affinity_node_id=C, affinity_is_soft=True), nodes) == A


def test_an_explanation_names_what_is_needed_and_what_the_nodes_have() -> None:
    shortage = explain("Learner", needs(cpus=8), [node(A, 2, 1, gpu=1)])
    assert shortage.is_for_the_driver
    assert shortage.message == (
        "Actor Learner needs {CPU: 8}, which no node has; the cluster has node 61616161 (10.0.0.1) {CPU: 2, gpu: 1}."
    )


def test_an_explanation_tells_use_from_lack_and_both_from_a_start() -> None:
    busy = explain("Learner", needs(cpus=2), [node(A, 2, 1)])
    assert busy.is_for_the_driver and "which is in use" in busy.message and "{CPU: 1} free" in busy.message
    starting = explain("Learner", needs(), [node(A, 2, 1)])
    assert not starting.is_for_the_driver and "a worker is being started" in starting.message
    assert "no node has joined" in explain("Learner", needs(), []).message
    assert f"on node {C.hex()}" in explain("Learner", needs(affinity_node_id=C), [node(A, 2, 1)]).message


def test_an_explanation_stays_short_in_a_large_cluster() -> None:
    nodes = [node(NodeID(bytes([number]) * 28), 1, 1) for number in range(NODES_TOLD_MAX + 5)]
    assert explain("Learner", needs(cpus=2), nodes).message.endswith("and 5 more nodes.")

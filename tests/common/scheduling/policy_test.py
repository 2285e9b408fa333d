"""Which of some nodes takes the work: the choices that raylet and GCS share, without either."""

from __future__ import annotations

from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import (
    allowed,
    available,
    feasible,
    hybrid,
    least_used,
    next_in_turn,
    utilization,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


def node(name: str, free: float, total: float = 4, is_alive: bool = True) -> NodeSnapshot:
    return NodeSnapshot(name.encode() * 28, name, 1, units(CPU=total), units(CPU=free), is_alive)


def names(nodes: list[NodeSnapshot]) -> str:
    return "".join(node.host for node in nodes)


def cpu_use(node: NodeSnapshot) -> float:
    return utilization(node, units(CPU=1))


def affinity(name: str, is_soft: bool = False) -> Strategy:
    return Strategy(StrategyKind.NODE_AFFINITY, name.encode() * 28, is_soft)


def test_the_total_says_who_could_ever_hold_it_and_what_is_free_who_can_now() -> None:
    nodes = [node("a", 1), node("b", 4), node("c", 1, total=1)]
    assert names(feasible(units(CPU=2), nodes)) == "ab"
    assert names(available(units(CPU=2), nodes)) == "b"


def test_a_dead_node_holds_nothing() -> None:
    dead = [node("a", 4, is_alive=False)]
    assert feasible(units(CPU=1), dead) == [] and available(units(CPU=1), dead) == []


def test_hybrid_stays_at_the_preferred_node_while_it_is_there() -> None:
    nodes = [node("a", 4), node("b", 1)]
    assert hybrid(nodes, cpu_use, b"b" * 28).host == "b"
    assert hybrid(nodes[:1], cpu_use, b"b" * 28).host == "a"


def test_hybrid_packs_nodes_below_its_bound_and_spreads_above_it() -> None:
    assert hybrid([node("a", 3), node("b", 4)], cpu_use, pack_below=0.5).host == "a"
    assert hybrid([node("a", 2), node("b", 4)], cpu_use, pack_below=0.5).host == "b"
    assert hybrid([node("a", 1), node("b", 2)], cpu_use, pack_below=0.5).host == "b"


def test_hybrid_without_a_bound_takes_the_node_that_is_used_least() -> None:
    assert hybrid([node("a", 3), node("b", 4)], cpu_use).host == "b"


def test_ties_go_to_the_lowest_id_whatever_the_order() -> None:
    nodes = [node("c", 2), node("a", 2), node("b", 2)]
    assert hybrid(nodes, cpu_use).host == least_used(nodes, cpu_use).host == "a"
    assert hybrid(nodes[::-1], cpu_use).host == "a"


def test_spread_in_turn_takes_the_node_after_the_last_one_and_begins_anew() -> None:
    nodes = [node("d", 1), node("a", 1), node("b", 1)]
    turns, last = "", b""
    for _ in range(4):
        chosen = next_in_turn(nodes, last)
        last = chosen.node_id
        turns += chosen.host
    assert turns == "abda"


def test_spread_in_turn_goes_on_from_a_node_that_is_gone() -> None:
    assert next_in_turn([node("a", 1), node("d", 1)], b"b" * 28).host == "d"


def test_spread_by_use_takes_the_emptiest_also_below_the_bound_of_hybrid() -> None:
    assert least_used([node("a", 3), node("b", 4)], cpu_use).host == "b"


def test_hard_affinity_allows_its_node_only() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert names(list(allowed(affinity("b"), nodes))) == "b"
    assert list(allowed(affinity("c"), nodes)) == []


def test_soft_affinity_allows_all_where_its_own_node_is_none_of_them() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert names(list(allowed(affinity("b", is_soft=True), nodes))) == "b"
    assert names(list(allowed(affinity("c", is_soft=True), nodes))) == "ab"


def test_other_strategies_allow_all() -> None:
    nodes = [node("a", 4), node("b", 4)]
    for kind in (StrategyKind.DEFAULT, StrategyKind.SPREAD):
        assert names(list(allowed(Strategy(kind), nodes))) == "ab"


def test_the_scarcest_resource_counts_of_those_that_are_asked_about() -> None:
    half = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, A=4), units(CPU=3, A=1))
    assert utilization(half, units(CPU=1)) == 0.25
    assert utilization(half, units(CPU=1, A=1)) == 0.75
    assert utilization(half, units(B=1)) == 0.0

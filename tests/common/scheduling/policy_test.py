"""Which of some nodes takes the work: the choices that raylet and GCS share, without either."""

from __future__ import annotations

from dataclasses import replace

from ray_mono.common.scheduling.labels import IN, LabelRequirement, LabelSelector
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import (
    allowed,
    available,
    choose,
    feasible,
    hybrid,
    next_in_turn,
    stays,
)
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


def node(name: str, free: float, total: float = 4, is_alive: bool = True) -> NodeSnapshot:
    return NodeSnapshot(name.encode() * 28, name, 1, units(CPU=total), units(CPU=free), is_alive)


def names(nodes: list[NodeSnapshot]) -> str:
    return "".join(node.host for node in nodes)


CPU_1 = units(CPU=1)


def affinity(name: str, is_soft: bool = False, spills: bool = False) -> Strategy:
    return Strategy(StrategyKind.NODE_AFFINITY, name.encode() * 28, is_soft, spills)


IN_A: LabelSelector = (LabelRequirement("zone", IN, ("a",)),)


def labelled(name: str, free: float = 4, **labels: str) -> NodeSnapshot:
    return replace(node(name, free), labels=labels)


def test_the_total_says_who_could_ever_hold_it_and_what_is_free_who_can_now() -> None:
    nodes = [node("a", 1), node("b", 4), node("c", 1, total=1)]
    assert names(feasible(units(CPU=2), nodes)) == "ab"
    assert names(available(units(CPU=2), nodes)) == "b"


def test_a_dead_node_holds_nothing() -> None:
    dead = [node("a", 4, is_alive=False)]
    assert feasible(units(CPU=1), dead) == [] and available(units(CPU=1), dead) == []


def test_hybrid_stays_at_the_preferred_node_until_half_of_it_is_used() -> None:
    assert hybrid(CPU_1, [node("a", 4), node("b", 3)], b"b" * 28).host == "b"
    assert hybrid(CPU_1, [node("a", 4), node("b", 2)], b"b" * 28).host == "a"
    assert hybrid(CPU_1, [node("a", 2), node("b", 2)], b"b" * 28).host == "b"
    assert hybrid(CPU_1, [node("a", 4)], b"b" * 28).host == "a"


def test_hybrid_packs_nodes_that_are_less_than_half_used_and_spreads_above() -> None:
    assert hybrid(CPU_1, [node("a", 3), node("b", 4)]).host == "a"
    assert hybrid(CPU_1, [node("a", 2), node("b", 4)]).host == "b"
    assert hybrid(CPU_1, [node("a", 1), node("b", 2)]).host == "b"


def test_only_cpus_memory_and_the_store_say_how_much_a_node_is_used() -> None:
    custom = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, A=4), units(CPU=4, A=1))
    assert hybrid(units(A=1), [custom, node("b", 4)]).host == "a"
    memory = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, memory=4), units(CPU=4, memory=1))
    assert hybrid(CPU_1, [memory, node("b", 4)]).host == "b"


def test_work_without_gpus_leaves_nodes_with_gpus_alone_while_others_are_there() -> None:
    gpus = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, GPU=1), units(CPU=4, GPU=1))
    assert hybrid(CPU_1, [gpus, node("b", 1)], b"a" * 28).host == "b"
    assert hybrid(CPU_1, [gpus], b"a" * 28).host == "a"
    assert hybrid(units(GPU=1), [gpus, node("b", 1)]).host == "a"


def test_where_no_other_node_could_change_the_choice_none_need_be_looked_at() -> None:
    for here in (node("b", 4), node("b", 3), node("b", 2), node("b", 1)):
        emptier = hybrid(CPU_1, [here, node("a", 4)], here.node_id)
        assert stays(CPU_1, Strategy(), here) == (emptier is here)
    gpus = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, GPU=1), units(CPU=4, GPU=1))
    assert not stays(CPU_1, Strategy(), gpus)
    assert stays(units(GPU=1), Strategy(), gpus)
    assert stays(CPU_1, affinity("a"), gpus) and not stays(CPU_1, affinity("b"), gpus)
    assert not stays(CPU_1, Strategy(StrategyKind.SPREAD), node("b", 4))
    assert not stays(CPU_1, Strategy(selectors=(IN_A,)), node("b", 4))
    assert stays(CPU_1, Strategy(selectors=(IN_A,)), labelled("b", zone="a"))
    assert not stays(CPU_1, Strategy(selectors=(IN_A, ())), node("b", 4))


def test_ties_go_to_the_lowest_id_whatever_the_order() -> None:
    nodes = [node("c", 2), node("a", 2), node("b", 2)]
    assert hybrid(CPU_1, nodes).host == hybrid(CPU_1, nodes[::-1]).host == "a"


def test_each_strategy_chooses_among_what_is_free() -> None:
    nodes = [node("a", 4), node("b", 4), node("c", 4)]

    def chosen(strategy: Strategy) -> str:
        return choose(CPU_1, strategy, nodes, preferred_node_id=b"b" * 28, last_in_turn=b"b" * 28).host

    assert chosen(Strategy()) == "b"
    assert chosen(Strategy(StrategyKind.SPREAD)) == "c"
    assert chosen(affinity("a", is_soft=True, spills=True)) == "a"
    assert chosen(affinity("d", is_soft=True, spills=True)) == "b"


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


def test_only_nodes_with_the_labels_of_some_selector_can_hold_it() -> None:
    nodes = [labelled("a", zone="a"), labelled("b", zone="b"), labelled("c")]
    in_b: LabelSelector = (LabelRequirement("zone", IN, ("b",)),)
    assert names(feasible(CPU_1, nodes, [IN_A])) == "a"
    assert names(feasible(CPU_1, nodes, [IN_A, in_b])) == "ab"
    assert names(feasible(CPU_1, nodes, [in_b, ()])) == "abc"


def test_of_free_nodes_those_of_the_first_selector_that_fits_any_are_chosen_from() -> None:
    strategy = Strategy(selectors=(IN_A, ()))
    nodes = [labelled("c", zone="a"), labelled("b")]
    assert choose(CPU_1, strategy, nodes, b"b" * 28, b"").host == "c"
    assert choose(CPU_1, strategy, nodes[1:], b"", b"").host == "b"
    spread = Strategy(StrategyKind.SPREAD, selectors=(IN_A,))
    three = [labelled("a", zone="a"), labelled("b"), labelled("c", zone="a")]
    assert choose(CPU_1, spread, three, b"", b"a" * 28).host == "c"


def test_hard_affinity_allows_its_node_only() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert names(list(allowed(affinity("b"), nodes))) == "b"
    assert list(allowed(affinity("c"), nodes)) == []


def test_soft_affinity_allows_all_where_its_own_node_is_none_of_them() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert names(list(allowed(affinity("b", is_soft=True), nodes))) == "b"
    assert names(list(allowed(affinity("c", is_soft=True), nodes))) == "ab"


def test_soft_affinity_that_spills_allows_all_since_its_own_node_may_be_busy() -> None:
    nodes = [node("a", 4), node("b", 4)]
    assert names(list(allowed(affinity("b", is_soft=True, spills=True), nodes))) == "ab"


def test_other_strategies_allow_all() -> None:
    nodes = [node("a", 4), node("b", 4)]
    for kind in (StrategyKind.DEFAULT, StrategyKind.SPREAD):
        assert names(list(allowed(Strategy(kind), nodes))) == "ab"


def test_the_scarcest_resource_counts_of_those_that_are_asked_about() -> None:
    half = NodeSnapshot(b"a" * 28, "a", 1, units(CPU=4, A=4), units(CPU=3, A=1))
    assert half.utilization(["CPU"]) == 0.25
    assert half.utilization(["CPU", "A"]) == 0.75
    assert half.utilization(["B"]) == 0.0

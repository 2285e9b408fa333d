"""Where leases go: decisions on snapshots, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ray_mono.common.scheduling.known_nodes import KnownNodes
from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import NODES_LOOKED_AT
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.scheduling.scheduling_policy import (
    Decision,
    Infeasible,
    NeverThere,
    NoSuchNode,
    NotFree,
    RunHere,
    SpillTo,
    Wait,
    decide,
)

HERE = b"b" * 28


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


def node(name: str, free: float, total: float = 4, is_alive: bool = True, **more: float) -> NodeSnapshot:
    return NodeSnapshot(
        name.encode() * 28, name, 1, units(CPU=total, **more), units(CPU=free, **more), is_alive
    )


def choose(
    here_free: float,
    others: list[NodeSnapshot] | KnownNodes,
    strategy: Strategy | None = None,
    last: bytes = b"",
    **asked: float,
) -> Decision:
    required = units(**(asked or {"CPU": 1}))
    here = node("b", here_free)
    fits = required.fits_in(here.available)
    nodes = others if isinstance(others, KnownNodes) else KnownNodes(others)
    return decide(required, strategy or Strategy(), here, fits, nodes.in_order(), last)


def affinity(name: str, is_soft: bool = False, spills: bool = False, fails: bool = False) -> Strategy:
    return Strategy(StrategyKind.NODE_AFFINITY, name.encode() * 28, is_soft, spills, fails)


def test_a_task_runs_here_until_half_of_this_node_is_used_and_then_where_less_is() -> None:
    assert choose(3, [node("a", 4)]) == RunHere()
    assert choose(2, [node("a", 4)]) == SpillTo(node("a", 4))
    assert choose(2, [node("a", 2)]) == RunHere()
    assert choose(1, [node("a", 2)]) == SpillTo(node("a", 2))


def test_a_task_that_does_not_fit_here_goes_to_the_least_used_node() -> None:
    decision = choose(0, [node("a", 1), node("c", 3), node("d", 3)])
    assert isinstance(decision, SpillTo)
    assert decision.node.host == "c"


def test_a_task_that_fits_nowhere_now_waits_for_those_who_could() -> None:
    decision = choose(0, [node("a", 0), node("c", 0, total=0.5), node("d", 4, is_alive=False)])
    assert decision == Wait((b"a" * 28, HERE))


def test_a_task_that_no_node_could_ever_hold_is_infeasible() -> None:
    assert choose(4, [node("a", 4, A=1)], A=2) == Infeasible()
    assert isinstance(choose(4, [node("a", 4, A=2)], A=2), SpillTo)


def test_spread_takes_the_nodes_in_turn_and_skips_the_full() -> None:
    others = [node("a", 1), node("c", 0), node("d", 2)]
    chosen = []
    last = b""
    for _ in range(4):
        decision = choose(1, others, Strategy(StrategyKind.SPREAD), last)
        last = decision.node.node_id if isinstance(decision, SpillTo) else HERE
        chosen.append(chr(last[0]))
    assert chosen == ["a", "b", "d", "a"]


def test_hard_affinity_waits_for_its_node_and_takes_no_other() -> None:
    assert choose(0, [node("a", 4)], affinity("b")) == Wait((HERE,))
    assert isinstance(choose(4, [node("a", 1)], affinity("a")), SpillTo)
    assert choose(4, [node("a", 0)], affinity("a")) == Wait((b"a" * 28,))


def test_hard_affinity_is_refused_where_its_node_could_never_hold_it_or_has_other_labels() -> None:
    small, plain = node("a", 0, total=0.5), node("a", 4)
    assert choose(4, [small], affinity("a")) == NeverThere(small)
    selectors = ((LabelRequirement("zone", IN, ("z",)),),)
    labelled = Strategy(StrategyKind.NODE_AFFINITY, b"a" * 28, selectors=selectors)
    assert choose(4, [plain], labelled) == NeverThere(plain)


def test_soft_affinity_that_spills_leaves_its_node_where_that_is_busy() -> None:
    def spills(name: str) -> Strategy:
        return affinity(name, is_soft=True, spills=True)

    assert choose(1, [node("a", 4)], spills("b")) == RunHere()
    assert choose(0, [node("a", 4)], spills("b")) == SpillTo(node("a", 4))
    assert choose(4, [node("a", 1)], spills("a")) == SpillTo(node("a", 1))
    assert choose(4, [node("a", 0)], spills("a")) == RunHere()
    assert choose(0, [node("a", 0)], spills("a")) == Wait((b"a" * 28, HERE))


def test_hard_affinity_may_be_refused_where_its_node_is_busy() -> None:
    fails = affinity("a", fails=True)
    assert choose(4, [node("a", 0)], fails) == NotFree()
    assert choose(0, [node("a", 1)], fails) == SpillTo(node("a", 1))
    assert choose(4, [], fails) == NoSuchNode(is_gone=False)


def test_hard_affinity_to_a_dead_node_is_told_apart_from_one_never_seen() -> None:
    assert choose(4, [node("a", 4, is_alive=False)], affinity("a")) == NoSuchNode(is_gone=True)
    assert choose(4, [], affinity("a")) == NoSuchNode(is_gone=False)


def test_soft_affinity_falls_back_when_its_node_is_dead_or_too_small() -> None:
    assert choose(4, [node("a", 4, is_alive=False)], affinity("a", is_soft=True)) == RunHere()
    assert choose(4, [node("a", 0, total=0.5)], affinity("a", is_soft=True)) == RunHere()
    assert choose(4, [node("a", 0)], affinity("a", is_soft=True)) == Wait((b"a" * 28,))


# ---- many nodes


def many(
    free: Mapping[int, float], num_nodes: int = 3 * NODES_LOOKED_AT, **more: float
) -> list[NodeSnapshot]:
    """Nodes in the order of their ids, which have nothing free but where `free` says it."""
    return [
        NodeSnapshot(b"n%05d" % number, "", 1, units(CPU=4, **more), units(CPU=free.get(number, 0), **more))
        for number in range(num_nodes)
    ]


def chosen_number(decision: Decision) -> int:
    assert isinstance(decision, SpillTo)
    return int(decision.node.node_id[1:])


@pytest.mark.parametrize("number", [0, NODES_LOOKED_AT - 1, NODES_LOOKED_AT, 3 * NODES_LOOKED_AT - 1])
@pytest.mark.parametrize("strategy", [Strategy(), Strategy(StrategyKind.SPREAD)])
def test_the_only_free_one_of_many_nodes_is_found_wherever_the_last_was(
    number: int, strategy: Strategy
) -> None:
    others = many({number: 1})
    for last in (b"", others[0].node_id, others[200].node_id, others[-1].node_id):
        assert chosen_number(choose(0, others, strategy, last)) == number


def test_what_fits_on_none_of_many_nodes_waits_for_all_that_could_hold_it() -> None:
    others = many({})
    waits = choose(0, others)
    assert waits == Wait((HERE, *(each.node_id for each in others)))
    assert choose(0, others, X=1) == Infeasible()


def test_work_gathers_among_the_nodes_where_the_last_went_until_they_are_full() -> None:
    free = {number: 1.0 for number in range(3 * NODES_LOOKED_AT)}
    last, went_to = b"", []
    while free:
        number = chosen_number(choose(0, many(free), last=last))
        del free[number]
        last = many({})[number].node_id
        went_to.append(number // NODES_LOOKED_AT)
    assert went_to == sorted(went_to)


def test_spread_goes_through_all_of_many_nodes() -> None:
    others, last = many({number: 4.0 for number in range(3 * NODES_LOOKED_AT)}), b""
    went_to = []
    for _ in range(2 * len(others)):
        last = others[chosen_number(choose(0, others, Strategy(StrategyKind.SPREAD), last))].node_id
        went_to.append(int(last[1:]))
    assert went_to == 2 * list(range(len(others)))


def test_nodes_with_gpus_are_left_alone_as_long_as_there_are_others_among_many() -> None:
    with_gpus = many({number: 4.0 for number in range(2 * NODES_LOOKED_AT)}, 2 * NODES_LOOKED_AT, GPU=1)
    without = many({2 * NODES_LOOKED_AT: 1.0})[2 * NODES_LOOKED_AT :]
    assert chosen_number(choose(0, [*with_gpus, *without])) == 2 * NODES_LOOKED_AT
    assert chosen_number(choose(0, with_gpus)) == 0


MARS = (LabelRequirement("zone", IN, ("mars",)),)
NOWHERE = (LabelRequirement("zone", IN, ("nowhere",)),)


@pytest.mark.parametrize(
    "strategy",
    [
        Strategy(),
        Strategy(StrategyKind.SPREAD),
        Strategy(selectors=(NOWHERE, MARS)),
        Strategy(StrategyKind.NODE_AFFINITY, b"n07000"),
        Strategy(StrategyKind.NODE_AFFINITY, b"gone", is_soft=True),
    ],
)
def test_a_decision_among_ten_thousand_nodes_looks_at_no_more_of_them_than_among_a_few_hundred(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[bytes] = []

    def takes_work(node: NodeSnapshot) -> bool:
        looked_at.append(node.node_id)
        return True

    others = many({number: 4.0 for number in range(10_000)}, 10_000)
    labels = [{"zone": "mars"} if number % 2 else {} for number in range(10_000)]
    nodes = KnownNodes(replace(each, labels=more) for each, more in zip(others, labels, strict=True))
    choose(0, nodes, strategy)
    monkeypatch.setattr(NodeSnapshot, "takes_work", property(takes_work))
    for last in (b"", others[5_000].node_id):
        looked_at.clear()
        assert isinstance(choose(0, nodes, strategy, last), SpillTo)
        assert len(set(looked_at)) <= NODES_LOOKED_AT + 1

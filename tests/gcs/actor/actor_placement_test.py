"""Which node is asked for an actor, and what is said when none can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.bundle_resources import asked_for_in, given_by
from ray_mono.common.scheduling.known_nodes import KnownNodes, NodesInOrder
from ray_mono.common.scheduling.labels import IN, LabelRequirement
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import NODES_LOOKED_AT
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.common.wait_messages import NODES_TOLD_MAX
from ray_mono.gcs.actor import actor_placement
from ray_mono.gcs.actor.actor_placement import (
    Demand,
    explain,
    moved_to,
    strategy_at,
    told_held,
)

A, B, C = (NodeID(letter * 28) for letter in (b"a", b"b", b"c"))


SPREAD = Strategy(StrategyKind.SPREAD)


def node(node_id: NodeID, total: float, free: float, **more: float) -> NodeSnapshot:
    return NodeSnapshot(
        node_id.binary(),
        "10.0.0.1",
        1,
        ResourceSet.from_units({"CPU": total, **more}),
        ResourceSet.from_units({"CPU": free, **more}),
    )


def needs(cpus: float = 1, strategy: Strategy | None = None, preferred: NodeID | None = None) -> Demand:
    preferred_id = preferred.binary() if preferred is not None else None
    return Demand(ResourceSet.from_units({"CPU": cpus}), strategy or Strategy(), preferred_id)


def choose_node(
    demand: Demand, nodes: Iterable[NodeSnapshot] | NodesInOrder, last_node_id: bytes = b""
) -> NodeID | None:
    in_order = nodes if isinstance(nodes, NodesInOrder) else KnownNodes(nodes).in_order()
    return actor_placement.choose_node(demand, in_order, last_node_id)


def affinity(node_id: NodeID, is_soft: bool = False) -> Strategy:
    return Strategy(StrategyKind.NODE_AFFINITY, node_id.binary(), is_soft)


def test_the_owners_node_is_taken_when_the_actor_fits_there() -> None:
    nodes = [node(A, 4, 4), node(B, 4, 3)]
    assert choose_node(needs(preferred=B), nodes) == B
    assert choose_node(needs(cpus=4, preferred=B), nodes) == A


def test_the_owners_node_is_left_once_half_of_it_is_used() -> None:
    assert choose_node(needs(preferred=B), [node(A, 4, 4), node(B, 4, 2)]) == A
    assert choose_node(needs(preferred=B), [node(A, 4, 2), node(B, 4, 2)]) == B


def test_actors_gather_on_the_first_node_until_it_is_half_used_and_then_spread() -> None:
    assert choose_node(needs(), [node(A, 4, 3), node(B, 4, 4)]) == A
    assert choose_node(needs(), [node(A, 4, 2), node(B, 4, 4)]) == B
    assert choose_node(needs(), [node(A, 4, 1), node(B, 4, 2)]) == B


def test_actors_that_hold_nothing_take_the_nodes_in_turn_that_have_room_for_them() -> None:
    nodes = [node(A, 4, 4), node(B, 4, 0), node(C, 4, 4)]
    holds_nothing = replace(needs(preferred=B), takes_turns=True)
    assert choose_node(holds_nothing, nodes) == A
    assert choose_node(holds_nothing, nodes, A.binary()) == C
    assert choose_node(holds_nothing, nodes, C.binary()) == A
    half_used = [node(A, 4, 4), node(B, 4, 0), node(C, 4, 1)]
    assert choose_node(holds_nothing, half_used, A.binary()) == C
    nowhere_free = [node(A, 4, 0), node(B, 4, 0), node(C, 4, 0)]
    assert choose_node(holds_nothing, nowhere_free, C.binary()) == B


def test_actors_that_hold_nothing_leave_nodes_with_gpus_alone_as_long_as_there_are_others() -> None:
    holds_nothing = replace(needs(preferred=A), takes_turns=True)
    assert choose_node(holds_nothing, [node(A, 4, 4, GPU=1), node(B, 4, 4)], B.binary()) == B
    assert choose_node(holds_nothing, [node(A, 4, 4, GPU=1), node(B, 4, 4, GPU=1)], A.binary()) == A


def test_spread_takes_the_nodes_in_turn() -> None:
    nodes = [node(A, 4, 3), node(B, 4, 1), node(C, 4, 0)]
    spread = needs(strategy=SPREAD, preferred=A)
    assert choose_node(spread, nodes) == A
    assert choose_node(spread, nodes, A.binary()) == B
    assert choose_node(spread, nodes, B.binary()) == A


def many(
    free: Mapping[int, float], num_nodes: int = 3 * NODES_LOOKED_AT, **more: float
) -> list[NodeSnapshot]:
    """In the order of their ids, with nothing free but where `free` says it."""
    return [node(numbered(number), 4, free.get(number, 0), **more) for number in range(num_nodes)]


def numbered(number: int) -> NodeID:
    return NodeID(number.to_bytes(28, "big"))


LAST = 3 * NODES_LOOKED_AT - 1


@pytest.mark.parametrize("strategy", [Strategy(), SPREAD])
@pytest.mark.parametrize("number", [0, NODES_LOOKED_AT - 1, NODES_LOOKED_AT, LAST])
def test_the_only_free_one_of_many_nodes_is_asked_wherever_the_last_actor_went(
    number: int, strategy: Strategy
) -> None:
    for last in (b"", *(numbered(each).binary() for each in (0, 200, LAST))):
        assert choose_node(needs(strategy=strategy), many({number: 1}), last) == numbered(number)


@pytest.mark.parametrize("takes_turns", [True, False])
def test_where_the_next_node_has_room_a_decision_looks_at_no_others(takes_turns: bool) -> None:
    looked_at = []
    for num_nodes in (10, 100, 1000):
        known = KnownNodes(many(dict.fromkeys(range(num_nodes), 4.0), num_nodes))
        demand = replace(needs(preferred=numbered(7)), takes_turns=takes_turns)
        asked: list[bytes] = []

        def seen_as(node_id: bytes, known: KnownNodes = known, asked: list[bytes] = asked) -> NodeSnapshot:
            asked.append(node_id)
            return known[node_id]

        assert choose_node(demand, known.in_order(seen_as), numbered(num_nodes - 5).binary()) is not None
        looked_at.append(len(asked))
    # Each finds its places in the order of the ids by halves.
    assert looked_at[2] - looked_at[1] <= 2 * 4 and looked_at[1] - looked_at[0] <= 2 * 4


def test_of_many_nodes_the_owners_is_taken_wherever_it_is_when_the_actor_fits_there() -> None:
    nodes = many(dict.fromkeys(range(LAST + 1), 4.0))
    for number in (0, 200, LAST):
        assert choose_node(needs(preferred=numbered(number)), nodes) == numbered(number)
    assert choose_node(needs(preferred=NodeID(b"z" * 28)), nodes) == numbered(0)


def test_among_many_full_nodes_one_that_could_hold_it_is_asked_and_none_where_none_could() -> None:
    assert choose_node(needs(preferred=numbered(200)), many({})) == numbered(200)
    assert choose_node(needs(cpus=5), many({})) is None


def test_where_none_has_room_one_is_asked_where_tasks_would_give_way() -> None:
    an_actor = ResourceSet.from_units({"CPU": 1})
    beside_an_actor = replace(node(A, 2, 0), lasting=an_actor)
    assert choose_node(needs(cpus=2), [beside_an_actor, node(B, 2, 0)]) == B
    assert choose_node(needs(cpus=2), [beside_an_actor]) == A


def test_nodes_with_gpus_are_left_alone_as_long_as_there_are_others_among_many() -> None:
    with_gpus = many(dict.fromkeys(range(200), 4.0), 200, GPU=1)
    without = many({LAST: 1})[200:]
    assert choose_node(needs(), [*with_gpus, *without]) == numbered(LAST)
    assert choose_node(needs(), with_gpus) == numbered(0)


ON_MARS = Strategy(selectors=((LabelRequirement("zone", IN, ("mars",)),),))


@pytest.mark.parametrize("strategy", [Strategy(), SPREAD, ON_MARS, affinity(numbered(7_000))])
def test_a_choice_among_ten_thousand_nodes_looks_at_no_more_of_them_than_among_a_few_hundred(
    strategy: Strategy, looked_at: set[bytes]
) -> None:
    nodes = KnownNodes(
        replace(each, labels={"zone": "mars"}) for each in many(dict.fromkeys(range(10_000), 4.0), 10_000)
    ).in_order()
    demand = needs(strategy=strategy, preferred=numbered(9_000))
    choose_node(demand, nodes)
    for last in (b"", numbered(5_000).binary()):
        looked_at.clear()
        assert choose_node(demand, nodes, last) is not None
        assert len(looked_at) <= NODES_LOOKED_AT + 1


def test_the_raylet_of_the_chosen_node_keeps_the_actor_while_it_has_room() -> None:
    for strategy in (Strategy(), SPREAD):
        told = Strategy.from_proto(strategy_at(needs(strategy=strategy), B))
        assert told == Strategy(StrategyKind.NODE_AFFINITY, B.binary(), is_soft=True, spills=True)


def test_a_raylet_is_told_of_an_affinity_as_it_was_given() -> None:
    for soft, spills, fails in ((True, False, False), (True, True, False), (False, False, True)):
        given = Strategy(StrategyKind.NODE_AFFINITY, A.binary(), soft, spills, fails)
        assert Strategy.from_proto(strategy_at(needs(strategy=given), B)) == given


def test_where_nothing_is_free_a_node_that_could_hold_the_actor_is_asked() -> None:
    assert choose_node(needs(cpus=3), [node(A, 2, 2), node(B, 4, 0)]) == B
    assert choose_node(needs(cpus=5), [node(A, 2, 2), node(B, 4, 0)]) is None
    assert choose_node(needs(), []) is None


def test_hard_affinity_waits_for_its_node_and_soft_affinity_does_not() -> None:
    nodes = [node(A, 4, 4), node(B, 4, 0)]
    assert choose_node(needs(strategy=affinity(B)), nodes) == B
    assert choose_node(needs(strategy=affinity(C)), nodes) is None
    assert choose_node(needs(strategy=affinity(C, is_soft=True)), nodes) == A


def test_an_actor_without_room_for_its_arguments_moves_to_where_they_lie_if_it_may() -> None:
    assert moved_to(needs(), B.binary()).strategy == affinity(B, is_soft=True)
    assert moved_to(needs(strategy=SPREAD), B.binary()).strategy == affinity(B, is_soft=True)
    assert moved_to(needs(strategy=affinity(A, is_soft=True)), B.binary()).strategy == affinity(
        B, is_soft=True
    )
    assert moved_to(needs(strategy=affinity(A)), B.binary()) == needs(strategy=affinity(A))
    assert moved_to(needs(strategy=SPREAD), None) == needs(strategy=SPREAD)


def test_an_explanation_names_what_is_needed_and_what_the_nodes_have() -> None:
    shortage = explain("Learner", needs(cpus=8), [node(A, 2, 1, gpu=1)])
    assert shortage.is_for_the_driver
    assert shortage.message == (
        "Actor Learner needs {CPU: 8}, which no node has;"
        " the cluster has node 61616161 (10.0.0.1) {CPU: 2, gpu: 1}."
    )


def test_an_explanation_tells_use_from_lack_and_both_from_a_start() -> None:
    busy = explain("Learner", needs(cpus=2), [node(A, 2, 1)])
    assert busy.is_for_the_driver and "which is in use" in busy.message and "{CPU: 1} free" in busy.message
    starting = explain("Learner", needs(), [node(A, 2, 1)])
    assert not starting.is_for_the_driver and "a worker is being started" in starting.message
    assert "no node has joined" in explain("Learner", needs(), []).message
    assert f"on node {C.hex()}" in explain("Learner", needs(strategy=affinity(C)), [node(A, 2, 1)]).message


def test_an_explanation_stays_short_in_a_large_cluster() -> None:
    nodes = [node(NodeID(bytes([number]) * 28), 1, 1) for number in range(NODES_TOLD_MAX + 5)]
    assert explain("Learner", needs(cpus=2), nodes).message.endswith("and 5 more nodes.")


def test_an_actor_in_a_placement_group_is_told_of_in_plain_names() -> None:
    group = bytes(range(18))
    wanted = asked_for_in(ResourceSet.from_units({"CPU": 1}), group, 1)
    demand = Demand(wanted, Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group, bundle_index=1))
    place = f"Actor Learner needs {{CPU: 1}} in bundle 1 of placement group {group.hex()}, which is "
    assert explain("Learner", demand, [node(A, 4, 4)]).message.startswith(f"{place}not placed yet")
    bundle = given_by(ResourceSet.from_units({"CPU": 1}), group, 1)
    there = replace(node(A, 4, 3), total=node(A, 4, 4).total + bundle, available=bundle)
    assert explain("Learner", demand, [there]).message.startswith(f"{place}there")
    full = replace(there, available=bundle - wanted)
    assert explain("Learner", demand, [full]).message == f"{place}in use there."
    two = given_by(ResourceSet.from_units({"CPU": 2}), group, 0)
    two = two + given_by(ResourceSet.from_units({"CPU": 2}), group, 1)
    in_use = asked_for_in(ResourceSet.from_units({"CPU": 1}), group, 0)
    halves = replace(there, total=two, available=two - in_use - wanted)
    anywhere = Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group)
    whole = Demand(asked_for_in(ResourceSet.from_units({"CPU": 2}), group, -1), anywhere)
    assert explain("Learner", whole, [halves]).message.endswith(", of which no bundle has so much free.")
    free = given_by(ResourceSet.from_units({"CPU": 2}), group, 2)
    assert choose_node(whole, [halves, replace(node(B, 4, 4), total=free, available=free)]) == B
    assert choose_node(demand, [node(B, 4, 4), there]) == A
    assert Strategy.from_proto(strategy_at(demand, A)) == demand.strategy


def test_what_actors_hold_in_a_group_is_told_by_the_names_that_people_know() -> None:
    group = b"g" * 18
    units = ResourceSet.from_units({"CPU": 1})
    demand = Demand(asked_for_in(units, group, -1), Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group))
    held = asked_for_in(units, group, -1) + ResourceSet.from_units({"CPU": 3})
    assert told_held(held, demand) == "{CPU: 1}"
    assert told_held(ResourceSet.from_units({"CPU": 3}), demand) == ""
    assert told_held(held, needs()).startswith("{CPU: 3")


def test_a_node_that_is_drained_takes_what_its_own_processes_wait_for_and_nothing_else() -> None:
    ending = replace(node(A, 4, 4), is_draining=True)
    assert choose_node(needs(preferred=A), [ending]) == A
    assert choose_node(needs(), [ending]) is None
    assert choose_node(needs(cpus=5, preferred=A), [ending]) is None
    assert choose_node(needs(preferred=A), [ending, node(B, 4, 0)]) == B, "it has room in time"

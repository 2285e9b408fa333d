"""Values for the option scheduling_strategy: what they accept, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_mono._private.remote.options import task_options
from ray_mono.common.ids import NodeID
from ray_mono.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = NodeID(bytes(range(28)))


@pytest.mark.parametrize(
    ("soft", "spills", "fails"), [(True, True, False), (False, False, True), (False, False, False)]
)
def test_what_affinity_does_about_a_busy_node_reaches_the_core(soft: bool, spills: bool, fails: bool) -> None:
    given = NodeAffinitySchedulingStrategy(NODE.hex(), soft, spills, fails)
    strategy = task_options({"scheduling_strategy": given}, "f").strategy
    assert strategy is not None
    affinity = strategy.node_affinity
    told = (affinity.soft, affinity.spill_on_unavailable, affinity.fail_on_unavailable)
    assert told == (soft, spills, fails)


@pytest.mark.parametrize("given", [NODE.hex(), NODE])
def test_node_affinity_reaches_the_core(given: Any) -> None:
    strategy = task_options(
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(given, soft=True)}, "f"
    ).strategy
    assert strategy is not None
    assert (strategy.node_affinity.node_id, strategy.node_affinity.soft) == (NODE.binary(), True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NodeAffinitySchedulingStrategy("nothing", soft=False), "node_id must be a node's id in hex"),
        (lambda: NodeAffinitySchedulingStrategy(NodeID.nil().hex(), soft=False), "node_id must be"),
        (
            lambda: NodeAffinitySchedulingStrategy(NODE.hex(), False, _spill_on_unavailable=True),
            "_spill_on_unavailable=True goes with soft=True only",
        ),
        (
            lambda: NodeAffinitySchedulingStrategy(NODE.hex(), True, _fail_on_unavailable=True),
            "_fail_on_unavailable=True goes with soft=False only",
        ),
        (lambda: In(), "In takes one string or more"),
        (lambda: NotIn("a", 3), "NotIn takes one string or more"),  # type: ignore[arg-type]
        (lambda: NodeLabelSchedulingStrategy({}), "may not both be empty"),
        (lambda: NodeLabelSchedulingStrategy({"a": "b"}), "hard must be a dict"),  # type: ignore[dict-item]
        (
            lambda: NodeLabelSchedulingStrategy(None, soft={"a": 1}),  # type: ignore[dict-item]
            "soft must be a dict",
        ),
    ],
)
def test_wrong_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("junk", [None, True, 5, 1.5, b"ab" * 28, [], object])
def test_what_is_no_nodes_id_is_named(junk: Any) -> None:
    with pytest.raises(TypeError, match="node_id must be a node's id in hex.* of type"):
        NodeAffinitySchedulingStrategy(junk, True)


@pytest.mark.parametrize("junk", [None, True, 5, "x", "", [], object()])
def test_labels_that_fit_are_named_by_operators(junk: Any) -> None:
    for make in (In, NotIn):
        if not isinstance(junk, str):
            with pytest.raises(ValueError, match="takes one string or more"):
                make(junk)
    for given in ({"a": junk}, {5: Exists()}, junk or "x"):
        for arguments in ({"hard": given}, {"hard": {"a": Exists()}, "soft": given}):
            with pytest.raises(ValueError, match="must be a dict from labels to In"):
                NodeLabelSchedulingStrategy(**arguments)
    for operator in (Exists, DoesNotExist):
        with pytest.raises(TypeError, match="takes no arguments"):
            operator(junk)  # type: ignore[call-arg]


def test_what_is_no_placement_group_is_refused() -> None:
    with pytest.raises(TypeError, match="placement_group must be a placement group or None, got <object"):
        task_options({"scheduling_strategy": PlacementGroupSchedulingStrategy(object())}, "f")


@pytest.mark.parametrize("group", [None, "default"])
def test_no_placement_group_is_the_default(group: object) -> None:
    in_none = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    assert task_options({"scheduling_strategy": in_none}, "f").strategy is None
    in_its_first = PlacementGroupSchedulingStrategy(group, 0)
    with pytest.raises(
        ValueError, match="placement_group_bundle_index must be -1 without a placement group, got 0"
    ):
        task_options({"scheduling_strategy": in_its_first}, "f")

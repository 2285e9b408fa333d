"""Placement groups in local mode: what programs give, what they get, and what is refused."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import ray_mono as ray
import ray_mono.util.placement_group
from ray_mono._private.placement_groups.request import request_of
from ray_mono._private.placement_groups.table import table_of
from ray_mono._private.remote.options import actor_options, task_options
from ray_mono.common.exceptions import RaySystemError, TaskPlacementGroupRemoved
from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2
from ray_mono.util import get_placement_group, placement_group_table, remove_placement_group
from ray_mono.util.placement_group import PlacementGroup, get_current_placement_group, placement_group
from ray_mono.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

Info = common_pb2.PlacementGroupInfo
NODE = "ab" * 28


@pytest.fixture(autouse=True, scope="module")
def local() -> Iterator[None]:
    ray.init(local_mode=True, num_cpus=4, resources={"A": 2}, namespace="space")
    yield
    ray.shutdown()


def asked(bundles: Any = None, **given: Any) -> Info:
    names = ("strategy", "lifetime", "soft_target_node_id", "bundle_label_selector", "topology_strategy")
    arguments = {**dict.fromkeys(names), "name": "", **given}
    return request_of([{"CPU": 1}] if bundles is None else bundles, **arguments)


# ---- what is given


def test_the_request_says_what_was_asked_for() -> None:
    found = asked(
        [{"CPU": 1, "A": 0.5}, {"GPU": 1}],
        strategy="STRICT_PACK",
        name="mine",
        lifetime="detached",
        soft_target_node_id=NODE,
        bundle_label_selector=[{"region": "us"}, {}],
    )
    amounts = [ResourceSet.from_proto(bundle.resources).to_units() for bundle in found.bundles]
    assert amounts == [{"CPU": 1, "A": 0.5}, {"GPU": 1}]
    assert [len(bundle.selector.requirements) for bundle in found.bundles] == [1, 0]
    assert (found.strategy, found.name, found.is_detached) == (Info.STRICT_PACK, "mine", True)
    assert found.soft_target_node_id.hex() == NODE


@pytest.mark.parametrize(
    ("topology", "strategy", "label"),
    [
        ({}, Info.PACK, ""),
        ({"ray.io/node-id": "SPREAD"}, Info.SPREAD, ""),
        ({"rack": "STRICT_PACK"}, Info.PACK, "rack"),
        ({"ray.io/node-id": "STRICT_SPREAD", "rack": "STRICT_PACK"}, Info.STRICT_SPREAD, "rack"),
    ],
)
def test_a_topology_is_a_strategy_and_a_label(topology: Any, strategy: Any, label: str) -> None:
    found = asked(topology_strategy=topology)
    assert (found.strategy, found.same_label) == (strategy, label)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bundles": []}, r"bundles must be a list of dicts, at least one, like .*, got \[\]"),
        ({"bundles": ({"CPU": 1},)}, "bundles must be a list"),
        ({"bundles": [1]}, r"bundles\[0\] must be a dict"),
        ({"bundles": [{"CPU": 1}, {}]}, r"bundles\[1\] must ask for more than 0 of some resource, got \{\}"),
        ({"bundles": [{"CPU": 0}]}, "must ask for more than 0"),
        ({"bundles": [{"bundle": 1}]}, r"bundles\[0\]: 'bundle' is what each bundle is counted by"),
        ({"bundles": [{"CPU": -1}]}, r"bundles\[0\]\['CPU'\] must be 0, or a number of at least .* got -1"),
        (
            {"bundles": [{"CPU": 0.00001}]},
            r"bundles\[0\]\['CPU'\] must be 0, or .* at least 0.0001 .* got 1e-05",
        ),
        ({"bundles": [{"CPU": float("nan")}]}, "got nan"),
        ({"bundles": [{"CPU": "1"}]}, "got '1'"),
        ({"bundles": [{"CPU": True}]}, "got True"),
        ({"bundles": [{1: 1}]}, r"bundles\[0\]: resources must have names"),
        ({"strategy": "X"}, "strategy must be one of 'PACK', .* got 'X'"),
        ({"lifetime": "non_detached"}, "lifetime must be None or 'detached', got 'non_detached'"),
        ({"soft_target_node_id": NODE}, "_soft_target_node_id goes with strategy='STRICT_PACK' only"),
        (
            {"strategy": "STRICT_PACK", "soft_target_node_id": "ab"},
            "_soft_target_node_id must be a node's id",
        ),
        ({"bundle_label_selector": []}, "as many dicts as there are bundles, 1, got 0"),
        ({"bundle_label_selector": {}}, "bundle_label_selector must be a list"),
        ({"bundle_label_selector": [{"a": "b!!"}]}, r"bundle_label_selector\[0\]: 'a' takes"),
        ({"bundle_label_selector": [5]}, r"bundle_label_selector\[0\] must be a dict"),
        ({"topology_strategy": []}, "topology_strategy must be a dict"),
        (
            {"topology_strategy": {"ray.io/node-id": "X"}},
            r"topology_strategy\['ray.io/node-id'\] must be one of",
        ),
        ({"topology_strategy": {"rack": "PACK"}}, r"topology_strategy\['rack'\] must be 'STRICT_PACK'"),
        ({"topology_strategy": {"a": "STRICT_PACK", "b": "STRICT_PACK"}}, "at most one label besides"),
        ({"strategy": "PACK", "topology_strategy": {}}, "exclude each other"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(**given)


def test_a_target_is_a_string() -> None:
    with pytest.raises(TypeError, match="_soft_target_node_id must be a node's id in hex, got 5"):
        asked(strategy="STRICT_PACK", soft_target_node_id=5)


@pytest.mark.parametrize("name", [5, None, "\udc80"])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match="name must be a string"):
        asked(name=name)


def test_object_store_memory_is_warned_of() -> None:
    with pytest.warns(DeprecationWarning, match="object_store_memory in a bundle is deprecated"):
        asked([{"CPU": 1, "object_store_memory": 100}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked([{"CPU": 1}])


# ---- groups


def test_a_group_that_the_node_can_hold_is_ready() -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1, "A": 1}])
    assert group.wait(10) and ray.get(group.ready()) == group
    assert group.bundle_specs == [{"CPU": 1}, {"CPU": 1, "A": 1}] and group.bundle_count == 2
    assert not group.is_empty and hash(group) == hash(ray.get(group.ready()))


def test_handles_pickle() -> None:
    group = placement_group([{"CPU": 1}])
    again = pickle.loads(pickle.dumps(group))
    assert again == group and again.bundle_cache == [{"CPU": 1}]
    assert b"ray_mono.util.placement_group" in pickle.dumps(group)


def test_a_handle_without_bundles_asks_for_them() -> None:
    group = placement_group([{"CPU": 1}])
    assert PlacementGroup(group.id).bundle_specs == [{"CPU": 1}]
    assert PlacementGroup(PlacementGroupID(b"?" * 18)).bundle_specs == []


def test_the_empty_group_stands_for_none() -> None:
    empty = PlacementGroup.empty()
    assert empty.is_empty and empty == PlacementGroup(PlacementGroupID.nil()) and empty.bundle_count == 0
    remove_placement_group(empty)
    assert placement_group_table(empty) == {} and not empty.wait(0)


def test_a_removed_group_says_so() -> None:
    group = placement_group([{"CPU": 1}])
    remove_placement_group(group)
    remove_placement_group(group)
    with pytest.raises(TaskPlacementGroupRemoved):
        ray.get(group.ready())
    with pytest.raises(ValueError, match="does not exist any more"):
        group.wait()
    with pytest.raises(TaskPlacementGroupRemoved):
        ray.get(where.options(scheduling_strategy=InGroup(group)).remote())
    assert placement_group_table(group)["state"] == "REMOVED"


def test_a_group_that_is_too_large_waits() -> None:
    group = placement_group([{"CPU": 5}])
    assert not group.wait(0)
    assert placement_group_table(group)["state"] == "PENDING"
    with pytest.raises(RaySystemError, match="could never hold"):
        ray.get(group.ready())


def test_groups_are_found_by_their_names() -> None:
    group = placement_group([{"CPU": 1}], name="mine")
    assert get_placement_group("mine") == group and get_placement_group("mine").bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match=f"the name 'mine' is taken .*{group.id.hex()}"):
        placement_group([{"CPU": 1}], name="mine")
    remove_placement_group(group)
    for name in ("mine", "", None):
        with pytest.raises(ValueError, match="placement"):
            get_placement_group(name)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="placement_group_name must be a string that is not empty, got 5"):
        get_placement_group(5)  # type: ignore[arg-type]


def test_the_table_is_rays() -> None:
    group = placement_group([{"CPU": 1}], strategy="SPREAD", name="shown")
    table = placement_group_table(group)
    assert placement_group_table()[group.id.hex()] == table
    stats = table.pop("stats")
    assert table == {
        "placement_group_id": group.id.hex(),
        "name": "shown",
        "bundles": {0: {"CPU": 1.0}},
        "bundles_to_node_id": {0: ray.get_runtime_context().get_node_id()},
        "strategy": "SPREAD",
        "state": "CREATED",
    }
    assert stats["scheduling_state"] == "FINISHED" and stats["scheduling_attempt"] == 1


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "QUEUED"),
        ({"num_attempts": 2, "pending_reason": "no GPU"}, "NO_RESOURCES"),
        ({"state": common_pb2.PLACEMENT_GROUP_REMOVED}, "REMOVED"),
    ],
)
def test_what_a_group_waits_for_is_told(fields: Any, state: str) -> None:
    assert table_of(Info(**fields))["stats"]["scheduling_state"] == state


def test_how_long_a_group_took_is_told() -> None:
    stats = table_of(Info(start_time_s=10.0, created_time_s=10.5))["stats"]
    assert stats["end_to_end_creation_latency_ms"] == 500


def test_what_is_no_group_is_refused() -> None:
    for function in (remove_placement_group, placement_group_table):
        with pytest.raises(TypeError, match="placement_group must be a placement group, got 5"):
            function(5)  # type: ignore[arg-type]


def test_the_module_can_be_called() -> None:
    assert ray_mono.util.placement_group([{"CPU": 1}]).wait()  # type: ignore[operator]


def test_what_libraries_ask_before_is_answered() -> None:
    module = sys.modules["ray_mono.util.placement_group"]
    assert module.validate_placement_group([{"CPU": 1}])
    with pytest.raises(ValueError, match="strategy must be one of"):
        module.validate_placement_group([{"CPU": 1}], strategy="X")
    group = placement_group([{"CPU": 1}])
    module.check_placement_group_index(group, 0)
    with pytest.raises(ValueError, match="bundle_index must be -1 or that of one of the 1 bundles"):
        module.check_placement_group_index(group, 1)
    with pytest.raises(TypeError, match="bundle_index must be a whole number, got None"):
        module.check_placement_group_index(group, None)


# ---- options


@ray.remote(num_cpus=1)
def where() -> Any:
    context = ray.get_runtime_context()
    captures = context.should_capture_child_tasks_in_placement_group
    return context.get_placement_group_id(), captures, context.get_assigned_resources()


@ray.remote(num_cpus=0)
def of_child(**options: Any) -> Any:
    return ray.get(where.options(**options).remote())


@ray.remote
class Asker:
    def of_child(self) -> Any:
        return ray.get(where.remote())

    def group(self) -> Any:
        return get_current_placement_group()


@pytest.fixture(scope="module")
def group(local: None) -> PlacementGroup:
    return placement_group([{"CPU": 1}, {"CPU": 2, "A": 1}])


def test_a_task_runs_in_the_group_that_it_names(group: PlacementGroup) -> None:
    in_it = where.options(scheduling_strategy=InGroup(group, 0))
    assert ray.get(in_it.remote()) == (group.id.hex(), False, {"CPU": 1})
    older = where.options(placement_group=group, placement_group_bundle_index=1)
    assert ray.get(older.remote())[0] == group.id.hex()
    captured = where.options(placement_group=group, placement_group_capture_child_tasks=True)
    assert ray.get(captured.remote())[1]
    for none in ({}, {"placement_group": None}, {"placement_group": "default"}):
        assert ray.get(where.options(**none).remote()) == (None, False, {"CPU": 1})


def test_children_of_what_captures_run_in_its_group(group: PlacementGroup) -> None:
    captures = of_child.options(scheduling_strategy=InGroup(group, 0, True))
    inside = (group.id.hex(), True, {"CPU": 1})
    outside = (None, False, {"CPU": 1})
    assert ray.get(captures.remote()) == inside
    assert ray.get(captures.remote(scheduling_strategy=None)) == inside
    for strategy in ("DEFAULT", "SPREAD", InGroup(None)):
        assert ray.get(captures.remote(scheduling_strategy=strategy)) == outside
    assert ray.get(captures.remote(placement_group=None)) == outside
    assert ray.get(of_child.options(scheduling_strategy=InGroup(group, 0)).remote()) == outside
    assert ray.get(of_child.remote()) == outside


def test_an_actor_runs_in_the_group_that_it_names(group: PlacementGroup) -> None:
    actor = Asker.options(scheduling_strategy=InGroup(group, 1, True)).remote()
    assert ray.get(actor.of_child.remote())[:2] == (group.id.hex(), True)
    assert ray.get(actor.group.remote()) == group
    assert get_current_placement_group() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": 2}, "placement_group_bundle_index must be -1 or a bundle's, 0 to 1, .* got 2"),
        ({"index": -2}, "placement_group_bundle_index must be -1 for any bundle"),
        ({"num_cpus": 3}, "cannot fit into any bundle"),
        ({"index": 0, "num_cpus": 2}, "cannot fit into bundle 0"),
    ],
)
def test_what_fits_into_no_bundle_is_refused(
    group: PlacementGroup, options: dict[str, Any], message: str
) -> None:
    strategy = InGroup(group, options.pop("index", -1))
    with pytest.raises(ValueError, match=message):
        where.options(scheduling_strategy=strategy, **options).remote()
    with pytest.raises(ValueError, match=message):
        Asker.options(scheduling_strategy=strategy, **options).remote()


def test_what_says_two_things_is_refused(group: PlacementGroup) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        where.options(placement_group=group, scheduling_strategy="DEFAULT")
    with pytest.raises(ValueError, match="placement_group_bundle_index must be -1 without"):
        where.options(placement_group_bundle_index=1)
    with pytest.raises(TypeError, match="placement_group must be a placement group or None, got 'xx'"):
        where.options(placement_group="xx")


def test_the_core_is_told_what_was_given(group: PlacementGroup) -> None:
    found = task_options({"scheduling_strategy": InGroup(group, 1, True), "num_cpus": 0}, "f")
    assert found.strategy is not None and not found.inherits_group and len(found.bundles) == 2
    told = found.strategy.placement_group
    assert (told.placement_group_id, told.bundle_index, told.capture_child_tasks) == (
        group.id.binary(),
        1,
        True,
    )
    assert task_options({"scheduling_strategy": InGroup(group)}, "f").inherits_group
    of_actor = actor_options(
        {}, class_name="A", is_asyncio=False, method_groups={}, namespace="", handle_metadata=b""
    )
    assert of_actor.inherits_group and not of_actor.bundles and not of_actor.joins_group


@pytest.mark.parametrize("captures", [True, False])
def test_who_captures_or_does_not_and_names_no_group_joins_its_callers_or_leaves_it(captures: bool) -> None:
    found = task_options({"placement_group_capture_child_tasks": captures}, "f")
    assert (found.inherits_group, found.joins_group) == (captures, captures)
    told = {"placement_group_capture_child_tasks": captures, "scheduling_strategy": "SPREAD"}
    assert not task_options(told, "f").inherits_group

"""core_worker/interface.py's PlacementGroups: the same tests over a driver of a real cluster and over local
mode's core.

A member that is added there fails here until it is present in both, and used by a test of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskPlacementGroupRemoved
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.interface import CoreInterface, PlacementGroups
from ray_mono.protobuf import common_pb2
from tests.integration.cores import WAIT_S, a_core, members, takes_the_same, value_of


@pytest.fixture(scope="module", params=["cluster", "local"])
def core(request: pytest.FixtureRequest) -> Iterator[CoreInterface]:
    with a_core(request) as made:
        yield made


@pytest.mark.parametrize("name", sorted(members(PlacementGroups)))
def test_every_member_of_the_placement_groups_is_there(core: CoreInterface, name: str) -> None:
    takes_the_same(getattr(core.placement_groups, name), members(PlacementGroups)[name])


def test_every_member_is_used_by_these_tests() -> None:
    text = Path(__file__).read_text()
    assert not [name for name in members(PlacementGroups) if f"groups.{name}(" not in text]


def a_group(core: CoreInterface, cpus: float = 1, **fields: Any) -> bytes:
    """A group of one bundle."""
    bundle = common_pb2.Bundle(resources=ResourceSet.from_units({"CPU": cpus}).to_proto())
    return core.placement_groups.create(common_pb2.PlacementGroupInfo(bundles=[bundle], **fields))


def test_a_placement_group_is_made_found_and_removed(core: CoreInterface) -> None:
    groups = core.placement_groups
    group_id = a_group(core, name="a group")
    assert groups.wait(group_id, WAIT_S) and value_of(core, groups.ready(group_id, "handle")) == "handle"
    row, named = groups.row(group_id), groups.named("a group", core.namespace)
    assert row is not None and row.bundles[0].node_id == core.node_id
    assert named is not None and named.placement_group_id == group_id
    assert group_id in [each.placement_group_id for each in groups.rows()]
    with pytest.raises(ValueError, match=f"the name 'a group' is taken.*{group_id.hex()}"):
        a_group(core, name="a group")
    groups.remove(group_id)
    assert groups.named("a group", core.namespace) is None
    with pytest.raises(ValueError, match="does not exist any more"):
        groups.wait(group_id, WAIT_S)
    with pytest.raises(TaskPlacementGroupRemoved):
        value_of(core, groups.ready(group_id, "handle"))


def test_a_placement_group_that_is_too_large_is_not_created(core: CoreInterface) -> None:
    groups = core.placement_groups
    group_id = a_group(core, 10_000)
    assert not groups.wait(group_id, 0.2)
    row = groups.row(group_id)
    assert row is not None and row.state == common_pb2.PLACEMENT_GROUP_PENDING
    groups.remove(group_id)


def test_nobody_knows_a_group_that_never_was(core: CoreInterface) -> None:
    groups, group_id = core.placement_groups, b"?" * 18
    groups.remove(group_id)
    assert groups.row(group_id) is None and groups.named("nobody", core.namespace) is None

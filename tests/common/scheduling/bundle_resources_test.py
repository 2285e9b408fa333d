"""The names and amounts that bundles of placement groups have in the books of nodes."""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.bundle_resources import (
    ANY_BUNDLE,
    asked_for_in,
    given_by,
    named,
    plain,
    plain_name,
)
from ray_mono.common.scheduling.resources import ResourceSet

GROUP = bytes(range(18))
HEX = GROUP.hex()


def test_a_bundle_gives_its_node_what_is_asked_for_by_index_and_without() -> None:
    assert given_by(ResourceSet.from_units({"CPU": 2, "A": 0.5}), GROUP, 1).to_units() == {
        f"CPU_group_1_{HEX}": 2.0,
        f"CPU_group_{HEX}": 2.0,
        f"A_group_1_{HEX}": 0.5,
        f"A_group_{HEX}": 0.5,
        f"bundle_group_1_{HEX}": 1000.0,
        f"bundle_group_{HEX}": 1000.0,
    }


def test_bundles_of_a_group_add_up_where_the_index_is_left_out() -> None:
    both = given_by(ResourceSet.from_units({"CPU": 1}), GROUP, 0) + given_by(
        ResourceSet.from_units({"CPU": 2}), GROUP, 1
    )
    assert asked_for_in(ResourceSet.from_units({"CPU": 3}), GROUP, ANY_BUNDLE).fits_in(both)
    assert not asked_for_in(ResourceSet.from_units({"CPU": 2}), GROUP, 0).fits_in(both)
    assert asked_for_in(ResourceSet.from_units({"CPU": 2}), GROUP, 1).fits_in(both)
    # What runs in bundle 1 leaves less for any.
    left = both - asked_for_in(ResourceSet.from_units({"CPU": 2}), GROUP, 1)
    assert not asked_for_in(ResourceSet.from_units({"CPU": 2}), GROUP, ANY_BUNDLE).fits_in(left)


def test_work_that_needs_nothing_asks_for_a_share_of_a_bundle() -> None:
    asked = asked_for_in(ResourceSet(), GROUP, 0)
    assert asked.to_units() == {f"bundle_group_0_{HEX}": 0.001, f"bundle_group_{HEX}": 0.001}
    assert plain(asked) == ResourceSet()


@pytest.mark.parametrize("index", [ANY_BUNDLE, 0, 12])
def test_what_work_in_a_group_holds_is_told_as_it_asked_for_it(index: int) -> None:
    asked = ResourceSet.from_units({"CPU": 1, "GPU": 0.5, "my_group_thing": 2, "bundle": 1})
    assert plain(asked) == asked
    held = asked_for_in(asked - asked.only("bundle"), GROUP, index)
    assert plain(held) == asked - asked.only("bundle")
    assert plain(named(held, "CPU")) == asked.only("CPU")


def test_names_that_only_look_like_those_of_a_group_are_plain() -> None:
    for name in ("CPU", "CPU_group_", "CPU_group_1_abc", f"_group_{HEX}", f"CPU_group_{HEX.upper()}x"):
        assert plain_name(name) == name
    assert plain_name(f"a_group_0_b_group_3_{HEX}") == "a_group_0_b"

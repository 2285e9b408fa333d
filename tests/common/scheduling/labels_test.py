"""What work asks of the labels of its node."""

from __future__ import annotations

import pytest

from ray_mono.common.scheduling.labels import (
    DOES_NOT_EXIST,
    EXISTS,
    IN,
    NOT_IN,
    LabelRequirement,
    any_selects,
    selects,
    told,
)

NODE = {"zone": "a", "empty": ""}


@pytest.mark.parametrize(
    ("requirement", "is_met"),
    [
        (LabelRequirement("zone", IN, ("b", "a")), True),
        (LabelRequirement("zone", IN, ("b",)), False),
        (LabelRequirement("gpu", IN, ("a",)), False),
        (LabelRequirement("empty", IN, ("",)), True),
        (LabelRequirement("zone", NOT_IN, ("b",)), True),
        (LabelRequirement("zone", NOT_IN, ("b", "a")), False),
        (LabelRequirement("gpu", NOT_IN, ("a",)), True),
        (LabelRequirement("zone", EXISTS), True),
        (LabelRequirement("empty", EXISTS), True),
        (LabelRequirement("gpu", EXISTS), False),
        (LabelRequirement("gpu", DOES_NOT_EXIST), True),
        (LabelRequirement("zone", DOES_NOT_EXIST), False),
    ],
)
def test_a_requirement_is_met_by_the_label_or_its_absence(
    requirement: LabelRequirement, is_met: bool
) -> None:
    assert requirement.is_met_by(NODE) == is_met


def test_a_node_has_to_meet_all_of_a_selector_and_one_selector_of_several() -> None:
    zone, gpu = LabelRequirement("zone", IN, ("a",)), LabelRequirement("gpu", EXISTS)
    assert selects((zone,), NODE) and selects((), NODE) and not selects((zone, gpu), NODE)
    assert any_selects([(gpu,), (zone,)], NODE) and any_selects([], NODE)
    assert not any_selects([(gpu,), (zone, gpu)], NODE)


def test_selectors_are_told_to_people() -> None:
    selectors = [
        (LabelRequirement("zone", IN, ("a",)), LabelRequirement("gpu", EXISTS)),
        (LabelRequirement("zone", NOT_IN, ("a", "b")), LabelRequirement("spot", DOES_NOT_EXIST)),
        (),
    ]
    assert told(selectors) == (
        "zone = a and gpu is there, or else zone not in (a, b) and spot is absent, or else any labels"
    )

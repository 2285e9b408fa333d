"""Amounts of resources are exact, and what is taken and given back is what was there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono.common.scheduling.resources import SCALE, ResourceSet

NAMES = st.sampled_from(["CPU", "GPU", "memory", "A", "B"])
SETS = st.dictionaries(NAMES, st.integers(-(10**12), 10**12)).map(ResourceSet)
POSITIVE_SETS = st.dictionaries(NAMES, st.integers(0, 10**12)).map(ResourceSet)


@given(total=SETS, asked=SETS)
def test_what_is_taken_and_given_back_is_what_was_there(total: ResourceSet, asked: ResourceSet) -> None:
    assert total - asked + asked == total == asked + total - asked
    assert not total - total and hash(total - asked + asked) == hash(total)


@given(available=SETS, asked=POSITIVE_SETS)
def test_what_fits_leaves_nothing_negative_and_what_is_missing_makes_it_fit(
    available: ResourceSet, asked: ResourceSet
) -> None:
    rest = available - asked
    assert asked.fits_in(available) == all(rest.get(name) >= 0 for name, _ in asked.items())
    missing = asked.missing_from(available)
    assert bool(missing) is not asked.fits_in(available)
    assert asked.fits_in(available + missing)


@given(SETS)
def test_a_set_survives_the_wire_and_iterates_by_name(resources: ResourceSet) -> None:
    assert ResourceSet.from_proto(resources.to_proto()) == resources
    names = [name for name, _ in resources.items()]
    assert names == sorted(names) and all(resources.get(name) for name in names)


def test_ten_tenths_are_one() -> None:
    tenth = ResourceSet.from_units({"CPU": 0.1})
    total = ResourceSet()
    for _ in range(10):
        total += tenth
    assert total == ResourceSet.from_units({"CPU": 1}) and total.to_units() == {"CPU": 1.0}


def test_equal_parts_of_one_fit_into_one() -> None:
    for parts in (*range(1, 200), 1666, SCALE):
        part = ResourceSet.from_units({"GPU": 1 / parts})
        together = ResourceSet.sum_of([part] * parts)
        assert together.fits_in(ResourceSet.from_units({"GPU": 1})), parts
        assert part.get("GPU") == SCALE // parts


def test_what_has_four_digits_is_kept_as_written() -> None:
    for amount in range(1, 2 * SCALE):
        assert ResourceSet.from_units({"A": amount / SCALE, "B": float(f"{amount / SCALE:.4f}")}) == (
            ResourceSet({"A": amount, "B": amount})
        )
    assert ResourceSet.from_units({"memory": (1 << 60) + 1}).get("memory") == ((1 << 60) + 1) * SCALE


def test_units_are_checked_by_name() -> None:
    assert ResourceSet.from_units({"CPU": 1 / SCALE, "A": 0}).to_units() == {"CPU": 0.0001}
    for amount in (-1, float("nan"), float("inf"), "1", True, 0.00001):
        with pytest.raises(ValueError, match="'GPU'"):
            ResourceSet.from_units({"GPU": amount})  # type: ignore[dict-item]


def test_a_set_reads_well() -> None:
    resources = ResourceSet.from_units({"CPU": 1, "A": 0.5})
    assert str(resources) == "{A: 0.5, CPU: 1}"
    assert resources.only("CPU", "B") == ResourceSet.from_units({"CPU": 1})


def test_for_people_memory_has_units_and_only_what_matters_is_told() -> None:
    asked_for = ResourceSet.from_units({"CPU": 1, "memory": 3 << 29})
    assert str(asked_for) == "{CPU: 1, memory: 1.5 GiB}"
    node = ResourceSet.from_units(
        {"GPU": 2, "memory": 8 << 30, "object_store_memory": 1e9, "node:10.0.0.1": 1}
    )
    assert node.beside(asked_for) == "{CPU: 0, GPU: 2, memory: 8 GiB}"
    assert node.beside(ResourceSet()) == "{GPU: 2}"

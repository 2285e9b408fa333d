"""The ledger: exact sums under any sequence of events, accelerators by index, and the debt of resumed
workers.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_mono.common.our_bug import InternalError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.instances import indivisible
from ray_mono.raylet.scheduling.ledger import ResourceLedger


def units(**amounts: float) -> ResourceSet:
    return ResourceSet.from_units(amounts)


def test_what_is_granted_is_free_again_after_the_release() -> None:
    ledger = ResourceLedger(units(CPU=2, A=0.3))
    ledger.allocate(b"1", units(CPU=1, A=0.1))
    ledger.allocate(b"2", units(CPU=1, A=0.2))
    assert not ledger.can_grant(units(A=0.0001))
    ledger.release(b"1")
    assert ledger.available == units(CPU=1, A=0.1)
    ledger.release(b"2")
    assert ledger.available == ledger.total
    ledger.check_invariants()


def test_a_blocked_lease_gives_back_its_cpus_and_nothing_else() -> None:
    ledger = ResourceLedger(units(CPU=1, GPU=1, A=1))
    ledger.allocate(b"1", units(CPU=1, GPU=1, A=1))
    assert ledger.block(b"1")
    assert not ledger.block(b"1")
    assert ledger.available == units(CPU=1)
    ledger.release(b"1")
    assert ledger.available == ledger.total


def test_resumed_workers_overdraw_by_exactly_what_they_hold_and_stop_all_grants() -> None:
    ledger = ResourceLedger(units(CPU=2, A=1))
    ledger.allocate(b"parent", units(CPU=2))
    ledger.block(b"parent")
    ledger.allocate(b"child 1", units(CPU=1))
    ledger.allocate(b"child 2", units(CPU=0.5))
    ledger.unblock(b"parent")
    assert ledger.available.get("CPU") == -15_000
    assert not ledger.can_grant(units(A=1))
    assert not ledger.can_grant(ResourceSet())
    ledger.release(b"child 1")
    ledger.release(b"child 2")
    assert ledger.can_grant(units(A=1))
    ledger.check_invariants()


def test_whole_accelerators_are_never_shared_and_shares_fill_the_fullest_unit() -> None:
    ledger = ResourceLedger(units(GPU=3))
    assert ledger.allocate(b"half", units(GPU=0.5)) == {"GPU": (0,)}
    assert ledger.allocate(b"whole", units(GPU=1)) == {"GPU": (1,)}
    assert ledger.allocate(b"other half", units(GPU=0.5)) == {"GPU": (0,)}
    ledger.release(b"half")
    ledger.release(b"whole")
    ledger.allocate(b"third", units(GPU=0.25))
    assert ledger.instances_of(b"third") == {"GPU": (0,)}
    assert ledger.allocate(b"two", units(GPU=2)) == {"GPU": (1, 2)}
    ledger.check_invariants()


def test_two_free_halves_are_no_whole_accelerator() -> None:
    ledger = ResourceLedger(units(GPU=2))
    ledger.allocate(b"1", units(GPU=0.6))
    ledger.allocate(b"2", units(GPU=0.6))
    assert ledger.available.get("GPU") == 8_000
    assert not ledger.can_grant(units(GPU=0.8))
    assert ledger.can_grant(units(GPU=0.4))


def test_one_and_a_half_accelerators_fit_no_node() -> None:
    assert "GPU above 1" in (indivisible(units(GPU=1.5)) or "")
    assert indivisible(units(GPU=0.5, CPU=1.5)) is None
    with pytest.raises(ValueError, match="GPU"):
        ResourceLedger(units(GPU=1.5))


def test_a_grant_that_does_not_fit_is_our_bug_and_changes_nothing() -> None:
    ledger = ResourceLedger(units(CPU=1))
    with pytest.raises(InternalError, match="free is"):
        ledger.allocate(b"1", units(CPU=2))
    ledger.allocate(b"1", units(CPU=1))
    with pytest.raises(InternalError, match="already"):
        ledger.allocate(b"1", ResourceSet())
    ledger.check_invariants()


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["allocate", "release", "block", "unblock"]),
            st.integers(0, 5),
            st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
            st.sampled_from([0.0, 0.3, 1.0]),
        ),
        max_size=60,
    )
)
def test_granted_plus_free_is_the_total_whatever_happens(steps: list[tuple[str, int, float, float]]) -> None:
    ledger = ResourceLedger(units(CPU=3, GPU=2))
    held: set[bytes] = set()
    for step, number, cpus, gpus in steps:
        lease_id = bytes([number])
        if step == "allocate" and lease_id not in held and ledger.can_grant(units(CPU=cpus, GPU=gpus)):
            ledger.allocate(lease_id, units(CPU=cpus, GPU=gpus))
            held.add(lease_id)
        elif step == "release" and lease_id in held:
            ledger.release(lease_id)
            held.remove(lease_id)
        elif step == "block":
            ledger.block(lease_id)
        elif step == "unblock":
            ledger.unblock(lease_id)
        ledger.check_invariants()
        assert set(ledger.holders()) == held
    for lease_id in held:
        ledger.release(lease_id)
    assert ledger.available == ledger.total

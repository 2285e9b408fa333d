"""Random programs of puts, nested references and tasks, on the core worker's own ownership protocol: what
somebody holds is never freed, what nobody holds does not stay, and the judges find planted bugs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from tests.simulation.loop import SimulationError
from tests.simulation.network import NetworkKnobs
from tests.simulation.object_programs import ObjectScript
from tests.simulation.scenario import Outcome, Scenario, run_scenario


def run_programs(seed: int, dies: bool = False) -> Outcome:
    """Four programs of two drivers, on two nodes with two CPUs each."""
    programs = tuple(ObjectScript(10 * seed + number, 40, dies=dies) for number in range(4))
    return run_scenario(seed, Scenario(({"CPU": 2}, {"CPU": 2}), num_drivers=2, tasks=(), programs=programs))


def run_relays(seed: int) -> Outcome:
    """Objects are handed from task to task while messages overtake each other. Only the last task has them
    then, and gets them twice."""
    handed_on = ("put", "put", "put", "hand_over", "pause") * 10
    moves = (handed_on, ("hand_over",), ("meet_again",))
    programs = tuple(ObjectScript(10 * seed + number, 0, moves=moves) for number in range(4))
    knobs = NetworkKnobs(slow_probability=0.3)
    return run_scenario(
        seed, Scenario(({"CPU": 2},) * 2, num_drivers=2, tasks=(), programs=programs, knobs=knobs)
    )


def test_programs_read_what_they_hold_and_leave_nothing() -> None:
    for seed in range(10):
        outcome = run_programs(seed)
        values, errors = outcome.object_reads
        assert values > 0 and outcome.retries == 0
        # Of tasks that were cancelled.
        assert errors <= values


def test_programs_whose_workers_die_read_what_the_living_hold() -> None:
    for seed in range(10):
        assert run_programs(seed, dies=True).object_reads[0] > 0


def test_what_is_handed_from_task_to_task_is_held_by_the_last() -> None:
    for seed in range(3):
        assert run_relays(seed).object_reads[0] > 0


def test_a_run_with_objects_repeats() -> None:
    assert run_programs(3, dies=True) == run_programs(3, dies=True)


# ---- planted bugs


def run_programs_that_die(seed: int) -> None:
    run_programs(seed, dies=True)


def is_found(message: str, run: Callable[[int], object] = run_programs_that_die) -> None:
    with pytest.raises(SimulationError, match=message):
        for seed in range(10):
            run(seed)


def test_an_owner_that_forgets_its_borrowers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Borrowing, "watch_borrower", lambda ownership, object_id, borrower, contained_in: None
    )
    is_found("reads what was held and is freed")


def test_an_answer_that_overtakes_a_registration_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(ownership: Borrowing, object_id: bytes, then: Callable[[], None]) -> None:
        then()

    monkeypatch.setattr(Borrowing, "_once_acknowledged", at_once)
    is_found("frees what worker .* holds", run_relays)


def test_arguments_that_are_never_let_go_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceCounter, "remove_submitted", lambda counter, object_ids: None)
    is_found("s after the programs ended")


def test_a_borrow_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(ownership: Borrowing, request: Any, call: Any) -> None:
        """Not answered."""

    monkeypatch.setattr(Borrowing, "WaitForRefRemoved", never)
    is_found("s after the programs ended")

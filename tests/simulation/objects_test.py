"""Random programs of puts, nested references and tasks, on the core worker's own ownership protocol: what
somebody holds is never freed, what nobody holds does not stay, and the judges find planted bugs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from tests.simulation.draws import Weather, draw_scenario
from tests.simulation.generator_programs import GeneratorScript
from tests.simulation.loop import SimulationError
from tests.simulation.network import NetworkKnobs
from tests.simulation.object_programs import ObjectScript
from tests.simulation.scenario import Fault, FaultKind, Outcome, Scenario, run_scenario
from tests.simulation.site import site

AS_IT_STORES_S = (0.0, 0.00005, 0.0005, 0.002)
"""When a worker dies after it has written a return."""


def run_programs(seed: int, dies: bool = False, large_share: float = 0.0) -> Outcome:
    """Four programs of two drivers, on two nodes with two CPUs each."""
    programs = tuple(
        ObjectScript(10 * seed + number, 40, dies=dies, large_share=large_share) for number in range(4)
    )
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


def run_streams(seed: int) -> Outcome:
    """A node dies, with large items that wait to be taken. They are made again elsewhere, with other
    references inside, while messages overtake each other."""
    generators = tuple(
        GeneratorScript(6, backpressure=limit, is_large=True, carries_references=True, pause_s=1.0)
        for limit in (0, 0, 5, 5)
    )
    death = Fault(4.0 + 0.3 * seed, FaultKind.KILL_RAYLET, 0.05, seed)
    return run_scenario(
        seed,
        Scenario(
            ({"CPU": 0}, {"CPU": 4}, {"CPU": 4}),
            num_drivers=1,
            tasks=(),
            generators=generators,
            faults=(death,),
            knobs=NetworkKnobs(slow_probability=0.3),
        ),
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


def test_items_that_are_made_again_elsewhere_are_read_with_all_that_is_inside() -> None:
    outcomes = [run_streams(seed) for seed in range(10)]
    assert sum(outcome.retries for outcome in outcomes) > 0


def let_workers_die_as_they_store(monkeypatch: pytest.MonkeyPatch, seals_at_once: bool = False) -> None:
    """Some, when a return is in the store and its owner knows of it, or does not yet."""
    write, rng = PlasmaStoreProvider.write, random.Random(1)

    def write_and_die(plasma: Any, object_id: bytes, value: Any, owner_worker_id: bytes) -> None:
        write(plasma, object_id, value, owner_worker_id)
        here = site()
        if owner_worker_id == here.core.worker_id:
            return
        if seals_at_once:
            with here.core.env.lock:
                plasma.seal([object_id], is_owner_told=True)
        if rng.random() < 0.3:
            here.later(rng.choice(AS_IT_STORES_S), lambda: here.process.kill("it stored a return"))

    monkeypatch.setattr(PlasmaStoreProvider, "write", write_and_die)


def test_the_large_returns_of_workers_that_die_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    let_workers_die_as_they_store(monkeypatch)
    for seed in range(10):
        assert run_programs(seed, dies=True, large_share=0.7).object_reads[0] > 0


@pytest.mark.parametrize("seed", [2, 10, 18, 21])
def test_what_is_held_is_kept_while_connections_break_and_nobody_is_silent(seed: int) -> None:
    """Each of these lost something to a broken connection, while its end counted as a death."""
    run_scenario(seed, draw_scenario(seed, 60, Weather.SQUALL))


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


def test_a_large_return_that_is_sealed_before_its_owner_is_told_of_it_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_workers_die_as_they_store(monkeypatch, seals_at_once=True)
    is_found("a store has object", lambda seed: run_programs(seed, dies=True, large_share=0.7))


def test_a_copy_of_an_item_whose_references_are_let_go_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Borrowing, "_adopt_copy", lambda borrowing, object_id, owner, container: None)
    is_found("frees what driver 1 holds|driver 1 reads what was held and is freed", run_streams)


def test_arguments_that_are_never_let_go_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceCounter, "remove_submitted", lambda counter, object_ids: None)
    is_found("s after the programs ended")


def test_a_borrow_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(ownership: Borrowing, request: Any, call: Any) -> None:
        """Not answered."""

    monkeypatch.setattr(Borrowing, "WaitForRefRemoved", never)
    is_found("s after the programs ended")

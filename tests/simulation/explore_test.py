"""The explorer tells the same of its seeds, however many processes run them."""

from __future__ import annotations

import collections

import pytest

from tests.simulation import explore, scenario
from tests.simulation.draws import draw_any
from tests.simulation.scenario import STOPS, FaultKind


def told(capsys: pytest.CaptureFixture[str], jobs: int) -> str:
    """What came of three seeds, without the time that they took."""
    explore.explore(range(3), 5, (), 600.0, jobs)
    return capsys.readouterr().out.splitlines()[0].partition(" s, ")[2]


def test_two_processes_find_what_one_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, jobs=1) == told(capsys, jobs=2) != ""


def test_a_seed_that_fails_in_another_process_is_named_with_its_story(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> scenario.Outcome:
        raise ValueError("planted")

    monkeypatch.setattr(explore, "run_scenario", fail)
    assert explore.explore(range(3), 5, (), 600.0, jobs=2) == 3
    out = capsys.readouterr().out
    assert "seed 2 failed:" in out
    assert "ValueError: planted" in out
    assert "failed: [0, 1, 2]" in out


def test_no_more_seeds_run_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert explore.explore(range(10_000), 5, (), 0.0, jobs=2) == 0
    assert "1 seeds in" in capsys.readouterr().out


def test_a_seed_without_end_ends_its_process_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_on(*args: object, **kwargs: object) -> scenario.Outcome:
        while True:
            pass

    monkeypatch.setattr(explore, "run_scenario", run_on)
    monkeypatch.setattr(explore, "SEED_S_MAX", 0.2)
    with pytest.raises(RuntimeError, match=r"it ran seed 7 or one of the 1 after it: .* --start 9 goes on"):
        explore.explore(range(7, 20), 5, (), 600.0, jobs=2)


def test_all_that_can_go_wrong_is_drawn() -> None:
    counts = sum((explore.drawn(draw_any(seed, 5)) for seed in range(200)), collections.Counter[str]())
    assert {kind.name for kind in FaultKind if kind not in STOPS} < set(counts)
    assert min(counts.values()) >= 5, counts

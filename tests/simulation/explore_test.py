"""The explorer tells the same of its seeds, however many processes run them."""

from __future__ import annotations

import collections
import os

import pytest

from tests.simulation import explore, scenario
from tests.simulation.explorer_draws import draw_any
from tests.simulation.scenario import FaultKind


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


def test_no_more_seeds_run_when_the_time_is_over_and_that_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert explore.explore(range(10_000), 5, (), 0.0, jobs=2) == 0
    assert "stopped after 1 of 10000 seeds: --start 1 --seeds 9999 runs" in capsys.readouterr().out


def test_all_seeds_run_where_no_time_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def take(seeds: range, num_tasks: int, without: object, seconds: float | None, jobs: int) -> int:
        limits.append((seeds, seconds))
        return 0

    monkeypatch.setattr(explore, "explore", take)
    assert explore.main(["--seeds", "10000"]) == 0
    assert limits == [(range(10_000), None)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_seed_that_ends_its_process_is_one_that_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    run_scenario = explore.run_scenario

    def end(seed: int, *args: object, **kwargs: object) -> scenario.Outcome:
        if seed == 8:
            os._exit(1)
        return run_scenario(seed, *args, **kwargs)

    monkeypatch.setattr(explore, "run_scenario", end)
    assert explore.explore(range(7, 12), 5, (), None, jobs) == 1
    out = capsys.readouterr().out
    assert "seed 8 failed:\nIt ended its process" in out
    assert "5 seeds in" in out


def test_a_seed_without_end_ends_its_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_on(*args: object, **kwargs: object) -> scenario.Outcome:
        while True:
            pass

    monkeypatch.setattr(explore, "run_scenario", run_on)
    monkeypatch.setattr(explore, "SEED_S_MAX", 0.2)
    assert explore.explore(range(7, 9), 5, (), None, jobs=1) == 2
    assert "failed: [7, 8]" in capsys.readouterr().out


def test_who_is_interrupted_tells_what_he_has_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(result: object) -> dict[str, int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(explore, "_counts", interrupt)
    assert explore.main(["--seeds", "3", "--tasks", "5"]) == 130
    assert "stopped after 1 of 3 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--seeds", "0"],
        ["--jobs", "0"],
        ["--tasks", "-1"],
        ["--log", "loud"],
        ["--trace"],
        ["--seconds", "x"],
    ],
)
def test_what_makes_no_sense_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        explore.main(wrong)
    assert refusal.value.code == 2


def test_all_that_can_go_wrong_is_drawn() -> None:
    counts = sum((explore.drawn(draw_any(seed, 5)) for seed in range(200)), collections.Counter[str]())
    assert {kind.name for kind in FaultKind} < set(counts)
    assert min(counts.values()) >= 5, counts

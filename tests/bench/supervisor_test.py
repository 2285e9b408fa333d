"""What becomes of workloads that go wrong, and of those that share a cluster with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.microbenchmark import processes
from ray_mono.microbenchmark.line import Group
from ray_mono.microbenchmark.supervisor import Outcome, Side, Supervisor, supervisor
from tests.bench import toy_workloads

TOYS = Side("toys", "math", catalogue="tests.bench.toy_workloads")


@pytest.fixture(scope="module")
def runner() -> Iterator[Supervisor]:
    with supervisor(duration_s=0.01, grace_s=0.5) as made:
        yield made


def outcomes(runner: Supervisor, group: Group) -> dict[str, Outcome]:
    """By line; each is told once."""
    found = list(runner.run(TOYS, group))
    assert len({outcome.line for outcome in found}) == len(found)
    return {outcome.line: outcome for outcome in found}


@pytest.fixture(scope="module")
def shared(runner: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], Path]:
    """What became of the workloads that share a cluster, and the file with the pid of what the hanging one
    started."""
    pid_file = tmp_path_factory.mktemp("toys") / "pid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_PID_FILE", str(pid_file))
        return outcomes(runner, toy_workloads.SHARED), pid_file


def test_every_line_has_an_outcome_whatever_the_others_do(shared: tuple[dict[str, Outcome], Path]) -> None:
    found, _ = shared
    assert found.keys() == {line.name for line in toy_workloads.SHARED.lines()}
    assert {name for name, outcome in found.items() if outcome.samples} == {"first", "half", "last"}


def test_the_reasons_are_told(shared: tuple[dict[str, Outcome], Path]) -> None:
    found, _ = shared
    assert found["other half"].problem == "ValueError: the other half"
    assert found["hangs"].problem.startswith("nothing for")
    assert found["dies"].problem == "the measuring process ended with status 7"
    assert found["later"].problem == "not yet: time travel"


def test_what_a_hanging_workload_started_is_gone(shared: tuple[dict[str, Outcome], Path]) -> None:
    _, pid_file = shared
    left = processes.find(int(pid_file.read_text()))
    assert left is None or left.is_zombie


def test_a_failure_ends_the_cluster_and_a_missing_feature_does_not(
    shared: tuple[dict[str, Outcome], Path],
) -> None:
    found, _ = shared
    assert found["first"].samples != found["last"].samples, "one process measured both"


def test_workloads_without_a_shared_cluster_have_a_process_each(runner: Supervisor) -> None:
    found = outcomes(runner, toy_workloads.ALONE)
    assert found["first"].samples != found["last"].samples


def test_lines_of_a_cluster_that_does_not_start_are_lost_together(runner: Supervisor) -> None:
    found = outcomes(runner, toy_workloads.NO_CLUSTER)
    assert {outcome.problem for outcome in found.values()} == {"the measuring process ended with status 1"}
    assert found.keys() == {"one", "two"}


def test_a_cluster_that_needs_a_missing_feature_is_for_later(runner: Supervisor) -> None:
    found = outcomes(runner, toy_workloads.MISSING)
    assert {outcome.problem for outcome in found.values()} == {"not yet: wings"}


def test_nothing_is_left_of_its_directory(tmp_path: Path) -> None:
    with supervisor(duration_s=0.01) as runner:
        list(runner.run(TOYS, toy_workloads.ALONE))
        directory = runner.work_dir
        assert directory.is_dir()
    assert not directory.exists()

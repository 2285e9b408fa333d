"""Drivers are told of a node that has many more workers than CPUs."""

from __future__ import annotations

from ray_mono.raylet.effects import WarnJob
from ray_mono.raylet.worker.binding import Binding
from ray_mono.raylet.worker.crowd_warnings import CrowdWarnings
from ray_mono.raylet.worker.worker_states import Worker, WorkerState

ENVIRONMENTS = "fewer runtime environments"


def workers(number: int, state: WorkerState, job_id: bytes = b"job", runtime_env: str = "") -> list[Worker]:
    return [Worker(b"", 1, state, binding=Binding(job_id, runtime_env)) for _ in range(number)]


def told(crowd: list[Worker], num_blocked: int = 0) -> str:
    (warning,) = CrowdWarnings(num_cpus=2, host="").due(crowd, num_blocked)
    assert isinstance(warning, WarnJob)
    return warning.message


def test_a_crowd_is_told_once_and_again_when_it_has_doubled() -> None:
    warnings = CrowdWarnings(num_cpus=4, host="10.0.0.7")
    crowd = workers(3, WorkerState.ACTOR) + workers(67, WorkerState.LEASED)
    told = {number: due for number in range(70) if (due := warnings.due(crowd[:number], number // 2))}
    assert list(told) == [16, 32, 64]
    (warning,) = told[32]
    assert isinstance(warning, WarnJob) and not warning.job_id
    for part in ("10.0.0.7", "32 worker processes", "4 CPUs", "3 are actors", "16 wait"):
        assert part in warning.message


def test_a_node_without_cpus_may_have_some_workers() -> None:
    crowd = workers(8, WorkerState.ACTOR)
    assert not CrowdWarnings(num_cpus=0, host="").due(crowd[:7], 0)
    assert CrowdWarnings(num_cpus=0, host="").due(crowd, 0)


def test_a_crowd_is_told_what_makes_it() -> None:
    actors = told(workers(9, WorkerState.ACTOR))
    assert "fewer actors" in actors and "are idle" not in actors and ENVIRONMENTS not in actors
    waiting = told(workers(9, WorkerState.LEASED), 8)
    assert "nest fewer waits" in waiting and "are idle" not in waiting and ENVIRONMENTS not in waiting


def test_workers_that_are_left_of_waits_are_not_ascribed_to_runtime_environments() -> None:
    left = told(workers(9, WorkerState.IDLE))
    assert "9 are idle now, and kept for a while for the job" in left and "nest fewer waits" in left
    assert ENVIRONMENTS not in left and "fewer actors" not in left
    other = told(workers(9, WorkerState.IDLE) + workers(1, WorkerState.IDLE, b"other"))
    assert "10 are idle" in other and "nest fewer waits" in other and ENVIRONMENTS not in other


def test_workers_of_many_runtime_environments_are_told_as_such() -> None:
    environments = told(
        [worker for number in range(9) for worker in workers(1, WorkerState.IDLE, b"job", str(number))]
    )
    assert (
        "9 are idle" in environments
        and ENVIRONMENTS in environments
        and "nest fewer waits" not in environments
    )
    jobs = told([worker for number in range(9) for worker in workers(1, WorkerState.IDLE, bytes([number]))])
    assert "9 are idle" in jobs and ENVIRONMENTS not in jobs and "nest fewer waits" not in jobs


def test_workers_that_start_or_end_are_not_idle() -> None:
    unbound = [Worker(b"", 1, WorkerState.IDLE), Worker(b"", 1)] * 4
    assert "idle" not in told(unbound + workers(4, WorkerState.ENDING))

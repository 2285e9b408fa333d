"""Drivers are told of a node that has many more workers than CPUs."""

from __future__ import annotations

from ray_mono.raylet.crowd_warnings import CrowdWarnings
from ray_mono.raylet.effects import WarnJob


def test_a_crowd_is_told_once_and_again_when_it_has_doubled() -> None:
    warnings = CrowdWarnings(num_cpus=4, host="10.0.0.7")
    told = {number: due for number in range(70) if (due := warnings.due(number, 3, number // 2))}
    assert list(told) == [16, 32, 64]
    (warning,) = told[32]
    assert isinstance(warning, WarnJob) and not warning.job_id
    for part in ("10.0.0.7", "32 worker processes", "4 CPUs", "3 are actors", "16 wait"):
        assert part in warning.message


def test_a_node_without_cpus_may_have_some_workers() -> None:
    assert not CrowdWarnings(num_cpus=0, host="").due(7, 7, 0) and CrowdWarnings(num_cpus=0, host="").due(8, 8, 0)


def test_a_crowd_is_told_what_makes_it() -> None:
    def told(num_actors: int, num_blocked: int) -> str:
        (warning,) = CrowdWarnings(num_cpus=2, host="").due(9, num_actors, num_blocked)
        assert isinstance(warning, WarnJob)
        return warning.message

    environments = told(0, 0)
    assert "9 are kept" in environments and "fewer runtime environments" in environments
    assert "wait in get()" not in environments and "fewer actors" not in environments
    assert "fewer actors" in told(9, 0) and "runtime environments" not in told(9, 0)
    assert "nest fewer waits" in told(0, 8) and "runtime environments" not in told(0, 8)

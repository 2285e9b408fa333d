"""The soak of soak.py in 20 seconds: the same deaths, workload and judges."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.stress.soak import Options, Soak

SECONDS = 20.0


@pytest.mark.timeout(280)  # it waits for what ends late, and says what that was
def test_nothing_is_lost_or_left_behind_while_processes_die(session_base: Path) -> None:
    seed = str(random.SystemRandom().randrange(10**6))
    report = Soak(Options(SECONDS, seed), session_base).run()
    assert not report.troubles, str(report)
    assert report.answers > 0
    assert sum(report.deaths.values()) >= 3

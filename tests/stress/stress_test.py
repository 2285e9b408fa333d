"""The stress of stress.py in 20 seconds: the same programs, killed driver and judges, with fewer actors."""

from __future__ import annotations

import random
from pathlib import Path

from tests.stress.stress import Options, Stress

SECONDS = 20.0


def test_nothing_is_lost_or_leaked_under_load(session_base: Path) -> None:
    seed = str(random.SystemRandom().randrange(10**6))
    report = Stress(Options(SECONDS, drivers=3, actors=9, seed=seed), session_base).run()
    assert not report.troubles, str(report)
    assert report.calls > 0

"""Whatever waits in a simulated cluster has a reason, and doing what it says unblocks it."""

from __future__ import annotations

import pytest

from ray_mono.common.explanation import DEADLOCK, WaitCode
from ray_mono.gcs import wait_reasons
from tests.simulation.checkers import CheckFailed
from tests.simulation.stuck_programs import Stuck

SEEDS = range(24)


def test_whatever_waits_has_a_reason_and_doing_what_it_says_unblocks_it() -> None:
    treated = {code for seed in SEEDS for code in Stuck(seed).play().treatments}
    assert treated >= {WaitCode.INFEASIBLE, WaitCode.RESOURCES, DEADLOCK}


def test_a_reason_without_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_reasons, "shortages", lambda required, nodes: [])
    with pytest.raises(CheckFailed, match="it is not said with what"):
        for seed in SEEDS:
            Stuck(seed).play()

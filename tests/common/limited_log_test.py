"""Lines that others cause are bounded, and their number is said."""

from __future__ import annotations

import logging

import pytest

from ray_mono.common.limited_log import LINES_MAX, PERIOD_S, LimitedLog


def test_a_flood_of_lines_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    log = LimitedLog(logging.getLogger("limited"), lambda: now_s)
    for number in range(1000):
        log.warning("refused %s", number)
    assert len(caplog.messages) == LINES_MAX and caplog.messages[-1] == f"refused {LINES_MAX - 1}"
    now_s = PERIOD_S / 2
    log.settle()
    assert len(caplog.messages) == LINES_MAX
    now_s = PERIOD_S
    log.settle()
    log.settle()
    assert caplog.messages[LINES_MAX:] == [
        f"{1000 - LINES_MAX} more lines like the last ones were left out in {PERIOD_S:g} s"
    ]
    log.warning("refused again")
    assert caplog.messages[-1] == "refused again"
    now_s = 3 * PERIOD_S
    log.warning("much later")
    assert caplog.messages[-1] == "much later" and len(caplog.messages) == LINES_MAX + 3

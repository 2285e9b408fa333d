"""What is told to whoever asks, who may be of another job."""

from __future__ import annotations

import pytest

from ray_mono.common.wait_messages import told_to_anybody


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("its worker died: exit code 1.", "its worker died: exit code 1"),
        ("its code raised SystemExit(3) (pid 7)", "its code raised SystemExit(3) (pid 7)"),
        ("its code raised SystemExit(None)", "its code raised SystemExit(None)"),
        ("its code raised SystemExit('a value'); it restarts", "its code raised SystemExit(…); it restarts"),
        ("its code raised SystemExit('it\\'s (a) value') (pid 7)", "its code raised SystemExit(…) (pid 7)"),
        ('its code raised SystemExit("it\'s a value")', "its code raised SystemExit(…)"),
        ("its code raised SystemExit({'a': ('value',)})", "its code raised SystemExit(…)"),
        ("its code raised SystemExit(3.5)", "its code raised SystemExit(…)"),
        ("one line\nand another", "one line"),
    ],
)
def test_what_a_program_left_with_is_its_own(message: str, told: str) -> None:
    assert told_to_anybody(message) == told

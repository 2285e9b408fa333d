"""What a call costs beside its floors: the command comes to figures, and both ways to write a call agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import call_floors
from bench.call_floors import VALUE, ByHand, ByMessage

TIMEOUT_S = 100


def test_what_is_written_by_hand_is_read_as_messages() -> None:
    by_hand, by_message = ByHand(), ByMessage()
    by_message.answer(by_hand.request())
    assert by_message.value(by_hand.answer(by_hand.request())) == VALUE


def test_each_call_of_many_in_flight_is_answered() -> None:
    assert all(used_us > 0 for used_us in call_floors.round_trip_us(ByHand(), 2500, 1000))


def test_the_command_prints_a_figure_for_each_line(session_base: Path) -> None:
    done = subprocess.run(
        [sys.executable, call_floors.__file__, "--calls=20", "--rounds=1"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for title in (
        "queue.SimpleQueue",
        "written by hand, 1,000 in flight",
        "call of an actor with 16 threads",
    ):
        [line] = [line for line in done.stdout.splitlines() if line.strip().startswith(title)]
        figures = [float(figure) for figure in line.strip().removeprefix(title).split()]
        assert figures
        assert all(figure >= 0 for figure in figures)

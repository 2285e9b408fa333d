"""Processes that end with another one, which is not their parent, whatever they do."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from ray_mono.common.lifeline import Lifeline, depend_on

HOLDS = "import sys; from ray_mono.common.lifeline import Lifeline; held = Lifeline(sys.argv[1])"
DEPENDS = "import sys; from ray_mono.common.lifeline import depend_on; depend_on(sys.argv[1])"
SAYS = "; print('ready', flush=True); "


def start(what: str, path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", what, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_who_depends_on_a_process_ends_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "life"
    with start(f"{HOLDS}{SAYS}input()", path) as holder:
        # One sleeps, one computes in C.
        sleeps = start(f"{DEPENDS}{SAYS}import time; time.sleep(1000)", path)
        computes = start(f"{DEPENDS}{SAYS}sum(range(10**14))", path)
        assert sleeps.poll() is None and computes.poll() is None
        holder.kill()
        for process in (sleeps, computes):
            with process:
                assert process.wait(60) == -signal.SIGKILL


def test_when_that_ends_in_order_as_well(tmp_path: Path) -> None:
    path = tmp_path / "life"
    lifeline = Lifeline(str(path))
    with start(f"{DEPENDS}{SAYS}import time; time.sleep(1000)", path) as process:
        lifeline.close()
        assert process.wait(60) == -signal.SIGKILL
    assert not path.exists() and not depend_on(str(path))


def test_another_may_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "life"
    path.touch()
    again = Lifeline(str(path))
    assert path.is_fifo()
    again.close()

"""A node that lost its place joins again, as soon as it can, and can be stopped until then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from ray_mono._private.node.rejoin import rejoin
from tests.waiting import wait_until

PROGRAM = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text() + "x" if path.exists() else "x")
sys.exit(path.read_text() != "x" * int(sys.argv[2]))
"""


def test_the_command_is_run_until_it_succeeds_and_then_the_record_goes(tmp_path: Path) -> None:
    record, runs = tmp_path / "record", tmp_path / "runs"
    record.touch()
    assert rejoin(str(record), [sys.executable, "-c", PROGRAM, str(runs), "2"]) == 0
    assert runs.read_text() == "xx"
    assert not record.exists()


def test_a_cluster_that_stays_away_is_not_waited_for(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert rejoin(str(tmp_path / "record"), [sys.executable, "-c", PROGRAM, str(runs), "9"], for_s=0.0) == 1
    assert runs.read_text() == "x"


def test_where_no_process_can_be_made_it_is_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcomes: list[Any] = [BlockingIOError(11, "no process"), subprocess.CompletedProcess([], 0)]
    with mock.patch.object(subprocess, "run", side_effect=outcomes):
        assert rejoin(str(tmp_path / "record"), ["start"]) == 0
    assert "the node was not started again: [Errno 11] no process" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_is_stopped_while_it_joins_does_not_join_later(tmp_path: Path, how: signal.Signals) -> None:
    began = tmp_path / "began"
    program = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(600)"
    command_line = [sys.executable, "-c", program, str(began)]
    joins = subprocess.Popen(
        [sys.executable, "-m", rejoin.__module__, str(tmp_path / "record"), *command_line],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    wait_until(lambda: began.exists() and began.read_text().endswith("\n"), "the command runs")
    command = psutil.Process(int(began.read_text()))
    try:
        joins.send_signal(how)
        joins.wait()
        wait_until(lambda: not command.is_running(), "the command has ended")
    finally:
        if command.is_running():
            command.kill()

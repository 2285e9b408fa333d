"""A node that lost its place joins again, as soon as it can, and can be stopped until then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ray_mono._private.node.rejoin import rejoin

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

"""Tracebacks of workers are completed with what only the driver's process knows: the cells of a notebook."""

from __future__ import annotations

import linecache
import pickle
from pathlib import Path

import pytest

from ray_mono import exceptions
from ray_mono.common.source_lines import add_source_lines

CELL = "<ipython-input-3-0a1b2c>"


@pytest.fixture(autouse=True)
def cell(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ["def f(x):\n", "    return 1 // x\n"]
    monkeypatch.setitem(linecache.cache, CELL, (len("".join(source)), None, source, CELL))


def text(file: str, *more: str) -> str:
    return "\n".join(
        [
            "Traceback (most recent call last):",
            f'  File "{file}", line 2, in f',
            *more,
            "ZeroDivisionError: by zero",
        ]
    )


def test_a_frame_in_a_cell_gets_its_source_line_where_the_error_arrives() -> None:
    error = exceptions.RayTaskError("f", text(CELL), ZeroDivisionError("by zero"))
    assert text(CELL, "    return 1 // x") in str(pickle.loads(pickle.dumps(error)))


def test_lines_that_are_there_and_frames_of_files_stay_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "other.py"
    file.write_text("something\nelse\n")
    linecache.getline(str(file), 1)
    for written in (text(CELL, "    return 1 // x"), text(str(file)), text("<string>"), "", "no traceback"):
        assert add_source_lines(written) == written

"""The bench of what a head keeps, on a small life."""

from __future__ import annotations

import asyncio

import pytest

from bench.head_growth import TENTHS, Size, measure


def test_each_tenth_of_a_life_is_lived_and_measured(
    session_base: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{session_base}/gcs.sqlite"
    rows = asyncio.run(measure(Size(tasks=1000, actors=20, drivers=10), path, f"{session_base}/log"))
    assert len(rows) == TENTHS and all(memory_mb > 0 and file_mb > 0 for memory_mb, file_mb in rows)
    assert capsys.readouterr().out.count("\n") == TENTHS + 1

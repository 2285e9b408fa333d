"""Where a log monitor was, read by the one after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mono._private.logs import log_positions
from ray_mono._private.logs.log_positions import InDoubt, LogPositions

JOB = bytes(4)


def opened(path: Path) -> LogPositions:
    positions = LogPositions(path)
    positions.open()
    return positions


def test_of_each_file_the_last_offset_is_known_and_the_last_batch_is_in_doubt(tmp_path: Path) -> None:
    first = LogPositions(tmp_path / "positions")
    first.open()
    assert (first.offsets, first.in_doubt) == ({}, None)
    first.passed_on("a", 10, 1, JOB, b"one")
    first.passed_on("b", 5, 2, JOB, b"two")
    first.passed_on("a", 20, 3, JOB, b"three")
    second = LogPositions(tmp_path / "positions")
    second.open()
    assert (second.offsets, second.sequence) == ({"a": 20, "b": 5}, 3)
    assert second.in_doubt == InDoubt(JOB, b"three")
    second.passed_on("a", 30, 4, JOB, b"four")
    assert opened(tmp_path / "positions").offsets == {"a": 30, "b": 5}


@pytest.mark.parametrize("num_lost", [1, 5, 60])
def test_a_record_that_is_not_whole_does_not_count(tmp_path: Path, num_lost: int) -> None:
    path = tmp_path / "positions"
    first = opened(path)
    first.passed_on("a", 10, 1, JOB, b"one")
    first.passed_on("a", 20, 2, JOB, b"two")
    path.write_bytes(path.read_bytes()[:-num_lost])
    second = opened(path)
    assert (second.offsets, second.in_doubt) == ({"a": 10}, InDoubt(JOB, b"one"))
    second.passed_on("a", 30, 3, JOB, b"three")
    assert opened(path).offsets == {"a": 30}


def test_a_monitor_that_died_before_it_passed_anything_on_was_there_all_the_same(tmp_path: Path) -> None:
    LogPositions(tmp_path / "positions").open()
    second = LogPositions(tmp_path / "positions")
    second.open()
    assert second.offsets == {} and second.in_doubt is None


def test_damage_ends_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "positions"
    first = opened(path)
    first.passed_on("a", 10, 1, JOB, b"one")
    size = path.stat().st_size
    first.passed_on("a", 20, 2, JOB, b"two")
    data = bytearray(path.read_bytes())
    data[size + 20] ^= 1
    path.write_bytes(data)
    assert opened(path).offsets == {"a": 10}


def test_the_journal_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_positions, "BYTES_MAX", 1000)
    path = tmp_path / "positions"
    positions = opened(path)
    positions.passed_on("gone", 1, 1, JOB, b"")
    positions.passed_on("b", 7, 2, JOB, b"")
    positions.forget("gone")
    for number in range(3, 100):
        positions.passed_on("a", number, number, JOB, b"x" * 100)
    assert path.stat().st_size < 1500
    later = opened(path)
    assert (later.offsets, later.sequence) == ({"a": 99, "b": 7}, 99)
    assert later.in_doubt == InDoubt(JOB, b"x" * 100)
    assert [entry.name for entry in tmp_path.iterdir()] == ["positions"]

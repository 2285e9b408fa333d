"""Where a node's store lies and how large it is: Ray's rules, for machines with much, little and no shared
memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import store_place
from ray_mono._private.node.resource_spec import MachineMemory
from ray_mono._private.node.store_place import SHARED_MEMORY, StorePlace, place_store, room_bytes

GB = 10**9
MB = 10**6


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., StorePlace]:
    """machine(wanted, free memory, room in shared memory, room on the disk): what place_store says there."""
    monkeypatch.delenv(store_place.ALLOW_SLOW_VARIABLE, raising=False)

    def place(wanted: Any, free: int, in_memory: int, on_disk: int, total: int = 1000 * GB) -> StorePlace:
        monkeypatch.setattr(
            store_place, "room_bytes", lambda path: in_memory if path == SHARED_MEMORY else on_disk
        )
        return place_store(wanted, MachineMemory(total, free), tmp_path / "not" / "yet")

    return place


@pytest.mark.parametrize(
    ("wanted", "free", "in_memory", "on_disk", "expected"),
    [
        (None, 10 * GB, 8 * GB, 100 * GB, (3 * GB, True)),
        (None, 10 * GB, 64 * MB, 100 * GB, (3 * GB, False)),  # Docker's default
        (None, 10 * GB, 0, 100 * GB, (3 * GB, False)),  # none, or not ours to write
        (None, 100 * GB, 20 * GB, 100 * GB, (19 * GB, True)),
        (None, 100 * GB, 5 * GB, 100 * GB, (10 * GB, False)),
        (None, 10 * GB, 64 * MB, 1 * GB, (0.95 * GB, False)),
        (None, 900 * GB, 500 * GB, 100 * GB, (200 * GB, True)),
        (300 * MB, 10 * GB, 300 * MB, 100 * GB, (300 * MB, True)),
        (300 * MB, 10 * GB, 64 * MB, 100 * GB, (300 * MB, False)),
        (3e8, 10 * GB, 1 * GB, 0, (300 * MB, True)),
    ],
)
def test_shared_memory_if_it_has_room_for_all_and_else_the_disk_with_a_warning(
    machine: Callable[..., StorePlace],
    caplog: pytest.LogCaptureFixture,
    wanted: Any,
    free: int,
    in_memory: int,
    on_disk: int,
    expected: tuple[float, bool],
) -> None:
    with caplog.at_level(logging.WARNING):
        assert machine(wanted, free, in_memory, on_disk) == StorePlace(int(expected[0]), expected[1])
    assert [f"has room for only {in_memory}" in line for line in caplog.messages] == [True] * (
        not expected[1]
    )


def test_a_store_that_finds_room_for_little_only_says_so(
    machine: Callable[..., StorePlace], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert machine(None, 10 * GB, 64 * MB, 20 * MB) == StorePlace(60_800_000, True)
    (line,) = caplog.messages
    assert (
        "only 60800000 bytes" in line and "has room for only 64000000 and" in line and "for 20000000" in line
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            50 * GB,
            r"object_store_memory is 50000000000 bytes, but /dev/shm has room for only 1000000000"
            r" and .*--shm-size",
        ),
        (
            20 * GB,
            r"has room for only 1000000000: ask for less.*RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1 uses a file",
        ),
        (10, "object_store_memory must be a number of bytes, at least 1048576, got 10"),
        (math.nan, "object_store_memory must be a number of bytes"),
        (math.inf, "object_store_memory must be a number of bytes"),
        (True, "object_store_memory must be a number of bytes"),
        ("1", "object_store_memory must be a number of bytes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    machine: Callable[..., StorePlace], wanted: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        machine(wanted, 10 * GB, 1 * GB, 30 * GB)


def test_slow_storage_that_is_meant_is_used(
    machine: Callable[..., StorePlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store_place.ALLOW_SLOW_VARIABLE, "1")
    assert machine(20 * GB, 10 * GB, 1 * GB, 30 * GB) == StorePlace(20 * GB, False)


def test_shared_memory_that_is_missing_has_no_room_and_is_told_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert room_bytes(tmp_path) > 0
    assert room_bytes(tmp_path / "missing") == 0
    monkeypatch.setattr(store_place, "SHARED_MEMORY", tmp_path / "missing")
    with caplog.at_level(logging.WARNING):
        assert not place_store(2 << 20, MachineMemory(20 * GB, 10 * GB), tmp_path).is_in_shared_memory
    assert len(caplog.messages) == 1 and f"{tmp_path}/missing is missing" in caplog.messages[0]
    assert "enlarge" not in caplog.messages[0]
    with pytest.raises(ValueError, match="missing is missing"):
        place_store(1 << 60, MachineMemory(1 << 61, 10 * GB), tmp_path)


def test_more_than_the_machine_has_is_refused_wherever_it_would_lie(
    machine: Callable[..., StorePlace],
) -> None:
    assert machine(4 * GB, 1 * GB, 8 * GB, 30 * GB, total=4 * GB).is_in_shared_memory
    with pytest.raises(
        ValueError,
        match="object_store_memory is 4000000001 bytes.*has only 4000000000 of memory: ask for less",
    ):
        machine(4 * GB + 1, 1 * GB, 8 * GB, 30 * GB, total=4 * GB)

"""When a worker is killed for its memory."""

from __future__ import annotations

import pytest

from ray_mono.raylet.memory.memory_monitor import MemoryMonitor
from ray_mono.raylet.memory.memory_usage import MemoryUsage
from ray_mono.raylet.memory.process_memory import ProcessMemory

FULL = MemoryUsage(96, 100)
WORKER, CHILD = (ProcessMemory(pid, 0, 1, 5, "") for pid in (7, 8))


def lives(process: ProcessMemory) -> bool:
    return True


def is_gone(process: ProcessMemory) -> bool:
    return False


@pytest.mark.parametrize(("used", "is_due"), [(0, False), (95, False), (96, True), (100, True), (120, True)])
def test_it_is_due_above_the_threshold(used: int, is_due: bool) -> None:
    monitor = MemoryMonitor(threshold=0.95, wait_s=5)
    assert monitor.is_due(MemoryUsage(used, 100), lives, 0.0) is is_due


def test_no_other_is_killed_before_the_last_one_is_gone() -> None:
    monitor = MemoryMonitor(threshold=0.95, wait_s=5)
    assert monitor.is_due(FULL, lives, 0.0)
    monitor.killed([WORKER], 0.0)
    assert not any(monitor.is_due(FULL, lives, now_s) for now_s in (0.25, 1.0, 4.9))
    # What is used was read before it was seen to be gone.
    assert not monitor.is_due(FULL, is_gone, 4.95)
    assert monitor.is_due(FULL, is_gone, 5.2)


def test_one_that_does_not_end_is_not_waited_for_for_ever() -> None:
    monitor = MemoryMonitor(threshold=0.95, wait_s=5)
    monitor.killed([WORKER], 0.0)
    assert not monitor.is_due(FULL, lives, 5.0)
    assert monitor.is_due(FULL, lives, 5.25)


def test_what_it_had_started_is_waited_for_too() -> None:
    monitor = MemoryMonitor(threshold=0.95, wait_s=5)
    monitor.killed([WORKER, CHILD], 0.0)
    assert not any(monitor.is_due(FULL, CHILD.__eq__, now_s) for now_s in (1.0, 2.0))
    assert not monitor.is_due(FULL, is_gone, 3.0)
    assert monitor.is_due(FULL, is_gone, 3.25)

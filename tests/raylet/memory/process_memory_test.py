"""What processes use, with those below them."""

from __future__ import annotations

from ray_mono.raylet.memory.process_memory import ProcessMemory, with_children


def test_a_process_uses_what_all_below_it_use() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 2, 5: 1}
    processes = {pid: ProcessMemory(pid, parent, 10**pid, "") for pid, parent in parents.items()}
    assert with_children(processes) == {1: 111110, 2: 11100, 3: 1000, 4: 10000, 5: 100000}


def test_ids_that_were_reused_meanwhile_confuse_nobody() -> None:
    processes = {1: ProcessMemory(1, 2, 5, ""), 2: ProcessMemory(2, 1, 7, "")}
    assert with_children(processes) == {1: 12, 2: 12}

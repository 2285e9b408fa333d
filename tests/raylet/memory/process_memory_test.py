"""Who belongs to whom among processes, and what they use."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from ray_mono.raylet.memory.process_memory import (
    Processes,
    ProcessMemory,
    all_processes,
    has_memory,
    kill,
    name_of,
)


def process(pid: int, parent_pid: int) -> ProcessMemory:
    return ProcessMemory(pid, 0, parent_pid, 10**pid, "")


def pids(processes: list[ProcessMemory]) -> list[int]:
    return sorted(process.pid for process in processes)


def test_a_process_uses_what_all_below_it_use() -> None:
    processes = Processes(process(pid, parent) for pid, parent in [(1, 0), (2, 1), (3, 2), (4, 3), (5, 1)])
    assert pids(processes.family(2)) == [2, 3, 4] and processes.used_by(2) == 11100
    assert pids(processes.family(1)) == [1, 2, 3, 4, 5] and processes.used_by(5) == 100000
    assert processes.family(9) == [] and processes.used_by(9) == 0


def test_ids_that_were_reused_meanwhile_confuse_nobody() -> None:
    assert pids(Processes([process(1, 2), process(2, 1)]).family(1)) == [1, 2]


def test_a_process_has_its_memory_until_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as child:
        (found,) = all_processes().family(child.pid)
        other = ProcessMemory(found.pid, found.start_ticks + 1, found.parent_pid, 0, "")
        kill(other)
        assert has_memory(found) and not has_memory(other)
        kill(found)
        assert child.wait() == -signal.SIGKILL
    assert not has_memory(found)
    kill(found)


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        ("/usr/bin/python3\0-P\0-m\0ray_mono.raylet.raylet\0--port\0" + "1\0", "ray_mono.raylet.raylet"),
        # A title is one argument.
        ("/usr/bin/python3 -P -m ray_mono.gcs.gcs_server --config {}\0\0\0", "ray_mono.gcs.gcs_server"),
        ("ray_mono::f", "ray_mono::f"),
        ("/usr/bin/python3\0-u\0/srv/code/train.py\0--password\0secret\0", "python3 train.py"),
        ("/usr/bin/python3\0-c\0print('secret')\0", "python3"),
        ("/usr/sbin/mysqld\0secret\0", "mysqld"),
        ("python3\0-m\0", "python3"),
        ("/", "/"),
        ("", "?"),
    ],
)
def test_a_process_is_named_without_what_may_be_secret(command_line: str, name: str) -> None:
    assert name_of(command_line) == name

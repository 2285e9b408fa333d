"""What a head can see of the process of the one before it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_mono.gcs.storage import head_process

TELLS = """
from ray_mono.gcs.storage import head_process
print(head_process.own_name(), flush=True)
input()
"""


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", TELLS], stdin=pipe, stdout=pipe, text=True, env=environment
    )
    yield process
    process.kill()
    process.communicate()


def name_of(other: subprocess.Popen[str]) -> str:
    assert other.stdout is not None
    return other.stdout.readline().strip()


def test_a_process_has_ended_when_it_was_killed_and_not_while_it_is_stopped(
    other: subprocess.Popen[str],
) -> None:
    name = name_of(other)
    assert not head_process.has_ended(name)
    other.send_signal(signal.SIGSTOP)
    assert not head_process.has_ended(name)
    other.kill()
    other.wait()
    assert head_process.has_ended(name)


def test_another_process_that_got_its_pid_is_not_taken_for_it() -> None:
    own = head_process.own_name()
    assert not head_process.has_ended(own)
    place_and_pid, _, start_ticks = own.rpartition(" ")
    assert head_process.has_ended(f"{place_and_pid} {int(start_ticks) - 1}")


@pytest.mark.parametrize("name", ["", "another-boot/pid:[1] 1 1"])
def test_of_a_process_elsewhere_nothing_is_known(name: str) -> None:
    assert not head_process.has_ended(name)


def test_what_is_no_name_says_nothing() -> None:
    place = head_process.own_name().split(" ")[0]
    assert not head_process.has_ended(f"{place} x y")

"""Processes die with their parents, and orphans are adopted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ray_mono
from ray_mono.common import process

# A parent that forks a child tied to it, tells the child's id, and waits.
PARENT = """
import os, signal, sys
from ray_mono.common.process import set_pdeathsig
parent = os.getpid()
ready_read, ready_write = os.pipe()
child = os.fork()
if child == 0:
    set_pdeathsig(signal.SIGKILL, parent)
    os.write(ready_write, b"x")
    signal.pause()
os.read(ready_read, 1)
print(child, flush=True)
signal.pause()
"""

A_ZOMBIE = """
zombie = os.fork()
if zombie == 0:
    os._exit(0)
os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)"""

# A child that leaves a grandchild behind.
ORPHANER = """
import os, signal
grandchild = os.fork()
if grandchild == 0:
    signal.pause()
print(grandchild, flush=True)
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def test_a_tied_child_dies_with_its_parent() -> None:
    parent = start(PARENT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert process.is_alive(child)
    parent.kill()
    parent.wait()
    # Our end of the pipe that the child shares ends when the last holder is dead.
    assert parent.stdout.read() == ""
    parent.stdout.close()


def test_a_child_whose_parent_is_another_dies_at_once() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from ray_mono.common.process import *; set_pdeathsig(parent_pid=1); print('alive')",
        ],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL and done.stdout == b""


def test_a_subreaper_adopts_orphans() -> None:
    pid = os.fork()
    if (
        pid == 0
    ):  # not in the test's own process: there is no way back from being a subreaper for its other children
        try:
            process.set_child_subreaper()
            child = start(ORPHANER)
            assert child.stdout is not None
            orphan = int(child.stdout.readline())
            child.wait()
            os.kill(orphan, signal.SIGKILL)
            os._exit(0 if os.waitpid(orphan, 0) == (orphan, signal.SIGKILL) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_cpu_that_a_process_uses_has_that_of_all_below_it_whether_they_live_or_have_ended() -> None:
    """The child says when it and what it started have used some: one that lives, and one that has ended."""
    burn = "end = time.process_time() + 0.2\nwhile time.process_time() < end: pass\n"
    below = f"import sys, time\n{burn}print(1, flush=True)\nsys.stdin.read()"
    program = (
        f"import subprocess, sys, time\nbelow = {below!r}\n"
        "started = [subprocess.Popen([sys.executable, '-c', below], stdin=way, stdout=subprocess.PIPE)"
        " for way in (subprocess.DEVNULL, subprocess.PIPE)]\n"
        "for each in started: each.stdout.readline()\n"
        f"started[0].wait()\n{burn}print(1, flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        used_s = process.cpu_time_s(child.pid)
        child.kill()
    assert 0.5 < used_s < 5
    with pytest.raises(OSError):
        process.cpu_time_s(child.pid)


def test_a_zombie_is_not_alive() -> None:
    assert process.is_alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive(child.pid)
    child.wait()
    assert not process.is_alive(child.pid)


def test_what_lives_below_a_process_is_told_parents_first_and_without_zombies() -> None:
    program = PARENT.replace("os.read(ready_read, 1)", f"os.read(ready_read, 1){A_ZOMBIE}")
    with start(program) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        below = process.descendants(os.getpid())
        assert process.descendants(parent.pid) == [child] and below.index(parent.pid) < below.index(child)
        row = process.living(child)
        assert row is not None and row.parent_pid == parent.pid and not row.is_ending
        parent.kill()


def test_the_launchers_id_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.PARENT_PID_VARIABLE, "12")
    assert process.parent_pid_from_environment() == 12
    assert process.PARENT_PID_VARIABLE not in os.environ
    assert process.parent_pid_from_environment() is None


def test_the_interpreter_of_a_virtualenv_is_known_without_dots_and_stays_the_virtualenv_s(
    tmp_path: Path,
) -> None:
    real = tmp_path / "real" / "bin"
    real.mkdir(parents=True)
    (real / "python").symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "link").symlink_to(real.parent)
    source = "from ray_mono.common.process import INTERPRETER; print(INTERPRETER)"
    env = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(ray_mono.__file__))}
    for start, name in (("link/../real/bin/python", real / "python"), ("real/bin/python", real / "python")):
        done = subprocess.run(
            [tmp_path / start, "-c", source], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == str(name), done.stderr


def test_a_program_without_an_interpreter_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "INTERPRETER", "")
    with pytest.raises(RuntimeError, match="sys.executable is empty"):
        process.module_command("ray_mono.x")


# Starts as `python -c PROGRAM ARGUMENTS…`, hides, and shows what others see of it and what it sees itself.
HIDER = """
import sys
from ray_mono.common.process import hide_argument
hide_argument("--password")
shown = open("/proc/self/cmdline").read().split(chr(0), 3)[3].replace(chr(0), " ").rstrip()
sys.stdout.write(shown + "|" + " ".join(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["start", "--password", "hunter2", "--block"], "start --password ******* --block"),
        (["--password=hunter2"], "--password=*******"),
        (["--password=", "--password=a=b", "x"], "--password= --password=*** x"),
        (["--password"], "--password"),
        (["--password", "--password", "--password", "x"], "--password ********** --password *"),
        (["--passwords=x", "password"], "--passwords=x password"),
    ],
)
def test_a_secret_on_the_command_line_is_hidden_from_others(arguments: list[str], shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDER, *arguments],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{shown}|{' '.join(arguments)}"

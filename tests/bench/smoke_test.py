"""The tools on a real cluster and on the real machine, for a moment: that they come to figures, not which."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from bench import floors, frames
from ray_mono.microbenchmark import calls, processes, start
from ray_mono.microbenchmark.supervisor import supervisor

TIMEOUT_S = 100
LONGEST_WALKS = {
    "task, remote": (24, 11),
    "task, get": (30, 11),
    "actor call, remote": (24, 11),
    "actor call, get": (30, 11),
    "streamed item, next": (7, 4),
    "streamed item, get": (2, 2),
}
"""(functions, files) that a usual call may enter on its caller's thread."""


def test_the_command_measures_calls_and_writes_what_it_measured(session_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    command = [sys.executable, "-m", "ray_mono.scripts", "microbenchmark", f"--json={path}"]
    done = subprocess.run(
        [*command, "--only=actor calls sync", "--quick", "--duration-s=0.02"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1:1 actor calls sync per second " in done.stdout
    written = {line["name"]: line for line in json.loads(path.read_text())["lines"]}
    assert all(sample > 0 for sample in written["1:1 actor calls sync"]["samples"])
    assert written["two nodes: 1:1 actor calls sync"]["unit"] == "/s"
    assert written["client: 1:1 actor calls sync"]["problem"] == "not yet: the client server"


def test_an_unknown_pattern_is_refused(session_base: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ray_mono.scripts", "microbenchmark", "--only=warp drive"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 2
    assert "no workload is about 'warp drive'" in done.stderr


def test_floors_are_measured() -> None:
    names = {calls.ECHO, calls.ECHO_ONE_CPU, calls.ECHO_PIPELINED, floors.PIPE, start.forks_floor(20)}
    with supervisor(duration_s=0.02) as runner:
        found = {outcome.line: outcome for outcome in floors.measure(runner, names)}
    assert found.keys() == names
    assert all(outcome.samples and min(outcome.samples) > 0 for outcome in found.values())


def test_a_call_and_its_get_are_a_short_walk(session_base: Path) -> None:
    done = subprocess.run(
        [sys.executable, frames.__file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(item for item in sys.path if item)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(.+): (\d+) functions in (\d+) files", done.stdout, re.MULTILINE)
    walks = {name: (int(functions), int(files)) for name, functions, files in found}
    assert walks.keys() == LONGEST_WALKS.keys(), done.stdout
    for name, (functions, files) in LONGEST_WALKS.items():
        assert walks[name] <= (functions, files) and walks[name][1] <= files, (name, walks[name])


def test_processes_are_seen_with_those_below_them() -> None:
    program = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    )
    outer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert outer.stdin and outer.stdout
    assert outer.stdout.readline() == b"1\n"
    below = processes.descendants(outer.pid)
    assert [process.parent_pid for process in below] == [outer.pid]
    assert "input()" in processes.command(below[0].pid)
    assert 0 < processes.private_bytes(below[0].pid) <= processes.pss_bytes(below[0].pid)
    outer.communicate(b"\n")
    processes.end_all(below, grace_s=30)
    assert not any(map(processes.is_running, below))

"""Bars of workers on the driver: a program at a terminal, and one whose output goes to a file."""

from __future__ import annotations

import os
import pty
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripts import Script
from tests.python._private.logs.terminal import Terminal

PROGRAM = """
    import os
    import sys
    import time
    import ray_mono as ray
    from ray_mono.experimental import tqdm_ray

    @ray.remote(num_cpus=0)
    class Worker:
        def work(self, name, gate):
            for step in tqdm_ray.tqdm(range(100), desc=name, flush_interval_s=0):
                if step % 50 == 0:
                    print("line", name, step)
                while step == 60 and not os.path.exists(gate):
                    time.sleep(0.01)
            return name

    ray.init(num_cpus=2)
    workers = [Worker.remote() for _ in range(2)]
    list(tqdm_ray.tqdm(range(1), desc="driver"))
    print(ray.get([worker.work.remote(f"w{number}", sys.argv[1]) for number, worker in enumerate(workers)]))
    input()
    ray.shutdown()
"""
BARS = ("driver", "w0", "w1")


def test_without_a_terminal_each_bar_ends_as_one_line_and_its_states_are_not_seen(
    start: Callable[..., Script],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both workers' lines are looked for.
    monkeypatch.setenv("RAY_MONO_DEDUP_LOGS", "0")
    script = start(PROGRAM, str(tmp_path))
    for _ in BARS:
        script.wait_for_line(": 100%")
    script.say("")
    output = script.check_ended_well()
    assert "::ray_mono_progress::" not in output and "\x1b[1A" not in output
    lines = output.splitlines()
    for name in ("w0", "w1"):
        (last,) = [line for line in lines if f"{name}: 100%" in line]
        assert last.startswith("(Worker pid=") and " 100/100 [" in last
        assert [line.partition(") ")[2] for line in lines if f"line {name}" in line] == [
            f"line {name} 0",
            f"line {name} 50",
        ]
    assert any(line.startswith("driver: 100%") for line in lines) and "['w0', 'w1']" in lines


def test_at_a_terminal_no_line_is_torn(session_base: Path, tmp_path: Path) -> None:
    path, gate = tmp_path / "program.py", tmp_path / "gate"
    path.write_text(textwrap.dedent(PROGRAM))
    pid, terminal = pty.fork()
    if not pid:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.execv(sys.executable, [sys.executable, str(path), str(gate)])
    output = b""
    has_said = False
    try:
        while data := os.read(terminal, 65536):
            output += data
            if b"w0:  60%" in output and b"w1:  60%" in output:
                gate.touch()  # from here on, both bars are on the screen
            if (
                not has_said
                and all(f"{name}: 100%".encode() in output for name in BARS)
                and b"['w0'" in output
            ):
                os.write(terminal, b"\n")
                has_said = True
    except OSError:  # the program has ended
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, output.decode()
    screen = Terminal()
    screen.write(output.decode())
    assert "::ray_mono_progress::" not in output.decode() and b"\x1b[1A" in output
    torn = [
        line
        for line in screen.screen()
        if line.count("pid=") > 1 or ("line" in line and "%" in line) or line.count("%|") > 1
    ]
    assert not torn
    for name in BARS:
        assert any(f"{name}: 100%" in line for line in screen.screen())
    assert "['w0', 'w1']" in screen.screen()

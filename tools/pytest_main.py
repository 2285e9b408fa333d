"""Runs pytest on the file that a Bazel test target names, and fails when a process outlives it.

It is the parent of pytest and a subreaper: whatever a test leaves behind, also through a double fork, becomes
its child, is named, and is ended. Tests get a short TMPDIR (Bazel's TEST_TMPDIR is too long for the path of a
Unix socket) and a HOME of their own; both are removed at the end.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36
# What a test ended in its last moment may still need this long to be gone.
GRACE_S = 5.0
# At a timeout: from the interrupt to the next, harder signal.
STEP_S = 4


def become_subreaper() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def plugin_options(file: str) -> list[str]:
    """Hypothesis's plugin imports all of Hypothesis at the end of each run, which takes longer than most
    files run: without it where the file does not use it."""
    return [] if "hypothesis" in Path(file).read_text() else ["-p", "no:hypothesispytest"]


def start_pytest(arguments: list[str], folder: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "pyproject.toml",
        "--rootdir=.",
        *plugin_options(arguments[0]),
        *arguments,
    ]
    report = os.environ.get("XML_OUTPUT_FILE")
    if report:
        command.append(f"--junitxml={report}")
    home = os.path.join(folder, "home")
    os.mkdir(home)
    environment = {**os.environ, "TMPDIR": folder, "HOME": home, "PYTHONUNBUFFERED": "1"}
    # A group of its own: Bazel sends SIGTERM to the whole group at a timeout, and pytest would end without a
    # word.
    return subprocess.Popen(command, env=environment, process_group=0)


def end_in_steps(pytest: subprocess.Popen[bytes]) -> None:
    """Has a SIGTERM (Bazel's, at a timeout) end pytest so that it says where it was.

    An interrupt makes it print the place and run the fixtures' ends; if that does not help, SIGABRT makes it
    print the stack of every thread. Bazel kills everything 15 s after its SIGTERM.
    """
    steps = [signal.SIGINT, signal.SIGABRT, signal.SIGKILL]

    def next_step(_number: int, _frame: FrameType | None) -> None:
        if steps:
            pytest.send_signal(steps.pop(0))
            signal.alarm(STEP_S)

    signal.signal(signal.SIGTERM, next_step)
    signal.signal(signal.SIGALRM, next_step)


def wait_for(pytest: subprocess.Popen[bytes]) -> int:
    """The exit code of pytest. Reaps orphans meanwhile, so that a test sees no process linger as a zombie."""
    while True:
        pid, status = os.wait()
        if pid == pytest.pid:
            return os.waitstatus_to_exitcode(status)


def children() -> dict[int, str]:
    """The living children of this process, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_leftovers() -> list[str]:
    """Waits for what is about to end, then kills the rest, grandchildren too. Returns what it killed."""
    deadline = time.monotonic() + GRACE_S
    while children() and time.monotonic() < deadline:
        reap()
        time.sleep(0.02)
    killed = []
    while left := children():
        for pid, command in left.items():
            killed.append(f"{pid}: {command}")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for pid in left:
            os.waitpid(pid, 0)
    return killed


def main() -> int:
    become_subreaper()
    folder = tempfile.mkdtemp(prefix="rm-", dir="/tmp")
    try:
        pytest = start_pytest(sys.argv[1:], folder)

        end_in_steps(pytest)
        code = wait_for(pytest)
        leftovers = end_leftovers()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if leftovers:
        print("Processes outlived the tests and were killed:", *leftovers, sep="\n  ", file=sys.stderr)
        return code or 1
    return code


if __name__ == "__main__":
    sys.exit(main())

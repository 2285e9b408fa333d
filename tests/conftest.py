"""Fixtures that all tests share: a place of its own for each test's sessions, and the proof that nothing of
them is left.

Works under plain pytest and in Bazel's sandbox, where HOME is unset and the directory for temporary files has
a path that is too long for a Unix socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# What ends by itself may still be ending when a test is over.
LEFTOVER_TIMEOUT_S = 10.0
# What the user who runs the tests may have set, and what no test means.
OUTSIDE_VARIABLES = (
    "RAY_MONO_ADDRESS",
    "RAY_MONO_AUTH_TOKEN",
    "RAY_MONO_AUTH_TOKEN_PATH",
    "RAY_MONO_ENABLE_AUTO_CONNECT",
    "RAY_MONO_LOG_TO_DRIVER",
    "RAY_MONO_NAMESPACE",
    "RAY_MONO_REDIS_ADDRESS",
    "RAY_MONO_REDIS_PASSWORD",
    "RAY_MONO_REDIS_USERNAME",
    "RAY_MONO_RUNTIME_ENV_HOOK",
)


@pytest.fixture
def session_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The base directory of the test's sessions (RAY_MONO_TMPDIR), short and new. After the test nothing of
    its own may be left: no process, no listening socket, no shared memory."""
    for variable in OUTSIDE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    base = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    monkeypatch.setenv("RAY_MONO_TMPDIR", str(base))
    # Else the secret in the home directory of whoever runs the tests would be found.
    monkeypatch.setenv("HOME", str(base))
    before = set(psutil.Process().children(recursive=True))
    try:
        yield base
        left = leftovers(base, before)
    finally:
        end_processes(processes_of(base, before))
        for path in shared_memory_of(base):
            path.unlink(missing_ok=True)
        shutil.rmtree(base, ignore_errors=True)
    assert not left, "left behind:\n" + "\n".join(left)


def leftovers(base: Path, before: set[psutil.Process]) -> list[str]:
    """What of the sessions in `base`, and of the children of this process besides `before`, is still there, a
    line each."""
    _, alive = psutil.wait_procs(processes_of(base, before), timeout=LEFTOVER_TIMEOUT_S)
    found = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(f"process {process.pid}: {' '.join(process.cmdline())} ({process.status()})")
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        path = line.split(maxsplit=7)[7:]
        if path and path[0].startswith(f"{base}/"):
            found.append(f"socket {path[0]}")
    for directory, _, names in os.walk(base):
        for name in names:
            path = os.path.join(directory, name)
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                found.append(f"socket file {path}")
    return found + [f"shared memory {path}" for path in shared_memory_of(base)]


def processes_of(base: Path, before: set[psutil.Process]) -> list[psutil.Process]:
    """This process's new children, and every process that was started with this base or has a file open
    there, wherever it hangs now."""
    found = set(psutil.Process().children(recursive=True)) - before
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and _belongs_to(process, base):
                found.add(process)
    return sorted(found, key=lambda process: process.pid)


def _belongs_to(process: psutil.Process, base: Path) -> bool:
    """By its environment or, where a title lies over that, by the log of its session to which its output
    goes."""
    return process.environ().get("RAY_MONO_TMPDIR") == str(base) or any(
        file.path.startswith(f"{base}/") for file in process.open_files()
    )


def shared_memory_of(base: Path) -> list[Path]:
    names = {path.name for path in base.rglob("session_*") if path.is_dir()}
    return [path for path in Path("/dev/shm").iterdir() if any(name in path.name for name in names)]


def end_processes(processes: list[psutil.Process]) -> None:
    """So that one test's failure is not the next one's."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=LEFTOVER_TIMEOUT_S)

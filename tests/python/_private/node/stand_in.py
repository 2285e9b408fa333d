"""Stand-ins for services: small programs that announce themselves as services do, and do what tests need."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

from ray_mono._private.node.reaper_client import ReaperHandle, ServiceSpec
from ray_mono._private.node.service_process import END_NODE

READY_TIMEOUT_S = 30.0

ANNOUNCE = """
import json, os, signal, sys
def announce():
    fd = int(sys.argv[sys.argv.index("--ready-fd") + 1])
    os.write(fd, json.dumps({"address": "127.0.0.1:1"}).encode() + b"\\n")
    os.close(fd)
"""
SERVE = ANNOUNCE + "announce()\nsignal.pause()\n"
SERVE_STUBBORNLY = (
    ANNOUNCE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nannounce()\nwhile True: signal.pause()\n"
)
FAIL = "import sys; print('no luck today', file=sys.stderr); sys.exit(3)"


def kill_on_sigterm(pid: int) -> str:
    """A program that kills the other process when it is asked to end, and ends."""
    return (
        ANNOUNCE
        + f"""
def end(*_):
    os.kill({pid}, signal.SIGKILL)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
announce()
signal.pause()
"""
    )


def write_on_sigterm(path: Path, text: str) -> str:
    """A program that appends the text to the file when it is asked to end, and ends."""
    return (
        ANNOUNCE
        + f"""
def end(*_):
    with open({str(path)!r}, "a") as file:
        file.write({text!r})
    os._exit(0)
signal.signal(signal.SIGTERM, end)
announce()
signal.pause()
"""
    )


def spec(
    name: str, code: str, directory: Path, *, wants_ready: bool = True, after_exit: str = END_NODE
) -> ServiceSpec:
    return ServiceSpec(
        name=name,
        argv=[sys.executable, "-c", code],
        env=dict(os.environ),
        stdout=str(directory / f"{name}.out"),
        stderr=str(directory / f"{name}.err"),
        wants_ready=wants_ready,
        after_exit=after_exit,
    )


def launch(directory: Path, grace_period_s: float = 10.0) -> ReaperHandle:
    return ReaperHandle.launch(directory, directory / "reaper.log", reaper_environment(), grace_period_s)


def reaper_environment() -> dict[str, str]:
    """Where the package is found by a process of its own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def wait_until_gone(pid: int, timeout_s: float = 30.0) -> None:
    """Returns when no process has the pid; a child of this process has to be waited for by its parent."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(timeout_s * 1000), f"process {pid} is still there after {timeout_s:g} s"
    finally:
        os.close(pidfd)

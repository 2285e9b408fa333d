"""Runs groups of workloads in child processes of one side, and bounds each in time.

A side is an interpreter and the module that it is to measure. The child says which workload it begins and
what it measured. When nothing new has come for as long as the workload may take, or the child has ended, the
lines it still owed are lost with a reason, and a new child does the workloads that are left. Before the next
child starts, every process that the last one made is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray_mono
from ray_mono.common.our_bug import InternalError
from ray_mono.microbenchmark import processes
from ray_mono.microbenchmark.line import Group, Workload

# A cluster's start and its end belong to no workload.
CLUSTER_TIMEOUT_S = 120.0
GRACE_S = 15.0
LOG_TAIL_LINES = 30
# A line's repetitions may overrun their duration by warm-up and slices that take longer than they should.
DURATION_FACTOR = 4
# Where the modules would find a cluster that is not the one to measure; and what keeps a checkout from being
# compiled once, as installing a package does: each process would compile it anew.
OUTSIDE_VARIABLES = ("RAY_ADDRESS", "RAY_MONO_ADDRESS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True)
class Side:
    """What is measured."""

    name: str
    """As tables call it."""
    module: str
    python: str = sys.executable
    catalogue: str = "ray_mono.microbenchmark.catalogue"
    """The module whose GROUPS the child looks in."""
    catalogue_path: str = ""
    """Where that module lies, if not in the package."""
    brings_package: bool = False
    """Whether the interpreter has this package itself, of a version of its own, which is what runs then."""


@dataclass(frozen=True)
class Outcome:
    """Of one line in one run: samples, or why there are none."""

    line: str
    samples: list[float] = field(default_factory=list)
    problem: str = ""


class Tally:
    """What a child that was given these workloads has told so far."""

    def __init__(self, workloads: list[Workload], duration_s: float) -> None:
        self._workloads = workloads
        self._duration_s = duration_s
        self.begun = 0
        """Workloads that are dealt with: each is tried once."""
        self._is_running = False
        self._told: set[str] = set()
        self._problems: dict[str, str] = {}

    def hear(self, event: dict[str, Any]) -> Iterator[Outcome]:
        match event["event"]:
            case "workload":
                self.begun += 1
                self._is_running = True
            case "line":
                self._told.add(event["name"])
                yield Outcome(event["name"], event["samples"])
            case "failed":
                self._is_running = False
                self._problems[self._workloads[self.begun - 1].name] = event["why"]
            case "done":
                self._is_running = False
            case other:
                raise InternalError(f"the child told of an unknown event {other!r}")

    def patience_s(self) -> float:
        """How long the next event may take."""
        if self._is_running:
            return self._workloads[self.begun - 1].timeout_s + DURATION_FACTOR * self._duration_s
        return CLUSTER_TIMEOUT_S

    def end(self, how: str) -> Iterator[Outcome]:
        """The lines that will not come any more. how: the child's end, for people."""
        if not self.begun:
            # No cluster: the rest would fare the same.
            self.begun = len(self._workloads)
        for workload in self._workloads[: self.begun]:
            for line in workload.lines:
                if line.name not in self._told:
                    yield Outcome(line.name, problem=self._problems.get(workload.name, how))


class Supervisor:
    """Runs children one after another in `work_dir`. verbose: what they print goes to stderr; otherwise its
    end, and only of those that failed. grace_s: for what a child leaves to end by itself."""

    def __init__(self, work_dir: Path, duration_s: float, verbose: bool, grace_s: float) -> None:
        self.work_dir = work_dir
        self._duration_s = duration_s
        self._verbose = verbose
        self._grace_s = grace_s
        self._secret = secrets.token_hex(32)
        self._packages = work_dir / "packages"
        self._packages.mkdir()
        # Alone: what is installed beside it is not for an interpreter that has packages of its own.
        (self._packages / "ray_mono").symlink_to(Path(ray_mono.__file__).absolute().parent)

    def run(self, side: Side, group: Group) -> Iterator[Outcome]:
        """Measures the group's workloads; yields each of their lines once, when its outcome is known."""
        waiting = group.workloads
        while waiting:
            # Without a cluster to share, each has a process of its own.
            now = waiting[:1] if group.cluster is None else waiting
            tally = Tally(now, self._duration_s)
            yield from self._run_child(side, group, now, tally)
            waiting = waiting[tally.begun :]

    def _run_child(
        self, side: Side, group: Group, workloads: list[Workload], tally: Tally
    ) -> Iterator[Outcome]:
        sessions = self.work_dir / "s"
        sessions.mkdir()
        log = self.work_dir / "child.log"
        read_fd, write_fd = os.pipe()
        try:
            with open(log, "wb") as output:
                child = subprocess.Popen(
                    self._command(side, group, workloads, write_fd),
                    env=self._environment(side, sessions),
                    cwd=self.work_dir,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr if self._verbose else output,
                    stderr=subprocess.STDOUT if not self._verbose else None,
                    pass_fds=[write_fd],
                    start_new_session=True,
                )
            os.close(write_fd)
            below: list[processes.Process] = []
            is_over = False
            try:
                for event in read_events(read_fd, tally.patience_s):
                    below = processes.descendants(child.pid) or below
                    yield from tally.hear(event)
                is_over = True
            finally:
                below += processes.descendants(child.pid)
                how = _end(child, CLUSTER_TIMEOUT_S if is_over else 0.0)
                processes.end_all(below, self._grace_s)
        except TimeoutError as error:
            how = str(error)
        finally:
            os.close(read_fd)
            shutil.rmtree(sessions, ignore_errors=True)
        lost = list(tally.end(how))
        if lost and not self._verbose and not all(item.problem.startswith("not yet") for item in lost):
            tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            print(f"--- {side.name}: {lost[0].line}: {lost[0].problem}", *tail, sep="\n    ", file=sys.stderr)
        yield from lost

    def _command(self, side: Side, group: Group, workloads: list[Workload], events_fd: int) -> list[str]:
        return [
            *(side.python, "-m", "ray_mono.microbenchmark.child"),
            *("--module", side.module, "--catalogue", side.catalogue, "--group", group.name),
            *("--workloads", json.dumps([workload.name for workload in workloads])),
            *("--duration-s", str(self._duration_s), "--events-fd", str(events_fd)),
        ]

    def _environment(self, side: Side, sessions: Path) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in OUTSIDE_VARIABLES}
        if side.brings_package:
            path = []
        elif side.python == sys.executable:
            path = [item for item in sys.path if item]
        else:
            path = [str(self._packages)]
        if side.catalogue_path:
            path.append(side.catalogue_path)
        return {
            **env,
            "PYTHONPATH": os.pathsep.join(path),
            "RAY_MONO_TMPDIR": str(sessions),
            "RAY_TMPDIR": str(sessions),
            # Ray would report to its makers.
            "RAY_USAGE_STATS_ENABLED": "0",
            # As it is by default, but its client only knows if it is told.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._secret,
        }


@contextlib.contextmanager
def supervisor(duration_s: float, verbose: bool = False, grace_s: float = GRACE_S) -> Iterator[Supervisor]:
    """With a directory for its children, short enough for the sockets in it, which is gone afterwards."""
    work_dir = Path(tempfile.mkdtemp(prefix="rmb-", dir="/tmp"))
    try:
        yield Supervisor(work_dir, duration_s, verbose, grace_s)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def read_events(read_fd: int, patience_s: Any) -> Iterator[dict[str, Any]]:
    """Events until the writer closes. patience_s: asked before each wait.

    Raises TimeoutError when nothing came for that long.
    """
    unread = b""
    deadline_s = time.monotonic() + patience_s()
    with selectors.DefaultSelector() as selector:
        selector.register(read_fd, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                raise TimeoutError(f"nothing for {patience_s():.0f} s")
            data = os.read(read_fd, 1 << 16)
            if not data:
                return
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                yield json.loads(line)
            deadline_s = time.monotonic() + patience_s()


def _end(child: subprocess.Popen[bytes], timeout_s: float) -> str:
    """Waits for the child to end, and kills it after `timeout_s`. Returns how it ended, for people."""
    try:
        return f"the measuring process ended with status {child.wait(timeout_s)}"
    except subprocess.TimeoutExpired:
        # Its stacks, into the log.
        child.send_signal(signal.SIGUSR2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)
        child.kill()
        child.wait()
        return "the measuring process had to be killed"

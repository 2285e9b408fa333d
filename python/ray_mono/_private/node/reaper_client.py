"""The starter's side of a reaper: launches it, has it start services, and ends the node.

The reaper answers in the order in which things happen. So several services can be started at once, and waited
for in any order. Nothing reads its socket between calls: what came meanwhile (a service died) waits there
until somebody asks.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray_mono._private.node.process_identity import ProcessIdentity
from ray_mono._private.node.reaper import ENDING, KILL_WAIT_S
from ray_mono._private.node.remains import remove_files, remove_stale_sockets
from ray_mono._private.node.service_process import END_NODE, log_tail
from ray_mono.common.descriptors import is_readable
from ray_mono.common.process import is_alive, module_command

NODE_ENDED = "the node has ended; its reaper.log, in the session's logs directory, says why"


class ServiceStartError(RuntimeError):
    """A service did not become ready. The message names it, says how it ended, and ends with its log."""


@dataclass(frozen=True)
class ServiceSpec:
    """One process that a reaper shall start."""

    name: str
    """Unique on the node; also names its log files."""
    argv: Sequence[str]
    env: Mapping[str, str]
    """The whole environment."""
    stdout: str
    stderr: str
    cwd: str | None = None
    """None: the starter's."""
    wants_ready: bool = True
    """Whether it takes --ready-fd and is to be waited for."""
    after_exit: str = END_NODE
    """What its end means: END_NODE, START_AGAIN or GO_ON."""
    link: tuple[str, str] | None = None
    """A name and a flag. Two services with a link of the same name share a socket pair. Each gets its end as
    `flag N`."""
    module: str = ""
    """Of a service in Python: the module that argv runs. The reaper may fork it instead of executing argv."""
    imports: Sequence[str] = ()
    """Modules that the reaper imports before it forks this one, for it and for those after it."""


@dataclass(frozen=True)
class ServiceExit:
    """A service that ended, before or after it was ready."""

    name: str
    pid: int
    how: str
    """In words: "exit status 1", "killed by SIGKILL"."""
    log_tail: str


END_POLL_S = 0.01
WHY_WAIT_S = 0.5
"""The reaper says it before it ends services, and soon after one of them ended by itself."""
SOCKETS_WAIT_S = 1.0
"""How long workers that were killed may take to end: only then their sockets count as left behind."""
TITLE_ROOM = 1024
"""How many bytes are left for the titles of a reaper's children: command lines of services, names of
tasks."""


class ReaperHandle:
    """A reaper of this process.

    It belongs to one thread, and to the process that launched it, not to its forks.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, grace_period_s: float
    ) -> None:
        identity = ProcessIdentity.of(process.pid)
        self.identity = identity or ProcessIdentity(process.pid, -1)
        self._process = process
        self._control = control
        self._grace_period_s = grace_period_s
        self._received = b""
        self._ready: dict[str, dict[str, Any]] = {}
        self._exits: dict[str, ServiceExit] = {}
        self._logs: dict[str, tuple[str, str]] = {}
        self._is_detached = False
        self._owned_files: list[str] = []
        self._socket_dir = ""
        _handles.add(self)

    @classmethod
    def launch(
        cls, session_dir: Path, log_path: Path, env: Mapping[str, str], grace_period_s: float = 5.0
    ) -> ReaperHandle:
        """Starts a reaper that ends with this process. Raises OSError where no process can be made."""
        ours, theirs = socket.socketpair()
        command = [
            *module_command("ray_mono._private.node.reaper"),
            *("--control-fd", str(theirs.fileno()), "--starter-pid", str(os.getpid())),
            *("--session-dir", str(session_dir), "--grace-period-s", str(grace_period_s)),
            # Makes the command line long. Its children put their titles over it.
            *("--title-room", " " * TITLE_ROOM),
        ]
        with theirs, open(log_path, "ab", opener=_private_file) as log:
            process = subprocess.Popen(
                command,
                # Without this setproctitle would write them over its environment, too, and /proc/PID/environ
                # would show them.
                env={**env, "SPT_NOENV": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return cls(process, ours, grace_period_s)

    def start(self, spec: ServiceSpec) -> None:
        """Asks for the service and does not wait. Raises ConnectionError where the reaper has ended."""
        self._logs[spec.name] = spec.stderr, spec.stdout
        self._send(op="start", **asdict(spec))

    def wait_ready(self, name: str, timeout_s: float) -> dict[str, Any]:
        """What the service announced.

        Raises ServiceStartError where it ends instead, or is not ready in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while name not in self._ready:
            if name in self._exits:
                end = self._exits[name]
                raise ServiceStartError(
                    f"{name} ended before it was ready: {end.how}\n{end.log_tail}".rstrip()
                )
            if not self._receive(deadline_s):
                said = log_tail(*self._logs.get(name, ()))
                raise ServiceStartError(f"{name} was not ready within {timeout_s:.3g} s\n{said}".rstrip())
        return self._ready[name]

    def own_files(self, paths: Sequence[str | Path], socket_dir: Path) -> None:
        """Has these files removed when the node ends, and sockets of socket_dir that nobody has bound any
        more."""
        self._owned_files += map(str, paths)
        self._socket_dir = str(socket_dir)
        self._send(op="own_files", paths=[str(path) for path in paths], socket_dir=str(socket_dir))

    def detach(self, rejoin: Sequence[str] = (), record: str = "", timeout_s: float = 10.0) -> None:
        """From here on the node outlives this process: `stop` ends it. This handle is of no use any more.

        rejoin: what starts it again as a new one if it loses its place in the cluster. record: its file.
        """
        command = [*module_command("ray_mono._private.node.rejoin"), record, *rejoin] if rejoin else []
        self._send(op="detach", rejoin=command, record=record)
        deadline_s = time.monotonic() + timeout_s
        while not self._is_detached:
            if not self._receive(deadline_s):
                raise TimeoutError(f"the reaper did not answer within {timeout_s:g} s")
        self._control.close()
        # Popen would warn of a process that still runs: this one is meant to.
        self._process.returncode = 0

    def exits(self) -> list[ServiceExit]:
        """The services that have ended so far, and do not run again. Does not wait."""
        try:
            while self._receive(time.monotonic()):
                pass
        except ConnectionError:
            pass
        return list(self._exits.values())

    def fileno(self) -> int:
        """The control socket: it becomes readable when a service ends, and ends when the node does."""
        return self._control.fileno()

    def shutdown(self) -> None:
        """Ends the node and waits for it.

        Raises TimeoutError where something below the reaper cannot be killed.
        """
        try:
            self._send(op="shutdown")
            deadline_s = time.monotonic() + self._grace_period_s + KILL_WAIT_S + 5
            while self._receive(deadline_s):
                pass
        except ConnectionError:
            # That is how the reaper says that everything has ended.
            was_killed = self._process.wait() < 0
            self._control.close()
            if was_killed:
                self._remove_remains()
            return
        # Its services carry PDEATHSIG and go with it.
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._remove_remains()
        raise TimeoutError(f"the node's reaper ({self._process.pid}) did not end in time and was killed")

    def _remove_remains(self) -> None:
        """In place of a reaper that was killed. The services go with it, and the workers with the raylet."""
        pids = [ready["pid"] for ready in self._ready.values()]
        deadline_s = time.monotonic() + KILL_WAIT_S
        while any(map(is_alive, pids)) and time.monotonic() < deadline_s:
            time.sleep(END_POLL_S)
        remove_files(self._owned_files)
        deadline_s = time.monotonic() + SOCKETS_WAIT_S
        while remove_stale_sockets(self._socket_dir) and time.monotonic() < deadline_s:
            time.sleep(END_POLL_S)

    def wait_ended(self, timeout_s: float | None) -> bool:
        """Waits for the end of the node, which somebody else brings about.

        False where it still runs after timeout_s.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while self._receive(deadline_s):
                pass
        except ConnectionError:
            return True
        return False

    def _send(self, **message: Any) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except ConnectionError:
            raise ConnectionError(NODE_ENDED) from None

    def _receive(self, deadline_s: float | None) -> bool:
        """Takes in what the reaper says next. False at the deadline.

        Raises ConnectionError where the node has ended.
        """
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        if not is_readable(self._control.fileno(), left_s):
            return False
        try:
            data = self._control.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            raise ConnectionError(NODE_ENDED)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "ready" in message:
                self._ready[message["name"]] = {"pid": message["pid"], **message["ready"]}
                self._exits.pop(message["name"], None)  # it was started again
            elif "exit" in message:
                end = ServiceExit(message["name"], message["pid"], message["exit"], message["log_tail"])
                self._exits[end.name] = end
            elif message.get("detached"):
                self._is_detached = True
        return True


def why_ended(log_path: str) -> str:
    """Why a reaper that writes there ends its node, which has just lost its raylet. Empty where it has not
    said so within WHY_WAIT_S: it may have been killed."""
    deadline_s = time.monotonic() + WHY_WAIT_S
    while True:
        try:
            text = Path(log_path).read_text(errors="replace")
        except OSError:
            return ""
        _, said, reason = text.rpartition(ENDING)
        if said or time.monotonic() > deadline_s:
            return (reason if said else "").partition("\n")[0]
        time.sleep(END_POLL_S)


# A fork of the starter must not hold the sockets open: only the starter's life counts.
_handles: weakref.WeakSet[ReaperHandle] = weakref.WeakSet()


def _close_in_fork() -> None:
    for handle in _handles:
        handle._control.close()


os.register_at_fork(after_in_child=_close_in_fork)


def _private_file(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""The session directory: where a cluster's logs, sockets and secret lie on one machine, and how its processes are found again.

    <base>/session_<date>_<time>_<microseconds>_<pid>/      0700
        logs/  sockets/{gcs,raylet,plasma_store}  auth_token  nodes/<node id>.json  gcs.sqlite
    <base>/current_cluster.<uid>.json                       this user's latest cluster made by `start --head`

The base is RAY_MONO_TMPDIR or /tmp/ray_mono, and shared between users. So nothing in it is trusted before its owner was looked at.
A second node of the same cluster on the same machine uses the same directory, with its own sockets (".<first 8 of its id>"), logs and
store file. A node's record (NodeRecord) names its reaper by pid and start time: it says whether the node still runs, and is what `stop`
ends. The reaper removes the record with the node.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ray_mono._private.process_identity import ProcessIdentity

BASE_VARIABLE = "RAY_MONO_TMPDIR"
DEFAULT_BASE = "/tmp/ray_mono"
SHARED_MEMORY = Path("/dev/shm")
# What the kernel takes as the path of a Unix socket, without the final zero.
SOCKET_PATH_BYTES_MAX = 107


class SessionError(Exception):
    """A directory or file of a session cannot be made, read or trusted. The message names it and says what to do."""


def base_directory(temp_dir: str | None = None) -> Path:
    """Where sessions lie: temp_dir, else RAY_MONO_TMPDIR, else /tmp/ray_mono. Absolute."""
    return Path(temp_dir or os.environ.get(BASE_VARIABLE) or DEFAULT_BASE).absolute()


@dataclass(frozen=True)
class Session:
    """A session directory that exists and is ours."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def sockets(self) -> Path:
        return self.path / "sockets"

    @property
    def nodes(self) -> Path:
        return self.path / "nodes"


@dataclass(frozen=True)
class NodePaths:
    """The files of one node in its session."""

    session: Session
    node_id: str
    """In hex."""
    is_head: bool

    @property
    def _suffix(self) -> str:
        return "" if self.is_head else f".{self.node_id[:8]}"

    def socket(self, name: str) -> str:
        """name: gcs, raylet or plasma_store. Raises SessionError where the path is too long for a socket."""
        path = str(self.session.sockets / (name + self._suffix))
        excess = len(os.fsencode(path)) - SOCKET_PATH_BYTES_MAX
        if excess > 0:
            raise SessionError(
                f"{path} is {excess} bytes too long for a Unix socket: choose a shorter directory with"
                f" --temp-dir (in Python: _temp_dir) or {BASE_VARIABLE}"
            )
        return path

    def log(self, service: str, kind: str) -> str:
        """kind: out, err or log."""
        return str(self.session.logs / f"{service}{self._suffix}.{kind}")

    @property
    def store_file(self) -> str:
        return str(SHARED_MEMORY / f"ray_mono.{self.session.name}.{self.node_id[:8]}")

    @property
    def record(self) -> Path:
        return self.session.nodes / f"{self.node_id}.json"


@dataclass(frozen=True)
class NodeRecord:
    """What a node's services answered when it started: nodes/<node id>.json."""

    node_id: str
    is_head: bool
    session_dir: str
    node_ip_address: str
    gcs_address: str
    """host:port"""
    raylet_socket: str
    store_socket: str
    store_file: str
    reaper_pid: int
    reaper_start_ticks: int
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each announced: pid, address, unix_path."""
    owned_files: list[str] = field(default_factory=list)
    """What its reaper removes at the end, and `stop` where the reaper could not."""

    @property
    def reaper(self) -> ProcessIdentity:
        return ProcessIdentity(self.reaper_pid, self.reaper_start_ticks)

    def write(self, path: Path) -> None:
        write_private(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> NodeRecord:
        """Raises SessionError where the file is not ours, or not such a record."""
        names = {item.name for item in fields(cls)}
        try:
            values = json.loads(read_private(path))
            return cls(**{name: value for name, value in values.items() if name in names})
        except (ValueError, TypeError, AttributeError) as error:
            raise SessionError(f"{path} is not a node's record: {error}") from error


def create_session(base: Path) -> Session:
    """Makes a new session directory. Raises SessionError where the base cannot be used."""
    prepare_base(base)
    while True:
        now = datetime.datetime.now()
        path = base / f"session_{now:%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise SessionError(f"cannot make a session directory in {base}: {error.strerror}") from error
        return _furnish(path)


def join_session(path: Path) -> Session | None:
    """The session directory of a cluster that a node on this machine joins: the one that is there and ours, or a new one of that
    name, for the first node here. None where another user has it. Raises SessionError as create_session does."""
    prepare_base(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_private_directory(path):
            return None
    except OSError as error:
        raise SessionError(f"cannot make the session directory {path}: {error.strerror}") from error
    return _furnish(path)


def open_session(path: Path) -> Session:
    """A session directory that exists. Raises SessionError where it is not there, or not ours alone."""
    if not _is_private_directory(path):
        raise SessionError(
            f"{path} is not a session directory of this user's: it must be a directory of user {os.getuid()} that"
            f" nobody else can enter (mode 0700), and there is {_what_is_at(path)}"
        )
    return Session(path)


def list_sessions(base: Path) -> list[Session]:
    """This user's sessions in a base directory, oldest first, those that have ended included."""
    try:
        names = sorted(name for name in os.listdir(base) if name.startswith("session_"))
    except FileNotFoundError:
        return []
    return [Session(base / name) for name in names if _is_private_directory(base / name)]


def list_nodes(session: Session) -> list[NodeRecord]:
    """The records of the session's nodes on this machine: those that run, and those whose reaper was killed."""
    return [NodeRecord.read(path) for path in sorted(session.nodes.glob("*.json"))]


def prepare_base(base: Path) -> None:
    """Makes the base directory where it is missing; the default one for all users, sticky. Raises SessionError."""
    try:
        if str(base) == DEFAULT_BASE and not base.exists():
            base.mkdir(exist_ok=True)
            base.chmod(0o1777)
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = base.lstat()
    except OSError as error:
        raise SessionError(f"cannot use {base} for sessions: {error.strerror}; {_OTHER_BASE}") from error
    if str(base) == DEFAULT_BASE and stat.S_ISLNK(status.st_mode):
        raise SessionError(f"{base} is a link, which anybody may have put there; {_OTHER_BASE}")
    status = base.stat()
    others_may_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if others_may_write or (status.st_uid not in (os.getuid(), 0) and not status.st_mode & stat.S_ISVTX):
        raise SessionError(f"other users can replace what is in {base}; make it sticky, or {_OTHER_BASE}")


_OTHER_BASE = f"choose another directory with --temp-dir (in Python: _temp_dir) or {BASE_VARIABLE}"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read; whoever reads it sees all of it or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SessionError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> str:
    """The text of a file that is ours and that no one else can write. Raises SessionError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise SessionError(f"cannot read {path}: {error.strerror}") from error
    with open(descriptor, encoding="utf-8", errors="replace") as file:
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise SessionError(f"{path} belongs to another user, or others can write it: it is not trusted")
        return file.read()


def _furnish(path: Path) -> Session:
    session = Session(path)
    for directory in (session.logs, session.sockets, session.nodes):
        directory.mkdir(mode=0o700, exist_ok=True)
    return session


def _what_is_at(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError as error:
        return f"none ({error.strerror})"
    return f"one of user {status.st_uid} with mode {stat.filemode(status.st_mode)}"


def _is_private_directory(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077

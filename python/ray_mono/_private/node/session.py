"""The session directory: where a cluster's files lie on one machine, and how its processes are found again.

    <base>/session_<date>_<time>_<microseconds>_<pid>/      0700
        logs/  sockets/{gcs,raylet,plasma_store}  auth_token  nodes/<node id>.json  gcs.sqlite
    <base>/current_cluster.<uid>.json                       this user's latest cluster made by `start --head`
    <usual base>/elsewhere.<uid>.<node>.json                a node whose base is another (elsewhere.py)

The base is what --temp-dir or RAY_MONO_TMPDIR name, or else /tmp/ray_mono. Users share /tmp/ray_mono if root
made it: root's sticky directory lets nobody touch another's entries. If another user made it, that user could
replace all that is in it. Then /tmp/ray_mono_<uid> is made, and used from then on. A base that is named and
belongs to another user is an error. The base's path, and each session's, is checked by descriptors
(common/private_files) before anything in it is made or believed. After that its names mean the same for as
long as it lasts.

A second node of the same cluster on the same machine uses the same directory, with its own sockets (".<first
8 of its id>"), logs and store file. A node's record (NodeRecord) names its reaper by pid and start time: so
it says whether the node still runs, and whom `stop` has to end. The reaper removes the record with the node.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ray_mono._private.node.process_identity import ProcessIdentity
from ray_mono.common.private_files import (
    UntrustedPathError,
    is_trusted_owner,
    make_directory,
    open_directory,
    open_file,
)

BASE_VARIABLE = "RAY_MONO_TMPDIR"
DEFAULT_BASE = "/tmp/ray_mono"
SHARED_MEMORY = Path("/dev/shm")
# What the kernel takes as the path of a Unix socket, without the final zero.
SOCKET_PATH_BYTES_MAX = 107


logger = logging.getLogger(__name__)


class SessionError(Exception):
    """A directory or file of a session cannot be made, read or trusted.

    The message says what to do about it.
    """


def base_directory(temp_dir: str | None = None) -> Path:
    """Where sessions lie (see above), as an absolute path.

    The first of: temp_dir, RAY_MONO_TMPDIR, /tmp/ray_mono, /tmp/ray_mono_<uid>. Raises ValueError.
    """
    named = temp_dir or os.environ.get(BASE_VARIABLE)
    return Path(from_home(named)).absolute() if named else usual_base()


def from_home(path: str) -> str:
    """What a person named, with ~ as in a shell, where that did not do it. Raises ValueError."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path}: no user {path[1:].partition('/')[0]!r} has a home directory here")
    return expanded


def usual_base() -> Path:
    """Where they lie if nobody names a directory."""
    own = Path(f"{DEFAULT_BASE}_{os.getuid()}")
    with contextlib.suppress(OSError):
        if own.lstat().st_uid == os.getuid():
            return own
    try:
        status = Path(DEFAULT_BASE).lstat()
    except FileNotFoundError:
        return Path(DEFAULT_BASE)
    return Path(DEFAULT_BASE) if stat.S_ISDIR(status.st_mode) and is_trusted_owner(status.st_uid) else own


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

    def record_paths(self) -> list[Path]:
        """Of its nodes here: see list_nodes. Without glob, which takes three times as long: whoever starts a
        node looks into all sessions that there have been."""
        try:
            names = os.listdir(f"{self.path}/nodes")
        except OSError:
            return []
        return [self.nodes / name for name in sorted(names) if name.endswith(".json")]


@dataclass(frozen=True)
class NodePaths:
    """The files of one node in its session."""

    session: Session
    node_id: str
    """In hex."""
    is_head: bool
    is_store_in_shared_memory: bool = True

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
        if not self.is_store_in_shared_memory:
            return str(self.session.path / f"plasma.{self.node_id[:8]}")
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
    with prepared(base) as base_fd:
        while True:
            now = datetime.datetime.now()
            name = f"session_{now:%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
            try:
                os.mkdir(name, 0o700, dir_fd=base_fd)
            except FileExistsError:
                continue
            except OSError as error:
                raise SessionError(f"cannot make a session directory in {base}: {error.strerror}") from error
            return _furnish(base / name, base_fd)


def join_session(path: Path) -> Session | None:
    """The session directory of a cluster that a node on this machine joins.

    It is the one that is there and ours, or, for the first node here, a new one of that name. None where
    another user has it. Raises SessionError as create_session does.
    """
    with prepared(path.parent) as base_fd:
        try:
            os.mkdir(path.name, 0o700, dir_fd=base_fd)
        except FileExistsError:
            if not _is_private_directory(path.name, base_fd):
                return None
        except OSError as error:
            raise SessionError(f"cannot make the session directory {path}: {error.strerror}") from error
        return _furnish(path, base_fd)


def open_session(path: Path) -> Session:
    """A session directory that exists.

    Raises SessionError where it is not there, is not ours alone, or others could replace it.
    """
    try:
        with _opened(path.parent) as base_fd:
            _check_base(os.fstat(base_fd))
            is_ours = _is_private_directory(path.name, base_fd)
    except (UntrustedPathError, OSError) as error:
        raise SessionError(
            f"{path} cannot be trusted as a session directory: {path.parent}: {error}"
        ) from error
    if not is_ours:
        raise SessionError(
            f"{path} is not a session directory of this user's: it must be a directory of user"
            f" {os.getuid()} that nobody else can enter (mode 0700), and there is {_what_is_at(path)}"
        )
    return Session(path)


def list_sessions(base: Path) -> list[Session]:
    """This user's sessions in a base directory, oldest first, those that have ended included. Raises
    SessionError where others can replace what is in it."""
    try:
        with _opened(base) as base_fd:
            _check_base(os.fstat(base_fd))
            names = sorted(name for name in os.listdir(base_fd) if name.startswith("session_"))
            return [Session(base / name) for name in names if _is_private_directory(name, base_fd)]
    except FileNotFoundError:
        return []
    except (UntrustedPathError, OSError) as error:
        raise SessionError(f"cannot look for sessions in {base}: {error}; {_OTHER_BASE}") from error


def list_nodes(session: Session) -> list[NodeRecord]:
    """The records of the session's nodes here: of those that run, and of those whose reaper was killed."""
    return [NodeRecord.read(path) for path in session.record_paths()]


@contextlib.contextmanager
def prepared(base: Path) -> Iterator[int]:
    """A descriptor of the base directory, which is made where it is missing.

    The default one is sticky and for all users where root makes it. Any other is for its maker alone. Raises
    SessionError.
    """
    try:
        is_new = not base.exists()
        if is_new:
            make_directory(base)
            if base == Path(f"{DEFAULT_BASE}_{os.getuid()}"):
                logger.warning("%s is another user's: sessions lie in %s", DEFAULT_BASE, base)
        with _opened(base) as base_fd:
            status = os.fstat(base_fd)
            _check_base(status)
            if is_new and str(base) == DEFAULT_BASE and status.st_uid == os.getuid() == 0:
                os.fchmod(base_fd, 0o1777)
            yield base_fd
    except (UntrustedPathError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SessionError(f"cannot use {base} for sessions: {reason}; {_OTHER_BASE}") from error


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = open_directory(directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_base(status: os.stat_result) -> None:
    if not is_trusted_owner(status.st_uid):
        raise UntrustedPathError(
            f"it belongs to user id {status.st_uid}, neither to this user ({os.getuid()}) nor to root, and"
            " its owner can replace what is in it"
        )


_OTHER_BASE = f"choose another directory with --temp-dir (in Python: _temp_dir) or {BASE_VARIABLE}"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only this user can read. A reader sees all of it, or what was there before.

    Raises SessionError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SessionError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> str:
    """The text of a file that is ours and that no one else can write. Raises SessionError."""
    try:
        with open(open_file(path), encoding="utf-8", errors="replace") as file:
            owner = os.fstat(file.fileno()).st_uid
            if owner != os.getuid():
                raise UntrustedPathError(f"{path} belongs to user id {owner}: it is not trusted")
            return file.read()
    except UntrustedPathError as error:
        raise SessionError(str(error)) from error
    except OSError as error:
        raise SessionError(f"cannot read {path}: {error.strerror}") from error


def _furnish(path: Path, base_fd: int) -> Session:
    session_fd = os.open(
        path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base_fd
    )
    try:
        if not _is_private(os.fstat(session_fd)):
            raise SessionError(f"{path} was replaced while it was made")
        for name in ("logs", "sockets", "nodes"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=session_fd)
    finally:
        os.close(session_fd)
    return Session(path)


def _what_is_at(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError as error:
        return f"none ({error.strerror})"
    return f"one of user {status.st_uid} with mode {stat.filemode(status.st_mode)}"


def _is_private_directory(name: str, base_fd: int) -> bool:
    try:
        return _is_private(os.stat(name, dir_fd=base_fd, follow_symlinks=False))
    except OSError:
        return False


def _is_private(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077

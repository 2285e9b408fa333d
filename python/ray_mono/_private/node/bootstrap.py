"""Which cluster an address means, and which of its nodes is on this machine.

    None           RAY_MONO_ADDRESS, else this user's cluster made by `start` on this machine, else a new one
    "auto"         the same, but never a new one
    "local"        a new one
    "host:port"    that one
    "host:port,host:port"    the one whose head is at one of these

What is found here is only an address: whether somebody answers there is seen by asking.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ray_mono._private.node.elsewhere import nodes_elsewhere
from ray_mono._private.node.session import (
    NodeRecord,
    Session,
    SessionError,
    base_directory,
    list_nodes,
    list_sessions,
    open_session,
    write_private,
)
from ray_mono.common.version import VERSION

ADDRESS_VARIABLE = "RAY_MONO_ADDRESS"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger(__name__)


class VersionMismatchError(RuntimeError):
    """The cluster runs another version of ray_mono or of Python than this process."""


@dataclass(frozen=True)
class ClusterAddress:
    """A cluster that somebody else started."""

    address: str
    """host:port of its GCS."""
    session_dir: str | None
    """Its session directory on this machine, where a node of this user runs here: the secret lies there."""
    others: tuple[str, ...] = ()
    """More places where its head may be."""
    raylet_socket: str = field(default="", compare=False)
    """Of that node; empty where there is none."""


def find_cluster(address: str | None) -> ClusterAddress | None:
    """The cluster that `address` means (see above); None where it means a new one.

    Raises ConnectionError for "auto" where there is none, and ValueError for what is no address.
    """
    if address is None or address == "auto":
        named = os.environ.get(ADDRESS_VARIABLE) or None
        if named not in (None, "auto"):
            return find_cluster(named)
        record = read_current_cluster()
        if record is not None:
            return _cluster_of(record)
        if address is None and named is None:
            return None
        raise ConnectionError(
            "no cluster of this user's runs on this machine: start one with `ray-mono start --head`,"
            f" or give its address as host:port, or in {ADDRESS_VARIABLE}"
        )
    if address == "local":
        return None
    places = [parse_address(place.strip()) for place in address.split(",")]
    for record in _local_records():
        record_host, record_port = parse_address(record.gcs_address)
        for host, port in places:
            # The head listens on the node's address, which users of the same machine call localhost.
            if port == record_port and (host in _LOOPBACK or host == record_host):
                others = [_resolved(*place) for place in places if place != (host, port)]
                return replace(_cluster_of(record), others=tuple(others))
    first, *others = [_resolved(*place) for place in places]
    return ClusterAddress(first, None, tuple(others))


def _cluster_of(record: NodeRecord) -> ClusterAddress:
    return ClusterAddress(record.gcs_address, record.session_dir, raylet_socket=record.raylet_socket)


def _resolved(host: str, port: int) -> str:
    return f"{resolve_host(host)}:{port}"


def parse_address(address: str) -> tuple[str, int]:
    """(host, port). Raises ValueError saying what is accepted."""
    host, colon, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ValueError(
            f"address {address!r}: the client server (ray://) is not part of this version yet; use host:port"
        )
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            "address must be host:port (several with commas between them), 'auto' or 'local',"
            f" got {address!r}"
        )
    return host.strip("[]"), int(port)


def resolve_host(host: str) -> str:
    """The IPv4 address of a host. Raises ConnectionError where the name is unknown."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConnectionError(f"cannot find the address of host {host!r}: {error}") from None


def node_ip_address(towards: str = "8.8.8.8") -> str:
    """The address at which others reach this machine: the one that the way to `towards` begins at, or
    loopback where there is no network.

    Nothing is sent: a datagram socket only looks up the route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 53))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


# ---- this user's cluster on this machine


def current_cluster_path() -> Path:
    """It lies in the default base directory, wherever the session lies, so that `auto` finds it."""
    return base_directory() / f"current_cluster.{os.getuid()}.json"


def record_current_cluster(record: NodeRecord) -> None:
    """Makes this node's cluster the one that `auto` means.

    It only warns where another user has taken the record's name: he must not be able to keep us from
    starting. Raises SessionError where it cannot be written for another reason.
    """
    path = current_cluster_path()
    try:
        write_private(path, _to_json(record))
    except SessionError as error:
        try:
            owner = os.lstat(path).st_uid
        except OSError:
            raise error from None
        if owner == os.getuid():
            raise
        logger.warning(
            "%s belongs to user id %d, so 'auto' may not find this cluster: its address is %s",
            path,
            owner,
            record.gcs_address,
        )


def read_current_cluster() -> NodeRecord | None:
    """A node of this user's current cluster that runs on this machine. None where there is none any more."""
    try:
        record = NodeRecord.read(current_cluster_path())
        open_session(Path(record.session_dir))
    except SessionError:
        # Anybody may put a file there; it only counts when it is ours.
        return None
    return record if record.reaper.is_alive() else None


def local_sessions(temp_dir: str | None = None) -> list[Session]:
    """This user's sessions on this machine: those of the base directory, and the current cluster's."""
    sessions = {session.path: session for session in list_sessions(base_directory(temp_dir))}
    current = read_current_cluster()
    if current is not None:
        sessions.setdefault(Path(current.session_dir), Session(Path(current.session_dir)))
    return list(sessions.values())


def _local_records() -> Iterator[NodeRecord]:
    for session in local_sessions():
        try:
            records = list_nodes(session)
        except SessionError:
            continue
        yield from (record for record in records if record.reaper.is_alive())
    yield from nodes_elsewhere()


def _to_json(record: NodeRecord) -> str:
    import json

    return json.dumps(asdict(record))


# ---- the cluster's own word


def check_versions(what: str, version: str, python_version: str) -> None:
    """Raises VersionMismatchError unless the cluster's versions are ours.

    With others it would not understand our functions and values.

    what: who is asked, for the message. Python's last number may differ.
    """
    ours = platform.python_version()
    if version == VERSION and python_version.split(".")[:2] == ours.split(".")[:2]:
        return
    raise VersionMismatchError(
        f"{what} runs ray_mono {version} on Python {python_version}, and this process ray_mono {VERSION}"
        f" on Python {ours}: use the same version of ray_mono, and the same Python up to its second number,"
        " on both sides"
    )

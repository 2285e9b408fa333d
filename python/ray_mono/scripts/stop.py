"""`ray-mono stop`: ends nodes by their reapers, which are found by the pid and start time that the nodes'
records hold; never by name."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from ray_mono._private.node.bootstrap import (
    current_cluster_path,
    find_cluster,
    local_sessions,
    read_current_cluster,
)
from ray_mono._private.node.elsewhere import nodes_elsewhere
from ray_mono._private.node.reaper import KILL_WAIT_S
from ray_mono._private.node.remains import remove_files, remove_stale_sockets
from ray_mono._private.node.session import SHARED_MEMORY, NodeRecord, Session, SessionError, list_nodes
from ray_mono.common.descriptors import is_readable
from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX
from ray_mono.scripts import failures


def stop_nodes(*, address: str | None, temp_dir: str | None, grace_period: float, force: bool) -> None:
    """The command; its arguments are the options of their names, grace_period in seconds."""
    with failures.shown():
        records = _find(address, temp_dir)
    # The head last: the others tell it that they go.
    records.sort(key=lambda record: record.is_head)
    stopped = [record for record in records if _stop(record, grace_period, force)]
    for record in records:
        if record in stopped:
            _remove_remains(record)
    if read_current_cluster() is None:
        with contextlib.suppress(OSError):
            current_cluster_path().unlink(missing_ok=True)
    left = [record for record in records if record not in stopped]
    if left:
        names = ", ".join(f"node {record.node_id[:8]} (reaper {record.reaper_pid})" for record in left)
        raise click.ClickException(f"still running: {names}")
    if not records:
        click.echo(
            "Nothing runs."
            if address is None
            else f"No node of the cluster at {address} runs on this machine."
        )
    else:
        click.echo(f"Stopped {len(records)} node{'s' if len(records) > 1 else ''}.")


def _find(address: str | None, temp_dir: str | None) -> list[NodeRecord]:
    """This user's nodes on this machine, those included whose reaper was killed and so left files."""
    wanted = None
    if address is not None:
        cluster = find_cluster(address)
        if cluster is None:
            raise ValueError(f"--address {address} names no cluster; accepted is host:port, or 'auto'")
        wanted = cluster.address
    records = []
    for session in local_sessions(temp_dir):
        try:
            records += list_nodes(session)
        except SessionError as error:
            click.echo(f"{error}", err=True)
    if wanted is None:
        return records
    by_id = {record.node_id: record for record in [*records, *nodes_elsewhere()]}
    return [record for record in by_id.values() if record.gcs_address == wanted]


def _stop(record: NodeRecord, grace_period_s: float, force: bool) -> bool:
    """Whether the node's reaper has ended, and so everything of the node."""
    pid = record.reaper_pid
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Asked after the pidfd was had: from here on the pid cannot change its owner.
        if not record.reaper.is_alive():
            return True
        steps = [(signal.SIGQUIT, KILL_WAIT_S + 1), (signal.SIGKILL, KILL_WAIT_S)]
        if not force:
            steps.insert(0, (signal.SIGTERM, grace_period_s))
        for signal_number, timeout_s in steps:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal_number)
                # One that was stopped (Ctrl-Z's signal, a debugger) is to notice.
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            if is_readable(pidfd, timeout_s):
                return True
        return False
    finally:
        os.close(pidfd)


def _remove_remains(record: NodeRecord) -> None:
    """What the reaper would have removed, where it was killed.

    Only files of the session are touched, and the node's spilled objects, whatever the record says.
    """
    session = Session(Path(record.session_dir))
    paths = [Path(name) for name in record.owned_files]
    ours = [
        path
        for path in paths
        if session.path in path.parents
        or (path.parent == SHARED_MEMORY and path.name.startswith(f"ray_mono.{session.name}."))
        or path.name == SPILL_DIRECTORY_PREFIX + record.node_id
    ]
    remove_files(str(path) for path in ours if ".." not in path.parts)
    remove_stale_sockets(str(session.sockets))

"""`ray-mono stop`: ends nodes by their reapers, which are found by the pid and start time that the nodes'
records hold; never by name."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import click

from ray_mono._private.node.bootstrap import (
    current_cluster_path,
    find_cluster,
    local_sessions,
    read_current_cluster,
)
from ray_mono._private.node.dead_nodes import is_dead, remove_remains
from ray_mono._private.node.elsewhere import nodes_elsewhere
from ray_mono._private.node.reaper import KILL_WAIT_S
from ray_mono._private.node.session import NodeRecord, SessionError, list_nodes
from ray_mono.common.descriptors import is_readable
from ray_mono.scripts import failures

GONE_WITHIN_S = 2.0
POLL_S = 0.02


def stop_nodes(*, address: str | None, temp_dir: str | None, grace_period: float, force: bool) -> None:
    """The command; its arguments are the options of their names, grace_period in seconds."""
    with failures.shown():
        found = _find(address, temp_dir)
    records = [record for record in found if record.reaper.is_alive()]
    for record in found:
        if record not in records and _is_over(record):
            remove_remains(record)
    # The head last: the others tell it that they go.
    records.sort(key=lambda record: record.is_head)
    stopped = [record for record in records if _stop(record, grace_period, force)]
    for record in records:
        if record in stopped:
            remove_remains(record)
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


def _is_over(record: NodeRecord) -> bool:
    """Whether nothing of a node runs whose reaper is gone. Its services go at the same time."""
    deadline_s = time.monotonic() + GONE_WITHIN_S
    while not is_dead(record):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


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

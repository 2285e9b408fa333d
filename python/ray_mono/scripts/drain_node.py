"""`ray-mono drain-node`: asks the head to have a node end, once what is on it has gone elsewhere."""

from __future__ import annotations

import time
from typing import cast

import click

from ray_mono._private.node.bootstrap import find_cluster, local_sessions
from ray_mono._private.node.gcs_query import cluster_secret, query_gcs
from ray_mono._private.node.head_finder import locate_head
from ray_mono._private.node.session import NodeRecord, list_nodes
from ray_mono.common.ids import NodeID
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.scripts import failures

ANSWER_TIMEOUT_S = 30.0


def drain_node(
    *,
    address: str | None,
    redis_password: str | None,
    node_id: str | None,
    reason: str,
    reason_message: str,
    deadline_remaining_seconds: int | None,
) -> None:
    """The command; its arguments are the options of their names."""
    deadline_ms = 0
    if deadline_remaining_seconds is not None:
        if deadline_remaining_seconds < 0:
            raise click.BadParameter(
                "--deadline-remaining-seconds must be at least 0 (left out: no deadline), "
                f"got {deadline_remaining_seconds}"
            )
        # A deadline of 0 would be none.
        deadline_ms = time.time_ns() // 1_000_000 + deadline_remaining_seconds * 1000
    with failures.shown():
        cluster = find_cluster("auto" if address is None else address)
        if cluster is None:
            raise ValueError(f"--address {address} names no cluster; accepted is host:port, or 'auto'")
        cluster = locate_head(cluster, redis_password)
        request = gcs_pb2.DrainNodeRequest(
            node_id=_parsed(node_id or _node_here(cluster.address)).binary(),
            reason=cast("common_pb2.DrainNodeReason", common_pb2.DrainNodeReason.Value(reason)),
            reason_message=reason_message,
            deadline_timestamp_ms=deadline_ms,
        )

        async def ask(gcs: GcsServiceAsyncStub) -> gcs_pb2.DrainNodeReply:
            return await gcs.DrainNode(request)

        secret = cluster_secret(cluster.address, redis_password, cluster.session_dir)
        reply = query_gcs(cluster.address, secret, ask, ANSWER_TIMEOUT_S)
    if not reply.is_accepted:
        raise click.ClickException(f"The drain request is not accepted: {reply.rejection_reason_message}")


def _parsed(node_id: str) -> NodeID:
    try:
        parsed = NodeID.from_hex(node_id)
    except ValueError:
        parsed = NodeID.nil()
    if parsed.is_nil():
        raise click.BadParameter(
            f"--node-id takes the {2 * NodeID.SIZE} hexadecimal digits of a node's id, got {node_id!r}"
        )
    return parsed


def _node_here(address: str) -> str:
    """The cluster's only node on this machine. Raises ValueError."""
    records: list[NodeRecord] = []
    for session in local_sessions():
        records += [record for record in list_nodes(session) if record.gcs_address == address]
    alive = [record.node_id for record in records if record.reaper.is_alive()]
    if len(alive) != 1:
        raise ValueError(
            f"--node-id is missing, and this machine has {len(alive)} nodes of the cluster at {address}"
            + (f": {', '.join(alive)}" if alive else "")
        )
    return alive[0]

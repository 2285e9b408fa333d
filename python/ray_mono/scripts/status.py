"""`ray-mono status` and `healthcheck`: what the GCS knows, for people."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import click

from ray_mono._private.node.bootstrap import ClusterAddress, find_cluster
from ray_mono._private.node.gcs_query import cluster_secret, query_gcs
from ray_mono._private.node.head_finder import locate_head
from ray_mono.common.scheduling.resources import MEMORY, OBJECT_STORE_MEMORY, ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.scripts import failures

# Of each kind; the state commands will list all.
ROWS_MAX = 20


@dataclass(frozen=True)
class Snapshot:
    """What was asked, not quite at one moment."""

    cluster: gcs_pb2.ClusterInfo
    nodes: list[common_pb2.NodeInfo]
    resources: list[common_pb2.NodeResources]
    actors: list[common_pb2.ActorInfo]
    jobs: list[common_pb2.JobInfo]


def show_status(address: str | None, redis_password: str | None) -> None:
    with failures.shown():
        cluster = locate_head(_cluster(address), redis_password)
        click.echo(render(_ask(cluster, redis_password, 10.0), time.time()))


def check_health(address: str | None, redis_password: str | None, timeout_s: float) -> None:
    with failures.shown():
        cluster = locate_head(_cluster(address), redis_password, timeout_s)
        secret = cluster_secret(cluster.address, redis_password, cluster.session_dir, timeout_s)

        async def ask(gcs: GcsServiceAsyncStub) -> gcs_pb2.GetAllNodesReply:
            return await gcs.GetAllNodes(common_pb2.Empty())

        nodes = query_gcs(cluster.address, secret, ask, timeout_s).nodes
    if not any(node.state == common_pb2.NODE_ALIVE for node in nodes):
        raise click.ClickException(
            f"the GCS at {cluster.address} answers, but no node of the cluster is alive"
        )


def _cluster(address: str | None) -> ClusterAddress:
    cluster = find_cluster("auto" if address is None else address)
    if cluster is None:
        raise ValueError(f"--address {address} names no cluster; accepted is host:port, or 'auto'")
    return cluster


def _ask(cluster: ClusterAddress, redis_password: str | None, timeout_s: float) -> Snapshot:
    async def ask(gcs: GcsServiceAsyncStub) -> Snapshot:
        empty = common_pb2.Empty()
        return Snapshot(
            cluster=await gcs.GetClusterInfo(empty),
            nodes=list((await gcs.GetAllNodes(empty)).nodes),
            resources=list((await gcs.GetAllResources(gcs_pb2.GetAllResourcesRequest(collect=True))).nodes),
            actors=list((await gcs.GetAllActors(empty)).actors),
            jobs=list((await gcs.GetAllJobs(empty)).jobs),
        )

    secret = cluster_secret(cluster.address, redis_password, cluster.session_dir, timeout_s)
    return query_gcs(cluster.address, secret, ask, timeout_s)


def render(snapshot: Snapshot, now_s: float) -> str:
    """The text that `status` shows. now_s: seconds since the epoch."""
    cluster = snapshot.cluster
    running_jobs = sum(not job.is_finished for job in snapshot.jobs)
    lines = [
        f"Cluster at {cluster.host}:{cluster.port}, up {_duration(now_s - cluster.start_time_s)},"
        f" ray_mono {cluster.version}, Python {cluster.python_version}",
        f"Session {cluster.session_dir}",
        f"Jobs: {running_jobs} running, {len(snapshot.jobs) - running_jobs} finished",
        *_nodes(snapshot, now_s),
        *_resources(snapshot),
        *_demands(snapshot),
        *_actors(snapshot),
    ]
    return "\n".join(lines)


def _nodes(snapshot: Snapshot, now_s: float) -> list[str]:
    alive = [node for node in snapshot.nodes if node.state == common_pb2.NODE_ALIVE]
    dead = [node for node in snapshot.nodes if node.state != common_pb2.NODE_ALIVE]
    resources = {item.node_id: item for item in snapshot.resources}
    lines = ["", f"Nodes: {len(alive)} alive, {len(dead)} dead"]
    for node in (alive + dead)[:ROWS_MAX]:
        text = f"  {node.node_id.hex()[:8]}  {node.host}:{node.node_manager_port}"
        if node.state != common_pb2.NODE_ALIVE:
            text += f"  dead: {node.death_cause.message}"
        elif node.node_id in resources:
            item = resources[node.node_id]
            total = ResourceSet.from_proto(item.total)
            used = total - ResourceSet.from_proto(item.available)
            text += f"  CPU {used.to_units().get('CPU', 0):g}/{total.to_units().get('CPU', 0):g}"
        if node.state == common_pb2.NODE_ALIVE and node.HasField("drain"):
            text += f"  draining: {_drain(node.drain, now_s)}"
        lines.append(text + ("  head" if node.is_head else ""))
    return lines + _rest(len(snapshot.nodes))


def _drain(drain: common_pb2.NodeDrain, now_s: float) -> str:
    left_s = drain.deadline_timestamp_ms / 1000 - now_s
    until = f"ends in {_duration(left_s)}" if drain.deadline_timestamp_ms else "no deadline"
    reason = common_pb2.DrainNodeReason.Name(drain.reason).removeprefix("DRAIN_NODE_REASON_")
    return f"{reason}, {drain.reason_message} ({until})"


def _resources(snapshot: Snapshot) -> list[str]:
    alive = {node.node_id for node in snapshot.nodes if node.state == common_pb2.NODE_ALIVE}
    total, available = ResourceSet(), ResourceSet()
    for item in snapshot.resources:
        if item.node_id in alive:
            total += ResourceSet.from_proto(item.total)
            available += ResourceSet.from_proto(item.available)
    used = (total - available).to_units()
    lines = ["", "Resources in use"]
    for name, amount in total.to_units().items():
        # Every node has one of its own, which only says where something is to run.
        if not name.startswith("node:"):
            lines.append(f"  {_amount(name, used.get(name, 0.0))} of {_amount(name, amount)} {name}")
    return lines


def _demands(snapshot: Snapshot) -> list[str]:
    waiting: Counter[ResourceSet] = Counter()
    for item in snapshot.resources:
        for demand in item.queued:
            waiting[ResourceSet.from_proto(demand.resources)] += demand.count
    if not waiting:
        return ["", "Nothing waits for resources"]
    lines = ["", "Waiting for resources"]
    ordered = sorted(waiting.items(), key=lambda row: (-row[1], str(row[0])))
    lines += [f"  {count} × {shape}" for shape, count in ordered[:ROWS_MAX]]
    return lines + _rest(len(waiting))


def _actors(snapshot: Snapshot) -> list[str]:
    states = Counter(
        common_pb2.ActorState.Name(actor.state).lower().replace("_", " ") for actor in snapshot.actors
    )
    lines = [
        "",
        "Actors: " + (", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"),
    ]
    pending = [actor for actor in snapshot.actors if actor.pending_reason]
    for actor in pending[:ROWS_MAX]:
        name = actor.name or actor.class_name or actor.actor_id.hex()
        lines.append(f"  {name} waits: {actor.pending_reason}")
    return lines + _rest(len(pending))


def _rest(count: int) -> list[str]:
    return [f"  … and {count - ROWS_MAX} more"] if count > ROWS_MAX else []


def _amount(name: str, amount: float) -> str:
    if name in (MEMORY, OBJECT_STORE_MEMORY):
        return f"{amount / 2**30:.2f} GiB"
    return f"{amount:g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"

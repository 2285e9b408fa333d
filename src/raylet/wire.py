"""Between the messages of raylet.proto and the values of the machines: the door where wire types stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.common.start_board import LEASES_MASK
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.effects import Granted, Rejected, SpilledBack, WarnJob
from ray_mono.raylet.scheduling.leases import LeaseRequest

_NOTHING = ResourceSet()


def lease_request_from(message: raylet_pb2.RequestWorkerLeaseRequest, requester: int) -> LeaseRequest:
    """requester: this raylet's number for the connection. Raises ValueError where the id of a placement group
    is none."""
    placement = _NOTHING
    if message.HasField("placement_resources"):  # an actor's
        placement = ResourceSet.from_proto(message.placement_resources)
    return LeaseRequest(
        lease_id=message.lease_id,
        requester=requester,
        requester_node_id=message.requester.node_id,
        job_id=message.job_id,
        resources=ResourceSet.from_proto(message.resources),
        placement_resources=placement,
        strategy=_strategy_from(message.strategy),
        runtime_env=message.runtime_env,
        for_actor=message.for_actor,
        grant_or_reject=message.grant_or_reject,
        task_name=message.task_name,
        outlives_job=message.outlives_job,
        scheduling_key=message.scheduling_key,
        depth=message.depth,
        is_retriable=message.is_retriable,
        owner_id=message.owner_id or message.requester.worker_id,
        owner_node_id=message.owner_node_id or message.requester.node_id,
        waited_s=message.waited_s,
    )


def _strategy_from(message: common_pb2.SchedulingStrategy) -> Strategy:
    strategy = Strategy.from_proto(message)
    if strategy.kind is StrategyKind.PLACEMENT_GROUP:
        _check_group_id(strategy.group_id)
    return strategy


def lease_number(number: int) -> int:
    """A lease's number as it travels, in 32 bits: two leases of one worker at a time never have the same."""
    return number & LEASES_MASK


def grant_reply(
    effect: Granted, worker_address: common_pb2.Address, worker_pid: int
) -> raylet_pb2.RequestWorkerLeaseReply:
    grant = raylet_pb2.Grant(
        lease_id=effect.lease_id,
        worker=worker_address,
        worker_pid=worker_pid,
        number=lease_number(effect.number),
    )
    for name, ids in effect.instances.items():
        grant.resource_ids[name].ids.extend(ids)
    return raylet_pb2.RequestWorkerLeaseReply(grant=grant)


def refusal_reply(effect: SpilledBack | Rejected) -> raylet_pb2.RequestWorkerLeaseReply:
    if isinstance(effect, SpilledBack):
        spillback = raylet_pb2.Spillback(
            node_id=effect.node_id,
            host=effect.host,
            port=effect.port,
            may_wait=effect.may_wait,
            waited_s=effect.waited_s,
        )
        return raylet_pb2.RequestWorkerLeaseReply(spillback=spillback)
    rejection = raylet_pb2.Rejection(kind=effect.kind.name, message=effect.message)
    return raylet_pb2.RequestWorkerLeaseReply(rejection=rejection)


def node_info(config: RayletConfig, start_time_s: float) -> common_pb2.NodeInfo:
    """This node's row at the GCS, but for the TCP port, which is known when the raylet listens."""
    return common_pb2.NodeInfo(
        node_id=config.node_id,
        state=common_pb2.NODE_ALIVE,
        host=config.host,
        hostname=config.hostname,
        object_manager_port=config.object_manager_port,
        raylet_socket=config.socket_path,
        store_socket=config.store_socket,
        store_file=config.store_file,
        total=config.total.to_proto(),
        labels=config.labels,
        is_head=config.is_head,
        start_time_s=start_time_s,
        session_dir=config.session_dir,
        head_lease_s=config.gcs_reconnect_timeout_s,
    )


def bundles_from(message: common_pb2.GroupBundles) -> dict[int, ResourceSet]:
    """The bundles that are meant, by index. Raises ValueError saying what is wrong."""
    group = message.group
    _check_group_id(group.placement_group_id)
    bundles = {}
    for index in message.indices:
        if index >= len(group.bundles):
            raise ValueError(f"the group has {len(group.bundles)} bundles, and no bundle {index}")
        resources = ResourceSet.from_proto(group.bundles[index].resources)
        if not resources or min(amount for _, amount in resources.items()) < 0:
            raise ValueError(f"a bundle needs some resources, and no negative ones, got {resources}")
        bundles[index] = resources
    return bundles


def indices_from(message: common_pb2.BundleIndices) -> tuple[bytes, Sequence[int]]:
    """Group, and the indices of bundles in it. Raises ValueError saying what is wrong."""
    _check_group_id(message.placement_group_id)
    return message.placement_group_id, message.indices


def _check_group_id(group_id: bytes) -> None:
    if len(group_id) != PlacementGroupID.SIZE:
        raise ValueError(f"placement_group_id takes {PlacementGroupID.SIZE} bytes, got {group_id!r}")


def node_resources(
    node_id: bytes,
    total: ResourceSet,
    available: ResourceSet,
    lasting: ResourceSet,
    queued: Iterable[tuple[ResourceSet, int]],
) -> common_pb2.NodeResources:
    """A report. available: what others are told; queued: how many wait for what."""
    return common_pb2.NodeResources(
        node_id=node_id,
        total=total.to_proto(),
        available=available.to_proto(),
        lasting=lasting.to_proto(),
        queued=[
            common_pb2.ResourceDemand(resources=required.to_proto(), count=count)
            for required, count in queued
        ],
    )


def error_info(effect: WarnJob, time_s: float) -> common_pb2.ErrorInfo:
    """time_s: since the epoch."""
    return common_pb2.ErrorInfo(job_id=effect.job_id, type=effect.type, message=effect.message, time_s=time_s)


def shown_available(available: ResourceSet) -> ResourceSet:
    """What others are told is free: a debt is nobody else's business, and nothing is free then."""
    return ResourceSet({name: max(amount, 0) for name, amount in available.items()})

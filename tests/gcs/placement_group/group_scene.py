"""Placement groups in a scene of a GCS."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray_mono.common.ids import PlacementGroupID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from tests.gcs.scene import (
    JOB,
    OWNER,
    FakeNode,
    GcsScene,
)

Info = common_pb2.PlacementGroupInfo
PENDING, PREPARED, CREATED = (
    common_pb2.PLACEMENT_GROUP_PENDING,
    common_pb2.PLACEMENT_GROUP_PREPARED,
    common_pb2.PLACEMENT_GROUP_CREATED,
)
REMOVED, RESCHEDULING = common_pb2.PLACEMENT_GROUP_REMOVED, common_pb2.PLACEMENT_GROUP_RESCHEDULING


def group_id(number: int = 1) -> bytes:
    return PlacementGroupID(number.to_bytes(14, "big") + JOB.binary()).binary()


def group(number: int = 1, cpus: Sequence[float] = (1, 1), **fields: object) -> Info:
    info = Info(placement_group_id=group_id(number), job_id=JOB.binary(), namespace="space", **fields)  # type: ignore[arg-type]
    for amount in cpus:
        info.bundles.add(resources=ResourceSet.from_units({"CPU": amount}).to_proto())
    return info


async def begin(scene: GcsScene) -> GcsServiceAsyncStub:
    """A GCS with a job."""
    gcs = await scene.start_gcs()
    driver = common_pb2.Address(worker_id=OWNER.binary(), node_id=b"0" * 28)
    assert (
        await gcs.AddJob(gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(driver=driver)))
    ).job_id == JOB.binary()
    return gcs


async def register(gcs: GcsServiceAsyncStub, group: Info) -> None:
    await gcs.RegisterPlacementGroup(gcs_pb2.RegisterPlacementGroupRequest(group=group))


async def until(gcs: GcsServiceAsyncStub, *states: common_pb2.PlacementGroupState, number: int = 1) -> Info:
    """Watches the group until it is in one of the states."""
    info = Info()
    while not info.version or info.state not in states:
        request = gcs_pb2.WatchPlacementGroupRequest(
            placement_group_id=group_id(number), after_version=info.version
        )
        info = await gcs.WatchPlacementGroup(request)
    return info


def hold_later(node: FakeNode, goes_on: asyncio.Event) -> None:
    """The node holds what it is asked for when that is set."""

    async def hold(request: raylet_pb2.PrepareBundlesRequest) -> raylet_pb2.PrepareBundlesReply:
        await goes_on.wait()
        return await node.hold_bundles(request)

    node.on_prepare = hold


async def remove(gcs: GcsServiceAsyncStub, number: int = 1) -> None:
    await gcs.RemovePlacementGroup(gcs_pb2.RemovePlacementGroupRequest(placement_group_id=group_id(number)))


def places(info: Info) -> list[bytes]:
    return [bundle.node_id for bundle in info.bundles]


async def comes_back(node: FakeNode, told: gcs_pb2.RegisterNodeRequest | None = None) -> None:
    """The node registers at the head that there is, and does as it says."""
    request = gcs_pb2.RegisterNodeRequest()
    request.MergeFrom(told or gcs_pb2.RegisterNodeRequest())
    for number in (1, 2):
        held = node.bundles.get(group_id(number))
        if held:
            whole = group(number, name=f"name{number}", strategy=Info.STRICT_SPREAD)
            request.bundles.add(group=whole, indices=sorted(held))
    await node.process.spawn(node.join(told=request))
    for each in node.unwanted_bundles:
        for index in each.indices:
            node.bundles[each.placement_group_id].pop(index)

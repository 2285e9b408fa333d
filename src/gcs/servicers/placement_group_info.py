"""PlacementGroupInfoGcsService: placement groups are made, found, watched and removed."""

from __future__ import annotations

from ray_mono.common.ids import PlacementGroupID
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.placement_group.group_manager import GroupNameTaken
from ray_mono.gcs.placement_group.placement_groups import PlacementGroups
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class PlacementGroupInfoServicer(gcs_rpc.GcsServiceServicer):
    """What creators and users of groups ask for."""

    def __init__(
        self,
        groups: PlacementGroups,
        adoption: Adoption,
        writes: WriteThrough,
    ) -> None:
        self._all = groups
        self._groups = groups.manager
        self._table = groups.table
        self._adoption = adoption
        self._writes = writes

    async def RegisterPlacementGroup(
        self, request: gcs_pb2.RegisterPlacementGroupRequest, context: CallContext
    ) -> common_pb2.PlacementGroupInfo:
        group_id = parse_id(PlacementGroupID, "group.placement_group_id", request.group.placement_group_id)
        await self._adoption.heard()
        try:
            self._all.register(request.group)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, str(error)) from error
        except GroupNameTaken as taken:
            raise RpcError(StatusCode.ALREADY_EXISTS, str(taken)) from taken
        return await self._table.watch(group_id, 0, request.settled)

    async def WatchPlacementGroup(
        self, request: gcs_pb2.WatchPlacementGroupRequest, context: CallContext
    ) -> common_pb2.PlacementGroupInfo:
        group_id = parse_id(PlacementGroupID, "placement_group_id", request.placement_group_id)
        if self._groups.get(group_id) is None:
            await self._adoption.heard()
        return await self._table.watch(group_id, request.after_version, request.settled)

    async def GetPlacementGroup(
        self, request: gcs_pb2.GetPlacementGroupRequest, context: CallContext
    ) -> common_pb2.PlacementGroupInfo:
        if request.placement_group_id:
            group_id = parse_id(PlacementGroupID, "placement_group_id", request.placement_group_id)
            if self._groups.get(group_id) is None:
                await self._adoption.heard()
            await self._writes.flushed()
            return self._table.shown(group_id)
        if self._groups.named(request.namespace, request.name) is None:
            await self._adoption.heard()
        await self._writes.flushed()
        group = self._groups.named(request.namespace, request.name)
        if group is None:
            raise RpcError(
                StatusCode.NOT_FOUND,
                f"no placement group is named {request.name!r} in namespace {request.namespace!r}",
            )
        return self._table.shown(group.group_id)

    async def GetAllPlacementGroups(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllPlacementGroupsReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.GetAllPlacementGroupsReply(groups=self._table.all_shown())

    async def RemovePlacementGroup(
        self, request: gcs_pb2.RemovePlacementGroupRequest, context: CallContext
    ) -> common_pb2.Empty:
        group_id = parse_id(PlacementGroupID, "placement_group_id", request.placement_group_id)
        if self._groups.get(group_id) is None:
            await self._adoption.heard()
        self._all.remove(group_id, "by remove_placement_group()")
        await self._writes.flushed()
        return common_pb2.Empty()

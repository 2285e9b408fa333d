"""The rows of placement groups as others see them: stored, and waited for by WatchPlacementGroup.

What is shown is durable. A group that is not known is waited for as well, for a while: whoever has a handle
may ask before its creator has told of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ray_mono.common.ids import PlacementGroupID
from ray_mono.gcs.placement_group.group_rows import row_to_proto
from ray_mono.gcs.placement_group.group_state import PlacementGroup
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

UNKNOWN_WAIT_S = 5.0
"""How long a group that is not known is waited for."""

Info = common_pb2.PlacementGroupInfo
SETTLED = frozenset({common_pb2.PLACEMENT_GROUP_CREATED, common_pb2.PLACEMENT_GROUP_REMOVED})


class GroupTable:
    """PlacementGroupInfo by group id."""

    def __init__(self, writes: WriteThrough, awaits_nodes: Callable[[], bool]) -> None:
        """awaits_nodes(): whether nodes of an earlier head have yet to come, which may tell of groups."""
        self._writes = writes
        self._awaits_nodes = awaits_nodes
        # As of the latest event, and as of the latest that is durable.
        self._current: dict[PlacementGroupID, Info] = {}
        self._shown: dict[PlacementGroupID, Info] = {}
        self._watchers: dict[PlacementGroupID, list[asyncio.Future[None]]] = {}

    def changed(self, group: PlacementGroup) -> None:
        """Writes the row, and shows it when that is durable."""
        info = self._current[group.group_id] = row_to_proto(group)
        self._writes.put(Table.PLACEMENT_GROUP, group.group_id.binary(), info.SerializeToString())
        self._writes.after_commit(lambda: self._show(group.group_id, info))

    def _show(self, group_id: PlacementGroupID, info: Info) -> None:
        if group_id in self._current:
            self._shown[group_id] = info
            self._wake(group_id)

    def _wake(self, group_id: PlacementGroupID) -> None:
        for watcher in self._watchers.pop(group_id, []):
            if not watcher.done():
                watcher.set_result(None)

    def forget(self, group_id: PlacementGroupID) -> None:
        """Drops the row of a group that was removed long ago."""
        self._writes.delete(Table.PLACEMENT_GROUP, group_id.binary())
        self._current.pop(group_id, None)
        self._shown.pop(group_id, None)
        self._wake(group_id)

    def restore(self, rows: list[Info]) -> None:
        for info in rows:
            self._current[PlacementGroupID(info.placement_group_id)] = info
            self._shown[PlacementGroupID(info.placement_group_id)] = info

    def current(self, group_id: PlacementGroupID) -> Info:
        """Of a group that is known."""
        return self._current[group_id]

    def shown(self, group_id: PlacementGroupID) -> Info:
        """The latest row that is durable. Raises RpcError NOT_FOUND."""
        info = self._shown.get(group_id)
        if info is None:
            raise unknown_group(group_id)
        return info

    def all_shown(self) -> list[Info]:
        return list(self._shown.values())

    async def until_known(self, group_id: PlacementGroupID) -> bool:
        """Waits for it, not for long. Returns whether it is known."""
        try:
            await self.watch(group_id, 0)
        except RpcError:
            return False
        return True

    async def watch(self, group_id: PlacementGroupID, after_version: int, settled: bool = False) -> Info:
        """The row, as soon as its version is above after_version and, where that is asked for, it is settled:
        as long as that takes.

        Raises RpcError NOT_FOUND.
        """
        unknown_until_s = asyncio.get_running_loop().time() + UNKNOWN_WAIT_S
        while True:
            info = self._shown.get(group_id)
            if info is not None and info.version > after_version and (not settled or info.state in SETTLED):
                return info
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(group_id, []).append(watcher)
            try:
                async with asyncio.timeout_at(unknown_until_s if info is None else None):
                    await watcher
            except TimeoutError:
                if not self._awaits_nodes():
                    raise unknown_group(group_id) from None
                unknown_until_s += UNKNOWN_WAIT_S
            finally:
                waiting = self._watchers.get(group_id, [])
                if watcher in waiting:
                    waiting.remove(watcher)
                    if not waiting:
                        del self._watchers[group_id]

    def count_watchers(self) -> int:
        return sum(len(watchers) for watchers in self._watchers.values())


def unknown_group(group_id: PlacementGroupID) -> RpcError:
    return RpcError(
        StatusCode.NOT_FOUND,
        f"placement group {group_id.hex()} is not known: it was never made, or was removed long ago",
    )

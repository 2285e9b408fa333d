"""The rows of placement groups as others see them: stored, told to the log, and waited for by
WatchPlacementGroup.

What is shown is durable. Groups come and go by hundreds at a time: all that are shown in one turn share a
line of the log. A group that is not known is waited for as well, for a while: whoever has a handle
may ask before its creator has told of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from ray_mono.common.ids import PlacementGroupID
from ray_mono.gcs.placement_group.group_rows import registration_to_proto, row_to_proto
from ray_mono.gcs.placement_group.group_state import GroupState, PlacementGroup
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

logger = logging.getLogger(__name__)

UNKNOWN_WAIT_S = 5.0
"""How long a group that is not known is waited for."""

Info = common_pb2.PlacementGroupInfo
LOGGED_MAX = 100
"""So many in a line of the log."""
SETTLED = frozenset({common_pb2.PLACEMENT_GROUP_CREATED, common_pb2.PLACEMENT_GROUP_REMOVED})


class _Watcher:
    """Somebody who waits for a row."""

    __slots__ = ("settled", "woken")

    def __init__(self, settled: bool) -> None:
        self.settled = settled
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class GroupTable:
    """PlacementGroupInfo by group id."""

    def __init__(self, writes: WriteThrough, awaits_nodes: Callable[[], bool]) -> None:
        """awaits_nodes(): whether nodes of an earlier head have yet to come, which may tell of groups."""
        self._writes = writes
        self._awaits_nodes = awaits_nodes
        # As of the latest event, and as of the latest that is durable.
        self._current: dict[PlacementGroupID, Info] = {}
        self._shown: dict[PlacementGroupID, Info] = {}
        # What never changes of those that have changed under this head.
        self._registrations: dict[PlacementGroupID, Info] = {}
        self._watchers: dict[PlacementGroupID, list[_Watcher]] = {}
        self._to_log: list[str] = []

    def changed(self, group: PlacementGroup) -> None:
        """Writes the row, and shows it when that is durable."""
        registration = self._registrations.get(group.group_id)
        if registration is None:
            registration = registration_to_proto(group.registration)
            self._registrations[group.group_id] = registration
        info = self._current[group.group_id] = row_to_proto(group, registration)
        self._writes.put(Table.PLACEMENT_GROUP, group.group_id.binary(), info.SerializeToString())
        self._writes.after_commit(partial(self._show, group.group_id, info))

    def _show(self, group_id: PlacementGroupID, info: Info) -> None:
        if group_id not in self._current:
            return
        before = self._shown.get(group_id)
        self._shown[group_id] = info
        if before is None or before.state != info.state:
            if not self._to_log:
                asyncio.get_running_loop().call_soon(self._log)
            self._to_log.append(f"{group_id.hex()} {GroupState(info.state).name}")
        for watcher in self._watchers.get(group_id, ()):
            if not watcher.settled or info.state in SETTLED:
                watcher.wake()

    def _log(self) -> None:
        for start in range(0, len(self._to_log), LOGGED_MAX):
            logger.info("placement groups: %s", ", ".join(self._to_log[start : start + LOGGED_MAX]))
        self._to_log.clear()

    def forget(self, group_id: PlacementGroupID) -> None:
        """Drops the row of a group that was removed long ago."""
        self._writes.delete(Table.PLACEMENT_GROUP, group_id.binary())
        self._current.pop(group_id, None)
        self._shown.pop(group_id, None)
        self._registrations.pop(group_id, None)
        for watcher in self._watchers.get(group_id, ()):
            watcher.wake()

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
            watcher = _Watcher(settled)
            self._watchers.setdefault(group_id, []).append(watcher)
            try:
                async with asyncio.timeout_at(unknown_until_s if info is None else None):
                    await watcher.woken
            except TimeoutError:
                if group_id not in self._shown and not self._awaits_nodes():
                    raise unknown_group(group_id) from None
                unknown_until_s += UNKNOWN_WAIT_S
            finally:
                self._watchers[group_id].remove(watcher)
                if not self._watchers[group_id]:
                    del self._watchers[group_id]

    def count_watchers(self) -> int:
        return sum(len(watchers) for watchers in self._watchers.values())


def unknown_group(group_id: PlacementGroupID) -> RpcError:
    return RpcError(
        StatusCode.NOT_FOUND,
        f"placement group {group_id.hex()} is not known: it was never made, or was removed long ago",
    )

"""Whether the placement groups that leases wait for are still there: who waits for one that is removed would
wait for ever.

A raylet hears of the end of a group only where it holds bundles of it, and a lease may come later, or wait
where there never was one. So for each group that leases are queued for, one call waits at the GCS for the
next change of the group, and is made again with each answer. Where the group is removed, or the GCS knows
none, its leases are refused. A GCS that is away is asked again when the node is registered; versions count
anew then, since it may have lost its store.
"""

from __future__ import annotations

import asyncio

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.backoff import Backoff
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.gcs_client import GcsClient
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.rpc.surface import RpcError, StatusCode

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 2.0
"""After a call that failed: the loss of the connection may not have been noticed yet."""


class GroupWatches:
    """Of one raylet."""

    def __init__(
        self,
        clock: Clock,
        leases: LeaseManager,
        effects: EffectRunner,
        gcs: GcsClient,
        tasks: BackgroundTasks,
    ) -> None:
        self._clock = clock
        self._leases = leases
        self._effects = effects
        self._gcs = gcs
        self._tasks = tasks
        # By group.
        self._watches: dict[bytes, asyncio.Task[None]] = {}

    def look(self) -> None:
        """Watches what is waited for now. To be called while leases are queued, and after that."""
        waited_for = dict.fromkeys(self._leases.groups_waited_for())
        for group_id in [group_id for group_id in self._watches if group_id not in waited_for]:
            self._watches.pop(group_id).cancel()
        for group_id in waited_for:
            if group_id not in self._watches:
                name = f"watch of placement group {group_id.hex()}"
                self._watches[group_id] = self._tasks.spawn(self._watch(group_id), name)

    async def _watch(self, group_id: bytes) -> None:
        await self._until_it_ended(group_id)
        # Before its leases are refused: those that come later are another watch's.
        del self._watches[group_id]
        self._effects.run(self._leases.groups_ended([group_id], self._clock.time_s()))

    async def _until_it_ended(self, group_id: bytes) -> None:
        version, pauses = 0, Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while True:
            await self._gcs.until_registered()
            try:
                group = await self._gcs.next_of_group(group_id, version)
            except RpcError as error:
                if error.code is StatusCode.NOT_FOUND:
                    return
                version = 0
                await asyncio.sleep(pauses.next_s())
                continue
            if group.state == common_pb2.PLACEMENT_GROUP_REMOVED:
                return
            version = group.version
            pauses.reset()

"""What the GCS says about bundles of placement groups: brings it to the lease manager, and tells at each
registration which bundles are held here.

A head that lost its store learns of the groups from the nodes that hold their bundles. So the whole group is
kept here as the GCS told it, while one of its bundles is held.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.raylet import wire
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.rpc.surface import RpcError, StatusCode


class BundleRequests:
    """Of one raylet. ValueErrors say what is wrong with a message, of which nothing was done then."""

    def __init__(self, clock: Clock, leases: LeaseManager, effects: EffectRunner) -> None:
        self._clock = clock
        self._leases = leases
        self._effects = effects
        # As the GCS told them last. Invariant: those whose bundles are held.
        self._groups: dict[bytes, common_pb2.PlacementGroupInfo] = {}

    def prepare(self, groups: Sequence[common_pb2.GroupBundles]) -> list[str]:
        """Why the bundles of each group are not held; empty where they are. Raises ValueError."""
        wanted = [wire.bundles_from(each) for each in groups]
        refusals = []
        for each, bundles in zip(groups, wanted, strict=True):
            group_id = each.group.placement_group_id
            refusal, effects = self._leases.prepare_bundles(group_id, bundles, self._clock.time_s())
            self._effects.run(effects)
            if not refusal:
                self._groups[group_id] = group = common_pb2.PlacementGroupInfo()
                group.CopyFrom(each.group)
            refusals.append(refusal)
        return refusals

    def commit(self, groups: Sequence[common_pb2.BundleIndices]) -> None:
        """Raises ValueError, and RpcError (NOT_FOUND) where one is not held: none is committed then."""
        named = map(wire.indices_from, groups)
        keys = [(group_id, index) for group_id, indices in named for index in indices]
        for group_id, index in keys:
            if not self._leases.holds_bundle((group_id, index)):
                text = f"bundle {index} of placement group {group_id.hex()} is not held here"
                raise RpcError(StatusCode.NOT_FOUND, text)
        self._effects.run(self._leases.commit_bundles(keys, self._clock.time_s()))

    def give_back(self, groups: Sequence[common_pb2.BundleIndices], is_removed: bool) -> None:
        """is_removed: the groups are. Raises ValueError."""
        indices: dict[bytes, list[int]] = {}
        for each in groups:
            group_id, of_group = wire.indices_from(each)
            indices.setdefault(group_id, []).extend(of_group)
        self._effects.run(self._leases.return_bundles(indices, is_removed, self._clock.time_s()))
        for group_id in indices:
            if not self._leases.holds_some_of(group_id):
                self._groups.pop(group_id, None)

    # ---- registrations

    def told(self) -> list[common_pb2.GroupBundles]:
        """All that is held."""
        return [
            common_pb2.GroupBundles(group=self._groups[group_id], indices=indices)
            for group_id, indices in self._leases.held_bundles().items()
        ]

"""What the GCS says about bundles of placement groups: brings it to the lease manager, and tells at each
registration which bundles are held here.

Bundles that may wait do so as a request for a lease (scheduling/bundle_demand.py). Whoever asks for bundles
of a group, or gives some back, withdraws what waits of it. So does a head that the node registers at: what
was asked for by another head nobody would give back.

Requests may be heard in another order than they were made. Of each bundle none is carried out after a later
one.

A head that lost its store learns of the groups from the nodes that hold their bundles. So the whole group is
kept here as the GCS told it, while one of its bundles is held.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.raylet import wire
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.scheduling.bundle_demand import bundle_demand
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.node_bundles import BundleKey
from ray_mono.rpc.surface import RpcError, StatusCode

Order = tuple[int, int]
"""Of a request: its head's number, and its own."""
COMES_LATE = "a later request for the group has come before this one"
ORDERS_KEPT_MAX = 20_000


class BundleRequests:
    """Of one raylet. ValueErrors say what is wrong with a message, of which nothing was done then."""

    def __init__(
        self, node_id: bytes, clock: Clock, leases: LeaseManager, answers: LeaseAnswers, effects: EffectRunner
    ) -> None:
        """node_id: this node's."""
        self._node_id = node_id
        self._clock = clock
        self._leases = leases
        self._answers = answers
        self._effects = effects
        # As the GCS told them last. Invariant: those whose bundles are held, or wait.
        self._groups: dict[bytes, common_pb2.PlacementGroupInfo] = {}
        self._cluster_id = b""
        # By bundle, of the last request: of so many as were named last.
        self._orders: OrderedDict[BundleKey, Order] = OrderedDict()

    def _comes_late(self, key: BundleKey, order: Order) -> bool:
        """Whether a later request named the bundle."""
        last = self._orders.get(key, order)
        self._orders[key] = max(order, last)
        self._orders.move_to_end(key)
        if len(self._orders) > ORDERS_KEPT_MAX:
            self._orders.popitem(last=False)
        return order < last

    def prepare(self, groups: Sequence[common_pb2.GroupBundles], order: Order) -> list[str]:
        """Why the bundles of each group are not held; empty where they are. order: the request's. Raises
        ValueError."""
        wanted = [wire.bundles_from(each) for each in groups]
        refusals = []
        for each, bundles in zip(groups, wanted, strict=True):
            group_id = each.group.placement_group_id
            if any([self._comes_late((group_id, index), order) for index in bundles]):
                refusals.append(COMES_LATE)
                continue
            self._withdraw(group_id)
            refusal, effects = self._leases.prepare_bundles(group_id, bundles, self._clock.time_s())
            self._effects.run(effects)
            if not refusal:
                self._keep(each.group)
            refusals.append(refusal)
        return refusals

    async def prepare_in_turn(
        self, groups: Sequence[common_pb2.GroupBundles], order: Order, requester: int, waited_s: float = 0.0
    ) -> list[str]:
        """The same; what is not free waits for its turn, one group after the other. requester: whose end
        withdraws it. waited_s: so far. Raises ValueError, and RpcError while stopping."""
        refusals = self.prepare(groups, order)
        for place, each in enumerate(groups):
            if refusals[place] not in ("", COMES_LATE):
                refusals[place] = await self._until_its_turn(each, requester, waited_s)
        return refusals

    async def _until_its_turn(self, wanted: common_pb2.GroupBundles, requester: int, waited_s: float) -> str:
        group_id, job_id = wanted.group.placement_group_id, wanted.group.job_id
        bundles = {
            index: resources
            for index, resources in wire.bundles_from(wanted).items()
            if not self._leases.holds_bundle((group_id, index))
        }
        request = bundle_demand(group_id, job_id, bundles, self._node_id, requester, waited_s)
        answer = self._answers.expect(group_id)
        self._keep(wanted.group)
        self._effects.run(self._leases.request(request, self._clock.time_s()))
        try:
            return (await answer).rejection.message
        except asyncio.CancelledError:
            # Nobody reads the answer.
            if self._answers.forget(group_id, answer):
                self._withdraw(group_id)
            raise
        finally:
            self._forget_unless_held(group_id)

    def commit(self, groups: Sequence[common_pb2.BundleIndices], order: Order) -> None:
        """Raises ValueError, and RpcError (NOT_FOUND) where one is not held: none is committed then."""
        named = [wire.indices_from(each) for each in groups]
        keys = [(group_id, index) for group_id, indices in named for index in indices]
        late = {key for key in keys if self._comes_late(key, order)}
        for group_id, index in keys:
            if (group_id, index) in late or not self._leases.holds_bundle((group_id, index)):
                text = f"bundle {index} of placement group {group_id.hex()} is not held here"
                raise RpcError(StatusCode.NOT_FOUND, text)
        self._effects.run(self._leases.commit_bundles(keys, self._clock.time_s()))

    def give_back(self, groups: Sequence[common_pb2.BundleIndices], order: Order, is_removed: bool) -> None:
        """is_removed: the groups are. Raises ValueError."""
        indices: dict[bytes, list[int]] = {}
        for group_id, of_group in [wire.indices_from(each) for each in groups]:
            given_back = [index for index in of_group if not self._comes_late((group_id, index), order)]
            if given_back or not of_group:
                indices.setdefault(group_id, []).extend(given_back)
        for group_id, of_group in indices.items():
            waiting = self._leases.get(group_id)
            if waiting is not None and not (waiting.request.bundles or {}).keys().isdisjoint(of_group):
                self._withdraw(group_id)
        self._effects.run(self._leases.return_bundles(indices, is_removed, self._clock.time_s()))
        for group_id in indices:
            self._forget_unless_held(group_id)

    def _withdraw(self, group_id: bytes) -> None:
        """What waits of it."""
        effects = self._leases.cancel(group_id, self._clock.time_s())
        if effects:
            self._effects.run(effects)

    def _keep(self, group: common_pb2.PlacementGroupInfo) -> None:
        kept = self._groups[group.placement_group_id] = common_pb2.PlacementGroupInfo()
        kept.CopyFrom(group)

    def _forget_unless_held(self, group_id: bytes) -> None:
        if not self._leases.holds_some_of(group_id) and self._leases.get(group_id) is None:
            self._groups.pop(group_id, None)

    def of(self, group_id: bytes) -> common_pb2.PlacementGroupInfo | None:
        """As the GCS told it last, while one of its bundles is held here, or waits."""
        return self._groups.get(group_id)

    # ---- registrations

    def told(self) -> list[common_pb2.GroupBundles]:
        """All that is held."""
        return [
            common_pb2.GroupBundles(group=self._groups[group_id], indices=indices)
            for group_id, indices in self._leases.held_bundles().items()
        ]

    def is_of(self, cluster_id: bytes) -> None:
        """A head that lost its store gives the cluster another id, and begins to count anew."""
        if cluster_id != self._cluster_id:
            self._cluster_id = cluster_id
            self._orders.clear()

    def registered(self, cluster_id: bytes) -> None:
        """At a head, which may be another one than before: nothing waits for that one any more."""
        self.is_of(cluster_id)
        for lease in self._leases.leases():
            if lease.request.bundles is not None:
                self._withdraw(lease.lease_id)


def order_of(number: common_pb2.BundleRequestNumber) -> Order:
    return number.head_number, number.number

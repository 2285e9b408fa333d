"""The bundles of placement groups on this node: the table of those that are held, over the ledger, which
counts what they hold. Pure.

The bundles of a group that are prepared by one call are held all or none. Whatever is asked twice is done
once: what is held already is not held again, and what is not held is not returned. This knows no leases but
by their ids: whose workers end with a bundle, the lease manager decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray_mono.common.our_bug import check
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling.bundles import Bundle, BundleState
from ray_mono.raylet.scheduling.ledger import ResourceLedger, spare

BundleKey = tuple[bytes, int]
"""Id of its group, index in it."""


class NodeBundles:
    """Of one node."""

    def __init__(self, node_id: bytes, ledger: ResourceLedger) -> None:
        self._name = f"node {node_id.hex()[:8]}"
        self._ledger = ledger
        # By group and index: PREPARED or COMMITTED. Invariant: no group has none.
        self._held: dict[bytes, dict[int, Bundle]] = {}
        # ENDING.
        self._ending: list[Bundle] = []

    def prepare(
        self,
        group_id: bytes,
        wanted: Mapping[int, ResourceSet],
        now_s: float,
        is_draining: bool = False,
        kept: ResourceSet | None = None,
    ) -> str:
        """Holds all of these bundles of a group, by index. Returns why it does not, in one sentence; empty
        where it does. is_draining: the node is to end, and holds nothing more. kept: for what waits."""
        new = [
            Bundle(group_id, index, resources, now_s)
            for index, resources in wanted.items()
            if index not in self._held.get(group_id, ())
        ]
        if new and is_draining:
            return f"{self._name} is drained"
        free = self._ledger.available
        if kept is not None and not _together(new).fits_in(spare(free, kept)):
            return f"{self._too_little(new, free)}, and keeps that for what has waited longer"
        for number, bundle in enumerate(new):
            if not self._ledger.can_grant(bundle.resources):
                self._ledger.release_bundles(new[:number])
                refusal = self._too_little(new, free)
                is_in_parts = _together(new).fits_in(free) and not self._ledger.is_overdrawn
                return f"{refusal}, in parts of accelerators" if is_in_parts else refusal
            self._ledger.hold_bundle(bundle)
        if new:
            self._held.setdefault(group_id, {}).update((bundle.index, bundle) for bundle in new)
        return ""

    def _too_little(self, new: Iterable[Bundle], free: ResourceSet) -> str:
        needed = _together(new)
        return f"it needs {needed}, {self._name} has {free.beside(needed)} free"

    def holds(self, key: BundleKey) -> bool:
        group_id, index = key
        return index in self._held.get(group_id, ())

    def holds_some_of(self, group_id: bytes) -> bool:
        return group_id in self._held

    def is_committed(self, key: BundleKey) -> bool:
        group_id, index = key
        return self.holds(key) and self._held[group_id][index].state is BundleState.COMMITTED

    def commit(self, keys: Iterable[BundleKey]) -> None:
        """Nothing happens to those that were committed, or are not held."""
        opened = []
        for group_id, index in keys:
            bundle = self._held.get(group_id, {}).get(index)
            if bundle is not None and bundle.state is BundleState.PREPARED:
                bundle.commit()
                opened.append(bundle)
        self._ledger.open_bundles(opened)

    def give_back(self, inside: Mapping[BundleKey, Iterable[bytes]]) -> None:
        """What each of these bundles holds is free when the leases inside of it have ended, of which those
        that hold nothing have. Nothing happens to those that are not held."""
        closed, ended = [], []
        for (group_id, index), leases in inside.items():
            bundle = self._held.get(group_id, {}).pop(index, None)
            if bundle is None:
                continue
            if not self._held[group_id]:
                del self._held[group_id]
            if bundle.state is BundleState.COMMITTED:
                bundle.give_back(frozenset(leases))
                closed.append(bundle)
            else:
                bundle.give_back(frozenset())
                ended.append(bundle)
        self._ledger.close_bundles(closed)
        self._ledger.release_bundles(ended)
        self._ending += closed
        self.end_left()

    def end_left(self) -> None:
        """To be called when leases have ended, before what is free is given to others."""
        if not self._ending:
            return
        left = [bundle for bundle in self._ending if not any(map(self._ledger.holds, bundle.awaited))]
        if left:
            self._ledger.release_bundles(left)
            for bundle in left:
                bundle.is_left()
            self._ending = [bundle for bundle in self._ending if bundle.state is BundleState.ENDING]

    def held(self) -> dict[bytes, list[int]]:
        """The indices of those that are prepared or committed, by group."""
        return {group_id: sorted(self._held[group_id]) for group_id in sorted(self._held)}

    def _all_held(self) -> list[Bundle]:
        return [bundle for bundles in self._held.values() for bundle in bundles.values()]

    def describe(self) -> list[dict[str, Any]]:
        """For people."""
        return [bundle.describe() for bundle in [*self._all_held(), *self._ending]]

    def check_invariants(self) -> None:
        """Raises InternalError."""
        states = [bundle.state for bundle in self._all_held()]
        check(all(self._held.values()), "a group is in the table of bundles without one")
        is_held = all(state in (BundleState.PREPARED, BundleState.COMMITTED) for state in states)
        is_ending = all(bundle.state is BundleState.ENDING for bundle in self._ending)
        check(is_held and is_ending, "a bundle is in the wrong part of the table")
        awaited = [any(map(self._ledger.holds, bundle.awaited)) for bundle in self._ending]
        check(all(awaited), "a bundle waits for leases that have ended")
        counted = set(self._ledger.bundles())
        check(counted == {*self._all_held(), *self._ending}, "bundles and bundles in the ledger differ")


def _together(bundles: Iterable[Bundle]) -> ResourceSet:
    return ResourceSet.sum_of(bundle.resources for bundle in bundles)

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
from ray_mono.raylet.scheduling.ledger import ResourceLedger

BundleKey = tuple[bytes, int]
"""Id of its group, index in it."""


class NodeBundles:
    """Of one node."""

    def __init__(self, node_id: bytes, ledger: ResourceLedger) -> None:
        self._name = f"node {node_id.hex()[:8]}"
        self._ledger = ledger
        # PREPARED or COMMITTED.
        self._held: dict[BundleKey, Bundle] = {}
        # ENDING.
        self._ending: list[Bundle] = []

    def prepare(self, group_id: bytes, wanted: Mapping[int, ResourceSet], is_draining: bool) -> str:
        """Holds all of these bundles of a group, by index. Returns why it does not, in one sentence; empty
        where it does. is_draining: the node is to end, and holds nothing more."""
        new = [
            Bundle(group_id, index, resources)
            for index, resources in wanted.items()
            if (group_id, index) not in self._held
        ]
        if new and is_draining:
            return f"{self._name} is drained"
        free = self._ledger.available
        for number, bundle in enumerate(new):
            if not self._ledger.can_grant(bundle.resources):
                for each in new[:number]:
                    self._ledger.release_bundle(each)
                return self._too_little(new, free)
            self._ledger.hold_bundle(bundle)
        self._held |= {(group_id, bundle.index): bundle for bundle in new}
        return ""

    def _too_little(self, new: Iterable[Bundle], free: ResourceSet) -> str:
        needed = ResourceSet.sum_of(bundle.resources for bundle in new)
        refusal = f"it needs {needed}, {self._name} has {free.beside(needed)} free"
        is_in_parts = needed.fits_in(free) and not self._ledger.is_overdrawn
        return f"{refusal}, in parts of accelerators" if is_in_parts else refusal

    def is_committed(self, key: BundleKey) -> bool:
        return key in self._held and self._held[key].state is BundleState.COMMITTED

    def commit(self, key: BundleKey) -> None:
        """Nothing happens where it was committed, or is not held."""
        bundle = self._held.get(key)
        if bundle is not None and bundle.state is BundleState.PREPARED:
            bundle.commit()
            self._ledger.open_bundle(bundle)

    def give_back(self, key: BundleKey, inside: Iterable[bytes]) -> None:
        """What it holds is free when these leases have ended, of which those that hold nothing have. Nothing
        happens where it is not held."""
        bundle = self._held.pop(key, None)
        if bundle is None:
            return
        if bundle.state is BundleState.COMMITTED:
            self._ledger.close_bundle(bundle)
            self._ending.append(bundle)
            bundle.give_back(frozenset(inside))
            self.end_left()
        else:
            self._ledger.release_bundle(bundle)
            bundle.give_back(frozenset())

    def end_left(self) -> None:
        """To be called when leases have ended, before what is free is given to others."""
        if not self._ending:
            return
        left = [bundle for bundle in self._ending if not any(map(self._ledger.holds, bundle.awaited))]
        for bundle in left:
            self._ledger.release_bundle(bundle)
            bundle.is_left()
        if left:
            self._ending = [bundle for bundle in self._ending if bundle.state is BundleState.ENDING]

    def held(self) -> dict[bytes, list[int]]:
        """The indices of those that are prepared or committed, by group."""
        indices: dict[bytes, list[int]] = {}
        for group_id, index in sorted(self._held):
            indices.setdefault(group_id, []).append(index)
        return indices

    def describe(self) -> list[dict[str, Any]]:
        """For people."""
        return [bundle.describe() for bundle in [*self._held.values(), *self._ending]]

    def check_invariants(self) -> None:
        """Raises InternalError."""
        states = [bundle.state for bundle in self._held.values()]
        is_held = all(state in (BundleState.PREPARED, BundleState.COMMITTED) for state in states)
        is_ending = all(bundle.state is BundleState.ENDING for bundle in self._ending)
        check(is_held and is_ending, "a bundle is in the wrong part of the table")
        awaited = [any(map(self._ledger.holds, bundle.awaited)) for bundle in self._ending]
        check(all(awaited), "a bundle waits for leases that have ended")
        counted = set(self._ledger.bundles())
        check(counted == {*self._held.values(), *self._ending}, "bundles and bundles in the ledger differ")

"""A node as whoever places work sees it: what it has, and what of that was free when it last said so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ray_mono.common.scheduling.resources import CPU, MEMORY, OBJECT_STORE_MEMORY, ResourceSet


@dataclass(frozen=True)
class NodeSnapshot:
    """One node, at one time. Only a node itself knows its own `available` exactly."""

    node_id: bytes
    host: str
    port: int
    total: ResourceSet
    available: ResourceSet
    is_alive: bool = True
    is_draining: bool = False
    """It is to end, and takes nothing new."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    lasting: ResourceSet = field(default_factory=ResourceSet)
    """What actors and bundles have of it, until these end. Tasks give way to what waits."""

    @property
    def takes_work(self) -> bool:
        return self.is_alive and not self.is_draining

    @cached_property
    def used_share(self) -> float:
        """How much of it is in use: of CPU, memory or the store, whichever is scarcest. 0 idle, 1 full. Kept,
        since a node is looked at many times before it reports again."""
        return self.utilization((CPU, MEMORY, OBJECT_STORE_MEMORY))

    @cached_property
    def without_lasting(self) -> ResourceSet:
        """What it has but for what lasts: where tasks give way, this is free. Kept as well."""
        return self.total - self.lasting if self.lasting else self.total

    def utilization(self, names: Iterable[str]) -> float:
        """How much is in use of the scarcest of these resources: 0 idle, 1 full."""
        total, available = self.total, self.available
        shares = [1 - available.get(name) / total.get(name) for name in names if total.get(name)]
        return max(shares, default=0.0)

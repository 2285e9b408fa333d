"""A node as whoever places work sees it: what it has, and what of that was free when it last said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_mono.common.scheduling.resources import ResourceSet


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

    @property
    def takes_work(self) -> bool:
        return self.is_alive and not self.is_draining

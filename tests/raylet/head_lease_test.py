"""Until when a node may run actors, on a machine that sleeps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.node_time import NS_PER_S
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.head_lease import HeadLease


class Clock:
    def __init__(self) -> None:
        self.now_s, self.asleep_s = 100.0, 1000.0

    def time_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s + self.asleep_s

    def awake_or_asleep_s(self) -> float:
        return self.now_s + self.asleep_s


@pytest.mark.parametrize("is_beside_head", [True, False])
def test_only_a_node_whose_actors_may_be_elsewhere_loses_its_time_asleep(is_beside_head: bool) -> None:
    clock, told = Clock(), []
    launcher: Any = SimpleNamespace(lease_ends=lambda *end: told.append(end))
    lease = HeadLease(60.0, clock, launcher, Clients(), is_beside_head)
    clock.now_s += 30
    lease.confirmed(lease.now_s())
    # Its workers end then, too, also where the raylet stands still.
    assert told == [(1190 * NS_PER_S, 190 * NS_PER_S if is_beside_head else 0)]
    clock.asleep_s += 3600
    assert lease.is_over() == (not is_beside_head)
    # A head that stays away ends the node in any case.
    clock.now_s += 61
    assert lease.is_over()

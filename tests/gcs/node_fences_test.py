"""Until when a silent node may run actors, as the head sees it."""

from __future__ import annotations

import random

from ray_mono.common.ids import NodeID
from ray_mono.gcs.node_fences import CLOCKS_DIFFER, NodeFences
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.head_lease import HeadLease

NODE, OTHER = NodeID(b"n" * 28), NodeID(b"o" * 28)
LEASE_S = 60.0
MARGIN_S = 2.0


def test_a_silent_node_is_waited_for_from_when_it_was_last_confirmed() -> None:
    fences = NodeFences(MARGIN_S)
    fences.confirmed(NODE, 100.0)
    fences.died(NODE, LEASE_S, 130.0)
    assert fences.left_s(NODE, 130.0) == 100.0 + 63.0 + MARGIN_S - 130.0
    assert fences.left_s(NODE, 165.0) == 0.0
    assert fences.left_s(OTHER, 130.0) == fences.left_s(None, 130.0) == 0.0


def test_a_node_that_was_never_confirmed_is_waited_for_from_its_death_on() -> None:
    fences = NodeFences(MARGIN_S)
    fences.died(NODE, LEASE_S, 10.0)
    assert fences.left_s(NODE, 10.0) == 63.0 + MARGIN_S


def test_a_node_whose_processes_have_ended_is_not_waited_for() -> None:
    fences = NodeFences(MARGIN_S)
    fences.confirmed(NODE, 1.0)
    fences.died(NODE, LEASE_S, 2.0)
    fences.ended(NODE)
    assert fences.left_s(NODE, 2.0) == 0.0


def test_a_node_that_a_new_head_does_not_know_may_have_been_confirmed_until_the_first_one_came() -> None:
    fences = NodeFences(MARGIN_S)
    fences.takes_over(LEASE_S, 100.0)
    fences.takes_over(LEASE_S, 130.0)
    end_s = 100.0 + 63.0 + MARGIN_S
    assert fences.left_s(NODE, 140.0) == end_s - 140.0 and fences.left_s(NODE, end_s) == 0.0
    fences.confirmed(NODE, 141.0)
    assert fences.left_s(NODE, 142.0) == fences.left_s(None, 142.0) == 0.0
    fences.died(NODE, LEASE_S, 150.0)
    assert fences.left_s(NODE, 150.0) == 141.0 + 63.0 + MARGIN_S - 150.0
    fences.ended(NODE)
    assert fences.left_s(NODE, 151.0) == 0.0
    fences.forget(NODE)
    assert fences.left_s(NODE, 1000.0) == 0.0


def test_nodes_of_a_head_without_leases_are_not_waited_for() -> None:
    fences = NodeFences(MARGIN_S)
    fences.takes_over(0.0, 100.0)
    assert fences.left_s(NODE, 100.0) == 0.0


def test_a_node_without_a_lease_is_not_waited_for() -> None:
    fences = NodeFences(MARGIN_S)
    fences.confirmed(NODE, 1.0)
    fences.died(NODE, 0.0, 2.0)
    assert fences.left_s(NODE, 2.0) == 0.0


class Clock:
    def __init__(self, now_s: float) -> None:
        self.awake_or_asleep_s = lambda: now_s


class Launcher:
    def lease_ends(self, at_ns: int, awake_ns: int) -> None: ...


def test_the_head_never_gives_an_actor_away_before_its_node_has_stopped_whatever_stalls() -> None:
    """Real time against two clocks: questions and answers take any time, the node's clock goes slower than
    the head's by as much as is allowed, either side stands still for a while, and answers are lost."""
    for seed in range(2_000):
        rng = random.Random(seed)
        rate = rng.uniform(1 - CLOCKS_DIFFER / 2, 1 + CLOCKS_DIFFER / 2)
        head_offset_s, node_offset_s = rng.uniform(0, 1e6), rng.uniform(0, 1e6)
        fences, now_s = NodeFences(MARGIN_S), 0.0
        launcher = Launcher()
        lease = HeadLease(LEASE_S, Clock(node_offset_s), launcher, Clients())  # type: ignore[arg-type]
        fences.confirmed(NODE, head_offset_s)
        for _ in range(rng.randrange(6)):
            now_s += rng.choice([0.0, 0.01, 5.0, 50.0, 200.0])  # the node stands still, or waits
            asked_s = node_offset_s + now_s * rate
            now_s += rng.choice([0.0, 0.01, 5.0, 50.0, 200.0])  # the question is on its way
            fences.confirmed(NODE, head_offset_s + now_s)
            if rng.random() < 0.7:
                now_s += rng.choice([0.0, 0.01, 5.0, 200.0])  # the answer is
                lease.confirmed(asked_s)
        died_s = now_s + rng.uniform(0, 100)
        fences.died(NODE, LEASE_S, head_offset_s + died_s)
        restarts_s = died_s + fences.left_s(NODE, head_offset_s + died_s)
        stops_s = (lease.ends_s - node_offset_s) / rate
        assert restarts_s - stops_s >= MARGIN_S or stops_s <= died_s - MARGIN_S, seed


def test_a_worker_that_nobody_names_may_run_as_long_as_the_longest_lease_of_a_node() -> None:
    fences = NodeFences(MARGIN_S)
    assert fences.missing_worker_s([10.0, LEASE_S], 100.0) == 63.0 + MARGIN_S
    fences.takes_over(2 * LEASE_S, 100.0)
    assert fences.missing_worker_s([10.0, LEASE_S], 100.0) == 126.0 + MARGIN_S


def test_a_worker_that_nobody_names_may_run_for_ever_where_a_node_has_no_lease() -> None:
    fences = NodeFences(MARGIN_S)
    assert fences.missing_worker_s([0.0, LEASE_S], 100.0) == 0.0
    assert fences.missing_worker_s([], 100.0) == 0.0

"""What a decision costs where a cluster is large, by what is asked for: the last table of "More nodes" in
docs/scale.md.

    python bench/placement.py [--nodes 10,100,1000,10000] [--decisions N]

It runs the scheduler's own functions on nodes that exist only in its memory: `task` is a raylet's decision
for a lease that does not fit its own node, `actor` the head's for an actor, `group` the head's for a group of
4 bundles by SPREAD. Before each decision a node has changed. Told is the median, in µs.

    any            1 CPU
    spread         1 CPU, SPREAD
    rare label     1 CPU, and a label that one node of a thousand has, and one at least
    common label   1 CPU, and a label that half of the nodes have
    fallback       1 CPU, and a label that none has, with a fallback that half of them have
    affinity       1 CPU on one node, hard
    bundle         1 CPU in a bundle of a group
    rare resource  what one node has
    full           1 CPU, where no node has that free
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

from ray_mono.common.scheduling.bundle_resources import asked_for_in, given_by
from ray_mono.common.scheduling.known_nodes import KnownNodes
from ray_mono.common.scheduling.labels import IN, LabelRequirement, LabelSelector
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.gcs.actor.actor_placement import Demand, choose_node
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.wanted_places import WantedPlaces
from ray_mono.raylet.scheduling.scheduling_policy import Wait, decide

GROUP_ID = b"g" * 18
NUM_BUNDLES = 4
LABELLED_ONE_IN = 1000
CPU_1 = ResourceSet.from_units({"CPU": 1})
HALF = ResourceSet.from_units({"CPU": 0.5})
FREE = ResourceSet.from_units({"CPU": 8, "memory": 64e9, "object_store_memory": 20e9})
FULL = "full"
RARE = ResourceSet.from_units({"rare": 1})
"""Of which the node that has it has enough for a group."""


def node_id(number: int) -> bytes:
    return number.to_bytes(28, "big")


def cluster(num_nodes: int) -> KnownNodes:
    """All free. The one in the middle has the bundle, and the last one the rare resource."""
    return KnownNodes(
        NodeSnapshot(node_id(number), "10.0.0.1", 1, total, total, labels=labels)
        for number in range(num_nodes)
        for total in [
            FREE
            + (given_by(CPU_1, GROUP_ID, 0) if number == num_nodes // 2 else ResourceSet())
            + ResourceSet.from_units({"rare": NUM_BUNDLES if number == num_nodes - 1 else 0})
        ]
        for labels in [{"shelf": f"{number % LABELLED_ONE_IN}", "half": f"{number % 2}"}]
    )


def labelled(key: str, value: str) -> LabelSelector:
    return (LabelRequirement(key, IN, (value,)),)


def kinds(num_nodes: int) -> dict[str, tuple[ResourceSet, Strategy]]:
    none, common = labelled("half", "neither"), labelled("half", "1")
    in_bundle = Strategy(StrategyKind.PLACEMENT_GROUP, group_id=GROUP_ID, bundle_index=0)
    return {
        "any": (CPU_1, Strategy()),
        "spread": (CPU_1, Strategy(StrategyKind.SPREAD)),
        "rare label": (CPU_1, Strategy(selectors=(labelled("shelf", "0"),))),
        "common label": (CPU_1, Strategy(selectors=(common,))),
        "fallback": (CPU_1, Strategy(selectors=(none, common))),
        "affinity": (CPU_1, Strategy(StrategyKind.NODE_AFFINITY, node_id(num_nodes // 2))),
        "bundle": (asked_for_in(CPU_1, GROUP_ID, 0), in_bundle),
        "rare resource": (RARE, Strategy()),
        FULL: (CPU_1, Strategy()),
    }


def median_us(
    known: KnownNodes, num_decisions: int, decision: Callable[[bytes], object], is_full: bool
) -> float:
    """decision(id of the last node)."""
    took_s = []
    ids = known.ids()
    for number in range(num_decisions):
        last = ids[number % len(ids)]
        node = known[last]
        free = HALF if is_full else node.total
        known.put(replace(node, available=free - HALF if number % 2 else free))
        began_s = time.perf_counter()
        found = decision(last)
        took_s.append(time.perf_counter() - began_s)
        if (found is None or isinstance(found, Wait)) and not is_full:
            raise AssertionError("no place was found")
    return statistics.median(took_s) * 1e6


def row(num_nodes: int, num_decisions: int, name: str) -> list[float]:
    """Of one kind of work: task, actor and, where groups ask for such, group."""
    known = cluster(num_nodes)
    for node in list(known) if name == FULL else ():
        known.put(replace(node, available=HALF))
    required, strategy = kinds(num_nodes)[name]
    here = NodeSnapshot(b"here" * 7, "10.0.0.2", 1, CPU_1, ResourceSet())
    demand = Demand(required, strategy)
    bundle = Bundle(required, next(iter(strategy.selectors), ()))
    wanted = WantedPlaces((bundle,) * NUM_BUNDLES, BundleStrategy.SPREAD, (), b"", "", frozenset())

    def task(last_node_id: bytes) -> object:
        return decide(required, strategy, here, False, known.in_order(), last_node_id)

    def actor(last_node_id: bytes) -> object:
        return choose_node(demand, known.in_order(), last_node_id)

    def group(last_node_id: bytes) -> object:
        nodes = known.in_order()
        return wanted.place_in_turn(nodes, last_node_id) or (wanted.why_not(nodes) and None)

    is_for_groups = strategy.kind is StrategyKind.DEFAULT and len(strategy.selectors) < 2
    decisions = [task, actor, group] if is_for_groups else [task, actor]
    return [median_us(known, num_decisions, decision, name == FULL) for decision in decisions]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", default="10,100,1000,10000", help="how many (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=200, help="of each kind (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(f"{'nodes':>6} {'asked for':14}{'task':>9}{'actor':>9}{'group':>9}")
    for num_nodes in map(int, options.nodes.split(",")):
        for name in kinds(num_nodes):
            took_us = row(num_nodes, options.decisions, name)
            print(f"{num_nodes:>6} {name:14}" + "".join(f"{each:>9.0f}" for each in took_us), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

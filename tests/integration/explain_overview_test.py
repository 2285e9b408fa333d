"""What `explain` lists of all that waits: together what waits alike, and apart what does not."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.explained import KEPT, one_node
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    with one_node(num_cpus=4):
        yield


@ray.remote(num_cpus=0)
def never(*args: Any) -> int:
    signal.pause()
    return 1


@ray.remote(num_cpus=0)
def ask(refs: list[Any]) -> Any:
    return ray.get(refs)


def of_gpus() -> Any:
    return never.options(num_gpus=1).remote()


@ray.remote(num_cpus=0)
class Asked:
    def ask(self, refs: list[Any]) -> Any:
        return ray.get(refs)

    def never(self) -> None:
        signal.pause()


@pytest.mark.parametrize("max_concurrency", [1, 2])
def test_of_the_calls_of_an_actor_those_that_run_are_not_listed(max_concurrency: int) -> None:
    actor = Asked.options(max_concurrency=max_concurrency).remote()
    KEPT.extend([actor, *(actor.never.remote() for _ in range(5))])
    wait_until(lambda: [group.count for group in ray.explain().groups] == [5 - max_concurrency], "the others")
    [group] = ray.explain().groups
    assert "Asked.never() of actor " in str(group.example) and " is behind Asked.never()" in str(
        group.example
    )


def test_a_call_of_an_actor_that_waits_in_its_code_is_listed_apart_from_those_behind_it() -> None:
    actor = Asked.remote()
    KEPT.extend([actor, *(actor.ask.remote([of_gpus()]) for _ in range(3))])

    def is_told() -> bool:
        told = {str(group.example): group.count for group in ray.explain().groups}
        waits = [count for text, count in told.items() if text.startswith("Asked.ask() of actor")]
        return sorted(waits) == [1, 2] and len(told) == 3

    wait_until(is_told, "one that asks, two behind it, and what the three ask for")


def test_what_waits_for_something_that_runs_is_listed_and_apart_from_what_waits_for_other_things() -> None:
    actor = Asked.remote()
    KEPT.extend([actor, actor.never.remote(), actor.ask.remote([]), ask.remote([never.remote()])])
    KEPT.extend([never.remote(never.remote()), never.remote(of_gpus())])
    expected = {
        "RUNNING": ["Asked.ask() of", "ask() on", "never() waits"],
        "INFEASIBLE": ["never() needs", "never() waits"],
    }

    def is_as_expected() -> bool:
        groups = ray.explain().by_code
        told = {code: sorted(str(group.example) for group in alike) for code, alike in groups.items()}
        return told.keys() == expected.keys() and all(
            len(told[code]) == len(begins) and all(map(str.startswith, told[code], begins))
            for code, begins in expected.items()
        )

    wait_until(is_as_expected, str(expected))


@ray.remote(num_cpus=0)
def somewhere() -> None:
    pass


def test_what_wants_to_be_in_different_places_is_listed_apart() -> None:
    zones = ("moon", "mars")
    KEPT.extend(somewhere.options(label_selector={"zone": zone}).remote() for zone in zones for _ in range(2))
    nodes = ("ab" * 28, "cd" * 28)
    KEPT.extend(
        somewhere.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    )
    expected = {*((2, f"zone = {zone}") for zone in zones), *((1, f"node {node}") for node in nodes)}

    def are_told() -> bool:
        told = [(group.count, str(group.example)) for group in ray.explain().groups]
        return len(told) == len(expected) and all(
            any(count == each and what in text for each, text in told) for count, what in expected
        )

    wait_until(are_told, str(expected))

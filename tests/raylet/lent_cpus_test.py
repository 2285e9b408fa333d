"""CPUs of workers that wait without a word: lent when they use next to none, and to so many as is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.lent_cpus import IDLE_SHARE, LATELY_S, LentCpus
from tests.raylet.scheduling.lease_scene import Scene, units

HOLDER, OTHER = 1, 2


class Node:
    """A raylet, as far as this knows it, with one CPU for each of these leases."""

    def __init__(self, *leases: str) -> None:
        self.scene = scene = Scene(units(CPU=len(leases)))
        self.used_s: dict[str, float | None] = dict.fromkeys(leases, 0.0)
        """How much CPU the worker of each has used; None: it is gone."""
        clients: Any = {}
        for name in leases:
            scene.ask(name, requester=HOLDER)
            clients[scene.granted[name].worker_id] = SimpleNamespace(startup_token=name)
        launcher: Any = SimpleNamespace(cpu_time_s=lambda name: self.used_s[name])
        effects: Any = SimpleNamespace(run=scene.take)
        clock: Any = SimpleNamespace(time_s=lambda: scene.now_s)
        self.lent_cpus = LentCpus(clock, clients, scene.manager, scene.ledger, launcher, effects)

    def ask(self, *leases: str, most: int = 9, after_s: float = 1.0) -> list[str]:
        """Their holder names these, a while after the last time."""
        self.scene.wait(after_s)
        return [each.decode() for each in self.lent_cpus.lend([name.encode() for name in leases], most)]

    def look(self, after_s: float = 1.0) -> None:
        """The raylet does, from time to time."""
        self.scene.wait(after_s)
        self.lent_cpus.look()

    @property
    def free(self) -> ResourceSet:
        return self.scene.ledger.available


def test_a_worker_that_uses_no_cpu_between_two_asks_lends_its_own() -> None:
    node = Node("held")
    node.scene.ask("waits", requester=OTHER)
    assert node.ask("held") == [] and "waits" not in node.scene.granted
    assert node.ask("held") == ["held"]
    assert "waits" in node.scene.granted


@pytest.mark.parametrize(("share", "is_lent"), [(0.0, True), (IDLE_SHARE / 2, True), (IDLE_SHARE * 2, False)])
def test_a_worker_that_computes_keeps_them(share: float, is_lent: bool) -> None:
    node = Node("held")
    node.ask("held")
    node.used_s["held"] = share * 2.0
    assert node.ask("held", after_s=2.0) == ["held"] * is_lent
    assert node.free == (units(CPU=1) if is_lent else units())


def test_no_more_are_lent_than_are_asked_for_and_not_those_of_who_computes() -> None:
    node = Node("computes", "one", "two", "three")
    node.ask(*node.used_s)
    node.used_s["computes"] = 1.0
    assert node.ask(*node.used_s, most=2) == ["one", "two"]
    assert node.free == units(CPU=2)
    assert node.ask(*node.used_s, most=2) == ["one", "two"]
    assert node.ask("computes", "three", most=1) == ["computes"]  # it does so no more


def test_two_asks_one_after_the_other_say_nothing_of_what_a_worker_does() -> None:
    node = Node("held")
    node.ask("held")
    assert node.ask("held", after_s=0.1) == []
    assert node.ask("held", after_s=0.1) == []
    node.used_s["held"] = 1.0
    assert node.ask("held") == []
    assert node.ask("held") == ["held"]


def test_a_worker_that_uses_cpu_again_has_its_own() -> None:
    node = Node("held", "other")
    node.ask("held", "other")
    node.ask("held", "other")
    assert node.free == units(CPU=2)
    node.scene.ask("next", requester=OTHER)
    node.used_s["held"] = 1.0
    node.look()
    assert node.free == units()
    node.used_s["held"] = 2.0
    assert node.ask("held", "other") == ["other"]
    node.scene.give_back("next")
    assert node.free == units(CPU=1)
    node.look()
    assert node.ask("held", "other") == ["other", "held"]  # and sleeps once more


def test_a_worker_that_comes_out_of_a_get_has_its_own_and_may_lend_them_again() -> None:
    node = Node("held")
    node.ask("held")
    node.ask("held")
    node.scene.block("held")
    node.scene.block("held", False)
    assert node.free == units()
    node.look()
    assert node.ask("held") == ["held"]
    assert node.free == units(CPU=1)


def test_what_was_seen_long_ago_says_nothing_of_the_task_that_runs_now() -> None:
    node = Node("held")
    node.ask("held")
    assert node.ask("held", after_s=LATELY_S * 2) == []
    assert node.ask("held") == ["held"]


@pytest.mark.parametrize("gone", ["unknown", "returned", "worker"])
def test_what_is_no_lease_of_a_worker_that_lives_is_passed_over(gone: str) -> None:
    node = Node("held", "other")
    named = "unknown" if gone == "unknown" else "held"
    node.ask(named, "other")
    if gone == "returned":
        node.scene.give_back("held")
    elif gone == "worker":
        node.used_s["held"] = None
    assert node.ask(named, "other") == ["other"]


def test_what_was_lent_ends_with_the_lease() -> None:
    node = Node("held")
    node.ask("held")
    node.ask("held")
    node.scene.ask("next", requester=OTHER)
    assert node.free == units()
    node.scene.give_back("held")
    assert node.free == units()
    node.scene.give_back("next")
    assert node.free == units(CPU=1)

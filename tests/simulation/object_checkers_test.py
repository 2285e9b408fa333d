"""The judge of objects: what lives is held, what a dead process held may go, and actors that are killed count
as dead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.actor_checkers import ActorJournal
from tests.simulation.loop import VirtualLoop, new_loop
from tests.simulation.object_checkers import JudgedCounter, ObjectCheckFailed, ObjectJournal
from tests.simulation.process import SimProcess

OBJECT, OUTER = b"o" * 28, b"x" * 28
ACTOR = b"a" * 16


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = new_loop()
    yield loop
    loop.end()


class Scene:
    """An owner, and a process that borrows an object of it."""

    def __init__(self, loop: VirtualLoop, are_plain: bool = False) -> None:
        self.are_plain = are_plain
        self.actors = ActorJournal()
        self.journal = ObjectJournal(self.actors)
        self.owner, self.owned = self.start(loop, "owner")
        self.owned.add_owned(OBJECT)
        self.borrower, self.borrowed = self.start(loop, "borrower")
        self.borrowed.borrow(OBJECT, b"the owner")
        self.borrowed.add_local(OBJECT)

    def start(self, loop: VirtualLoop, name: str) -> tuple[SimProcess, JudgedCounter]:
        process = SimProcess(loop, "host", name, 1)
        counter = JudgedCounter(
            process,
            self.journal,
            {},
            lambda object_id, row: None,
            lambda object_id: self.are_plain,
            lambda object_ids: self.are_plain,
        )
        return process, counter

    def owner_lets_go(self, num_others: int = 0) -> None:
        """Of the object, and at once of so many others, which nobody else has."""
        others = [b"%28d" % number for number in range(num_others)]
        self.owned.add_all_owned(others)
        self.owned.remove_locals(deque([*others, OBJECT]))


@pytest.mark.parametrize("num_others", [0, 100])
@pytest.mark.parametrize("are_plain", [False, True])
def test_what_another_process_holds_must_not_be_freed(
    loop: VirtualLoop, are_plain: bool, num_others: int
) -> None:
    with pytest.raises(ObjectCheckFailed, match="owner frees what borrower holds"):
        Scene(loop, are_plain).owner_lets_go(num_others)


@pytest.mark.parametrize("dies", [True, False])
def test_what_was_inside_of_what_a_dead_process_held_may_go_with_it(loop: VirtualLoop, dies: bool) -> None:
    scene = Scene(loop)
    holder, held = scene.start(loop, "holder")
    scene.owned.add_owned(OUTER, [OBJECT])
    held.borrow(OUTER, b"the owner")
    held.add_local(OUTER)
    scene.owned.remove_local(OBJECT)
    if dies:
        holder.kill("a fault")
        scene.owned.remove_local(OUTER)
    else:
        held.remove_local(OUTER)
        with pytest.raises(ObjectCheckFailed, match="owner frees what borrower holds"):
            scene.owned.remove_local(OUTER)


def test_what_nobody_else_holds_may_be_freed(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    scene.borrowed.remove_local(OBJECT)
    scene.owner_lets_go()


def test_what_a_dead_process_held_may_be_freed_although_another_has_it_of_that(loop: VirtualLoop) -> None:
    scene = Scene(loop)
    _, other = scene.start(loop, "other")
    other.borrow(OBJECT, b"the owner")
    other.add_local(OBJECT)
    # As its connections end, which the kill brings about, it lets go of everything.
    scene.borrower.on_death(lambda _reason: scene.borrowed.remove_local(OBJECT))
    scene.borrower.kill("a fault")
    scene.owner_lets_go()


@pytest.mark.parametrize("end", ["killed", "out of scope"])
def test_the_process_of_an_actor_that_ends_holds_nothing_back(loop: VirtualLoop, end: str) -> None:
    scene = Scene(loop)
    core: Any = SimpleNamespace(worker_id=b"w")
    scene.borrower.core = core
    scene.actors.registered(ACTOR, max_restarts=0)
    scene.actors.constructor_began(ACTOR, b"w", b"node", 0)
    if end == "killed":
        scene.actors.killed(ACTOR)
    else:
        scene.journal.freed(scene.owner, b"\xff" * 8 + ACTOR + (1).to_bytes(4, "little"))
    scene.owner_lets_go()


@pytest.mark.parametrize("is_given_up", [True, False])
def test_a_worker_that_its_lessee_has_given_up_holds_nothing_back(
    loop: VirtualLoop, is_given_up: bool
) -> None:
    scene = Scene(loop)
    scene.journal.lost_worker_answer_s = 10.0
    clock = SimpleNamespace(time_s=lambda: 15.0 if is_given_up else 14.9)
    address = SimpleNamespace(node_id=b"node")
    core: Any = SimpleNamespace(worker_id=b"w", env=SimpleNamespace(clock=clock, address=address))
    scene.borrower.core = core
    scene.journal.lost(b"w", 5.0)
    scene.journal.lost(b"w", 9.0)
    if is_given_up:
        scene.owner_lets_go()
    else:
        with pytest.raises(ObjectCheckFailed, match="owner frees what borrower holds"):
            scene.owner_lets_go()

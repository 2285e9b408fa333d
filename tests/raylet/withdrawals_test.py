"""Withdrawals with a worker's real board: what is closed, what is known of it, and whose CPUs are lent."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.start_board import LEASE_SHIFT, BoardOfAnother, StartBoard
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.scheduling.fair_share import LOOK_S
from ray_mono.raylet.wire import lease_number
from ray_mono.raylet.withdrawals import UNANSWERED_S, Withdrawals
from tests.raylet.scheduling.lease_scene import JOB_B, Scene, units

HOLDER, OTHER = 1, 2


class Node:
    """A raylet of one CPU, as far as withdrawals know it, whose one worker is leased as "held"."""

    def __init__(self) -> None:
        self.scene = scene = Scene(units(CPU=1))
        self.listeners = {HOLDER, OTHER}
        scene.ask("held", requester=HOLDER)
        worker_id = scene.granted["held"].worker_id
        # What the worker does.
        self.board = StartBoard(worker_id)
        seen = BoardOfAnother(os.getpid(), self.board.fd, worker_id)
        clients: Any = {worker_id: SimpleNamespace(board=seen)}
        reclaims: Any = SimpleNamespace(listens=self.listeners.__contains__)
        effects: Any = SimpleNamespace(run=scene.take)
        clock: Any = SimpleNamespace(time_s=lambda: scene.now_s)
        self.withdrawals = Withdrawals(clock, clients, scene.manager, reclaims, effects)

    def may_begin(self, place: int, name: str = "f") -> bool:
        """The worker takes the next task of its lease up."""
        lease = self.scene.manager.granted(b"held")
        assert lease is not None
        return self.board.may_begin((lease_number(lease.number) << LEASE_SHIFT) + place, name)

    def withdraw(self, last: int) -> raylet_pb2.WithdrawTasksReply:
        return asyncio.run(self.withdrawals.withdraw(b"held", last))

    def wait(self, seconds: float) -> None:
        """As the raylet does, while requests wait."""
        for _ in range(round(seconds / LOOK_S)):
            self.scene.wait(LOOK_S)
            self.withdrawals.look()

    @property
    def is_lent(self) -> bool:
        return not self.scene.ledger.is_overdrawn and bool(self.scene.ledger.available.get("CPU"))


def test_what_a_worker_has_not_begun_is_taken_back_and_its_cpus_are_lent() -> None:
    node = Node()
    reply = node.withdraw(last=2)
    assert reply.is_closed and reply.begun == 0
    assert not node.may_begin(1) and node.is_lent


def test_a_worker_that_runs_something_keeps_its_cpus() -> None:
    node = Node()
    assert node.may_begin(1)
    reply = node.withdraw(last=2)
    assert reply.is_closed and reply.begun == 1
    assert not node.may_begin(2) and not node.is_lent


def test_a_worker_that_has_begun_all_that_it_was_given_keeps_its_lease_open() -> None:
    node = Node()
    assert node.may_begin(1) and node.may_begin(2)
    assert not node.withdraw(last=2).is_closed
    assert node.may_begin(3) and not node.is_lent


@pytest.mark.parametrize("lease_id", [b"unknown", b"waits"])
def test_what_is_no_lease_of_a_worker_is_not_closed(lease_id: bytes) -> None:
    node = Node()
    node.scene.ask("waits", requester=OTHER)
    assert not asyncio.run(node.withdrawals.withdraw(lease_id, 1)).is_closed


def test_what_another_processor_shows_late_counts_as_begun() -> None:
    node = Node()

    async def scene() -> Any:
        withdrawing = asyncio.ensure_future(node.withdrawals.withdraw(b"held", 1))
        await asyncio.sleep(0)
        # Written before the lease was closed, and seen now; so the worker runs it.
        node.may_begin(1)
        return await withdrawing

    reply = asyncio.run(scene())
    assert reply.is_closed and reply.begun == 1


def stop_the_holder(node: Node) -> None:
    """It has a lease, asks for more, and says nothing from now on; somebody else waits."""
    node.scene.ask("more", requester=HOLDER)
    node.scene.ask("other", requester=OTHER, job=JOB_B)
    node.wait(LOOK_S * 4)
    assert node.scene.reclaimed == ["held"]


def test_a_holder_that_does_not_answer_has_its_leases_closed_and_what_it_waits_for_cancelled() -> None:
    node = Node()
    assert node.may_begin(1)
    stop_the_holder(node)
    node.wait(UNANSWERED_S / 2)
    assert "more" not in node.scene.rejected and "other" not in node.scene.granted
    node.wait(UNANSWERED_S)
    # What runs goes on; nothing begins behind it, and its CPU is not the holder's next lease.
    assert "more" in node.scene.rejected and "other" not in node.scene.granted
    assert not node.may_begin(2)
    node.board.rest()
    node.wait(LOOK_S)
    assert "other" in node.scene.granted


def test_a_holder_that_was_never_told_is_not_taken_for_stopped() -> None:
    node = Node()
    node.listeners.clear()
    stop_the_holder(node)
    node.wait(UNANSWERED_S * 2)
    assert node.may_begin(1) and "more" not in node.scene.rejected and "other" not in node.scene.granted

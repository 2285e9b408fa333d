"""Whose call a lease's answer goes to, and what becomes of one that nobody will read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.raylet import Raylet

GRANT = raylet_pb2.RequestWorkerLeaseReply(grant=raylet_pb2.Grant(lease_id=b"a"))


class Node:
    """A raylet, as far as it answers requests."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._answers = LeaseAnswers()
        self.config = SimpleNamespace(lease_queue_max=10)
        self.clock = SimpleNamespace(time_s=lambda: 0.0)
        self.cancelled: list[bytes] = []
        self.returned: list[bytes] = []
        self.leases = SimpleNamespace(
            num_queued=0,
            request=lambda request, now_s: [],
            cancel=lambda lease_id, now_s: self.cancelled.append(lease_id),
        )

    def apply(self, effects: Any) -> None: ...

    def return_lease(self, lease_id: bytes) -> None:
        self.returned.append(lease_id)

    async def asked(self) -> asyncio.Task[raylet_pb2.RequestWorkerLeaseReply]:
        """A call that waits."""
        request: Any = SimpleNamespace(lease_id=b"a")
        call = asyncio.ensure_future(Raylet.lease(self, request))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return call


async def ends(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def test_a_lease_that_was_granted_as_its_call_was_cancelled_goes_back() -> None:
    async def scene() -> None:
        node = Node()
        call = await node.asked()
        node._answers.answer(b"a", GRANT)
        await ends(call)
        assert (node.returned, node.cancelled) == ([b"a"], [])

    asyncio.run(scene())


def test_what_a_cancelled_call_waited_for_is_not_granted_any_more() -> None:
    async def scene() -> None:
        node = Node()
        await ends(await node.asked())
        assert (node.returned, node.cancelled) == ([], [b"a"])

    asyncio.run(scene())


def test_who_asks_again_takes_over_and_the_end_of_the_earlier_call_changes_nothing() -> None:
    async def scene() -> None:
        node = Node()
        earlier, later = await node.asked(), await node.asked()
        assert (await earlier).rejection.kind == raylet_pb2.Rejection.CANCELLED
        node._answers.answer(b"a", GRANT)
        assert (await later).grant.lease_id == b"a"
        earlier, later = await node.asked(), await node.asked()
        await ends(earlier)
        assert (node.returned, node.cancelled) == ([], [])
        node._answers.answer(b"a", GRANT)
        assert (await later).HasField("grant")

    asyncio.run(scene())

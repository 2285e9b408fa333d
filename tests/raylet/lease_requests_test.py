"""Whose call a lease's answer goes to, and what becomes of one that nobody will read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effects import Effect
from ray_mono.raylet.lease_answers import LeaseAnswers
from ray_mono.raylet.lease_requests import LeaseRequests
from ray_mono.rpc.surface import RpcError, StatusCode

GRANT = raylet_pb2.RequestWorkerLeaseReply(grant=raylet_pb2.Grant(lease_id=b"a"))


class Node:
    """What a raylet says to those who lease, and what it hears."""

    def __init__(self) -> None:
        self.answers = LeaseAnswers()
        self.cancelled: list[bytes] = []
        self.returned: list[bytes] = []
        # Those of them whose worker is ended.
        self.disposed: list[bytes] = []
        # What is known of a worker's end, each time that it is asked for.
        self.causes: list[common_pb2.DeathCause | None] = []
        self.leases = SimpleNamespace(
            num_queued=0,
            request=lambda request, now_s: [],
            cancel=lambda lease_id, now_s: self.cancelled.append(lease_id) or [],
            return_lease=self._return_lease,
        )
        config: Any = SimpleNamespace(lease_queue_max=10, exit_status_wait_s=1.0, worker_exit_grace_s=1.0)
        clock: Any = SimpleNamespace(time_s=lambda: 0.0)
        effects: Any = SimpleNamespace(run=lambda effects: None)
        deaths: Any = SimpleNamespace(cause_of=self._cause_of)
        leases: Any = self.leases
        self.requests = LeaseRequests(config, clock, Clients(), leases, self.answers, effects, deaths)

    def _return_lease(self, lease_id: bytes, dispose: bool, leaving: bool, now_s: float) -> list[Effect]:
        self.returned.append(lease_id)
        if dispose:
            self.disposed.append(lease_id)
        return []

    async def _cause_of(self, worker_id: bytes, timeout_s: float) -> common_pb2.DeathCause | None:
        return self.causes.pop(0)

    async def asked(self) -> asyncio.Task[raylet_pb2.RequestWorkerLeaseReply]:
        """A call that waits."""
        request: Any = SimpleNamespace(lease_id=b"a")
        call = asyncio.ensure_future(self.requests.request(request))
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
        node.answers.answer(b"a", GRANT)
        await ends(call)
        assert (node.returned, node.disposed, node.cancelled) == ([b"a"], [], [])

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
        node.answers.answer(b"a", GRANT)
        assert (await later).grant.lease_id == b"a"
        earlier, later = await node.asked(), await node.asked()
        await ends(earlier)
        assert (node.returned, node.cancelled) == ([], [])
        node.answers.answer(b"a", GRANT)
        assert (await later).HasField("grant")

    asyncio.run(scene())


def test_a_raylet_that_stops_grants_nothing_more() -> None:
    async def scene() -> None:
        node = Node()
        waiting = await node.asked()
        node.requests.close()
        for call in (waiting, await node.asked()):
            with pytest.raises(RpcError, match="stopping") as caught:
                await call
            assert caught.value.code is StatusCode.UNAVAILABLE

    asyncio.run(scene())


def test_no_more_leases_are_queued_than_the_limit_allows() -> None:
    async def scene() -> None:
        node = Node()
        node.leases.num_queued = 10
        with pytest.raises(RpcError, match="10 leases are queued here") as caught:
            await (await node.asked())
        assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(scene())


def test_a_worker_that_is_lost_and_lives_is_ended_and_only_it() -> None:
    async def scene() -> None:
        node = Node()
        dead = common_pb2.DeathCause(message="it is dead")
        node.causes = [dead]
        assert await node.requests.cause_of_loss(b"a", b"w" * 28) == dead and node.returned == []
        node.causes = [None, dead]
        assert await node.requests.cause_of_loss(b"b", b"w" * 28) == dead and node.disposed == [b"b"]
        node.causes = [None, None]
        assert await node.requests.cause_of_loss(b"c", b"w" * 28) == common_pb2.DeathCause()

    asyncio.run(scene())

"""Frees for other nodes: gathered, sent, tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ray_mono.common.background import BackgroundTasks
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.free_forwarder import FreeForwarder
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.seams import Fetch, Landing, NodeGone, PeerAddress, TransferFailed

FAR, DEAD = NodeKey(b"far"), NodeKey(b"dead")


class Peers:
    """Both doors: addresses, of which the first `unknown` questions have no answer since the GCS is away, and
    streams whose first `failures` messages are lost."""

    sent_bytes = received_bytes = 0

    def __init__(self, failures: int, unknown: int = 0) -> None:
        self.failures = failures
        self.unknown = unknown
        self.freed: list[list[ObjectKey]] = []
        self.attempts = 0

    async def find(self, node_id: NodeKey, timeout_s: float) -> PeerAddress:
        if node_id == DEAD:
            raise NodeGone("the node is dead")
        self.unknown -= 1
        if self.unknown >= 0:
            raise TransferFailed("the GCS cannot be reached")
        return PeerAddress(node_id.decode(), 1)

    async def free(self, peer: PeerAddress, object_ids: Sequence[ObjectKey]) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.attempts <= self.failures:
            raise TransferFailed("nobody answers")
        self.freed.append(list(object_ids))

    async def fetch(self, peer: PeerAddress, fetch: Fetch, landing: Landing) -> bool:
        raise NotImplementedError

    def drop(self, peer: PeerAddress) -> None: ...

    async def close(self) -> None: ...


def run(peers: Peers, scene: Callable[[FreeForwarder], Coroutine[Any, Any, None]], **changes: Any) -> None:
    """Runs the scene, and then until the forwarder has nothing more to do."""

    async def bounded() -> None:
        errors: list[BaseException] = []
        tasks = BackgroundTasks(lambda error, name: errors.append(error))
        settings = ObjectManagerConfig(capacity_bytes=1024, **changes)
        forwarder = FreeForwarder(peers, peers, settings, tasks.spawn)
        async with asyncio.timeout(30):
            await scene(forwarder)
            while len(tasks):
                await asyncio.sleep(0)
        assert not errors and forwarder.num_pending == 0

    asyncio.run(bounded())


def test_what_gathers_while_a_message_is_under_way_goes_with_the_next() -> None:
    peers = Peers(failures=0)

    async def scene(forwarder: FreeForwarder) -> None:
        for name in (b"a", b"b"):
            forwarder.free(FAR, ObjectKey(name))
        while not peers.attempts:
            await asyncio.sleep(0)
        for name in (b"c", b"d"):
            forwarder.free(FAR, ObjectKey(name))

    run(peers, scene)
    assert peers.freed == [[b"a", b"b"], [b"c", b"d"]]


def test_a_node_that_cannot_be_reached_or_found_is_asked_again_until_it_is_and_a_dead_one_never() -> None:
    peers = Peers(failures=2, unknown=2)

    async def scene(forwarder: FreeForwarder) -> None:
        forwarder.free(FAR, ObjectKey(b"a"))
        forwarder.free(DEAD, ObjectKey(b"a"))

    run(peers, scene)
    assert peers.freed == [[b"a"]] and peers.attempts == 3


def test_of_too_many_only_so_many_wait() -> None:
    peers = Peers(failures=0)

    async def scene(forwarder: FreeForwarder) -> None:
        for number in range(5):
            forwarder.free(FAR, ObjectKey(bytes([number])))

    run(peers, scene, frees_pending_max=3)
    assert [len(object_ids) for object_ids in peers.freed] == [3]

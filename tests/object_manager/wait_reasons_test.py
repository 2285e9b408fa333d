"""What a store says of objects that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ray_mono.common.explanation import WaitCode
from ray_mono.common.ids import object_name
from ray_mono.object_manager.get_queue import Wanted
from ray_mono.object_manager.keys import ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.node_store import NodeStore
from ray_mono.object_manager.wait_reasons import WaitReasons
from ray_mono.protobuf import common_pb2
from tests.object_manager.fakes import FakeCluster
from tests.object_manager.node_scene import config, put, room, run

FAR = NodeKey(b"far")
A, B, C = ObjectKey(b"a"), ObjectKey(b"b"), ObjectKey(b"c")
OWNER, READER = WorkerKey(b"owner"), WorkerKey(b"reader")


class Scene:
    """A store of 1,024 bytes, of which people ask."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.node: NodeStore = self.cluster.add("here", config())
        node = self.node
        self.reasons = WaitReasons(node.node_id, node.store, node.creates, node.gets, node.pulls)
        self.client = self.joined(OWNER)

    def joined(self, worker: WorkerKey) -> ClientKey:
        client = self.node.connect()
        self.reasons.joined(client, worker)
        return client

    def told(self, object_id: ObjectKey) -> common_pb2.WaitReason:
        return self.reasons.of(object_id)


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_create_without_room_is_told_with_whoever_owns_what_is_there() -> None:
    async def scene() -> None:
        s = Scene()
        await put(s.node, s.client, A, 1024)
        other = s.joined(READER)
        waits = await started(s.node.create(room(other, B, 256)))
        behind = await started(s.node.create(room(other, C, 128)))
        told = s.told(B)
        assert told.code == WaitCode.STORE_FULL and told.any and told.unblock.startswith("drop references")
        assert f"no room for the 256 bytes of {object_name(B)}: capacity 1024 bytes, used 1024" in told.text
        assert told.text.endswith(f"; process {OWNER.hex()[:8]} owns 1024 bytes")
        assert [subject.id for subject in told.waits_for] == [OWNER]
        assert f"{object_name(C)} (1 before it): " in s.told(C).text
        s.node.free([A])
        await asyncio.gather(waits, behind)
        assert s.told(B).code == WaitCode.STARTING and "is being written" in s.told(B).text

    run(scene())


def test_who_waits_for_room_is_no_holder_of_it() -> None:
    async def scene() -> None:
        s = Scene()
        await put(s.node, s.client, A, 1024)
        waits = await started(s.node.create(room(s.client, B, 256)))
        assert not s.told(B).waits_for and "process" not in s.told(B).text
        await ended(waits)

    run(scene())


def test_a_copy_that_is_read_is_told_with_its_reader_until_that_leaves() -> None:
    async def scene() -> None:
        s = Scene()
        far = s.cluster.add("far", config())
        await put(far, far.connect(), A, 1024)
        reader = s.joined(READER)
        await s.node.get(reader, [Wanted(A, (FAR,), 1024)], None, None)
        waits = await started(s.node.create(room(s.client, B, 256)))
        assert s.told(B).text.endswith(f"; process {READER.hex()[:8]} reads 1024 bytes")
        s.reasons.left(reader)
        s.node.disconnect(reader)
        await waits

    run(scene())


def test_a_copy_on_its_way_is_told_with_the_node_that_sends_it() -> None:
    async def scene() -> None:
        s = Scene()
        waits = await started(s.node.get(s.client, [Wanted(A, (FAR,), 100)], None, None))
        told = s.told(A)
        assert told.code == WaitCode.TRANSFER
        assert (
            f"is on its way from node {FAR.hex()} to node" in told.text and "has 0 bytes so far" in told.text
        )
        (there,) = told.waits_for
        assert (there.kind, there.id, there.at.node_id) == (common_pb2.WaitSubject.STORE, A, FAR)
        await ended(waits)

    run(scene())


def test_a_copy_without_room_is_told_with_its_size() -> None:
    async def scene() -> None:
        s = Scene()
        await put(s.node, s.client, B, 1024)
        waits = await started(s.node.get(s.client, [Wanted(A, (FAR,), 100)], None, None))
        told = s.told(A)
        assert told.code == WaitCode.STORE_FULL
        assert f"a copy of {object_name(A)} of node {FAR.hex()}, which has 100 bytes" in told.text
        assert [subject.id for subject in told.waits_for] == [OWNER]
        await ended(waits)

    run(scene())


def test_what_is_here_or_asked_for_by_nobody_is_said() -> None:
    async def scene() -> None:
        s = Scene()
        await put(s.node, s.client, A, 100)
        assert s.told(A).code == WaitCode.READY
        assert s.told(B).code == WaitCode.STARTING and "is asked for none" in s.told(B).text

    run(scene())

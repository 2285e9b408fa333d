"""What a raylet asks of its node's store."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.protobuf import common_pb2, object_manager_pb2, object_manager_rpc, raylet_pb2
from ray_mono.raylet.store_client import StoreClient
from ray_mono.rpc.surface import CallContext
from tests.simulation.world import World
from tests.waiting import until

HERE = b"1" * 28


class FakeStore(object_manager_rpc.ObjectStoreServiceServicer):
    """Has every object, and keeps to what it has said, as a Get is answered that is cancelled too late."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.num_asked = 0
        self.released: list[bytes] = []

    async def ConnectClient(
        self, request: object_manager_pb2.ConnectClientRequest, context: CallContext
    ) -> object_manager_pb2.ConnectClientReply:
        return object_manager_pb2.ConnectClientReply()

    async def Get(
        self, request: object_manager_pb2.GetRequest, context: CallContext
    ) -> object_manager_pb2.GetReply:
        self.num_asked += 1
        await self.may_answer.wait()
        return object_manager_pb2.GetReply(
            objects=[object_manager_pb2.ObjectFound(object_id=each.object_id) for each in request.objects]
        )

    async def Release(
        self, request: object_manager_pb2.ReleaseRequest, context: CallContext
    ) -> common_pb2.Empty:
        self.released += request.object_ids
        return common_pb2.Empty()


@pytest.mark.parametrize("answers", ["before it hears of that", "afterwards"])
def test_what_a_store_brought_for_a_drained_node_that_is_gone_is_let_go_of(answers: str) -> None:
    """Otherwise it would stay pinned for as long as the raylet runs."""

    async def script() -> None:
        store = FakeStore()
        raylet = world.network.start_process("here", "raylet")
        process = world.network.start_process("here", "store")
        handlers = object_manager_rpc.object_store_service_handlers(store)
        await process.spawn(world.transport(process).serve("unix:/s", handlers))
        client = StoreClient("/s", 1, world.transport(raylet), world.clock, 1.0)
        await raylet.spawn(client.connect(lambda reason: None))
        wanted = [raylet_pb2.ObjectToTake(object_id=HERE, size_bytes=1)]
        copying = raylet.spawn(client.copy(b"n" * 28, wanted))
        await until(lambda: store.num_asked == 1, 1.0)
        if answers == "before it hears of that":
            store.may_answer.set()
            await asyncio.sleep(0)
        copying.cancel()
        await asyncio.sleep(1)
        store.may_answer.set()
        await until(lambda: store.released == [HERE], 1.0)

    with World(seed=1) as world:
        world.network.add_host("here")
        world.run(script(), 60.0)

"""What a node learns of the others from the GCS, in virtual time: where they are, and who died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from ray_mono.object_manager.keys import NodeKey, WorkerKey
from ray_mono.object_manager.node_directory import NodeDirectory
from ray_mono.object_manager.seams import NodeGone, PeerAddress, TransferFailed
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceServicer, gcs_service_handlers
from ray_mono.rpc.surface import CallContext
from tests.simulation.world import World
from tests.waiting import until

LIMIT_S = 600.0
FAR = NodeKey(b"f" * 28)
OWNER = WorkerKey(b"o" * 28)


def node(node_id: bytes, dies_of: str = "") -> common_pb2.NodeInfo:
    info = common_pb2.NodeInfo(node_id=node_id, host="10.0.0.7", object_manager_port=70)
    if dies_of:
        info.state = common_pb2.NODE_DEAD
        info.death_cause.message = dies_of
    return info


class Gcs(GcsServiceServicer):
    """Tells what a scene has it tell; `hang_up` ends every subscription."""

    def __init__(self) -> None:
        self.subscribers: list[asyncio.Queue[gcs_pb2.PubMessage | None]] = []
        self.subscribed = asyncio.Event()
        self.workers: list[common_pb2.WorkerInfo] = []
        self.missing_dead_after_s = 0.0
        self.num_asked = 0
        self.has_heard = asyncio.Event()
        """What those who live have told. A head on an empty store does not say who is dead before."""
        self.has_heard.set()

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        queue: asyncio.Queue[gcs_pb2.PubMessage | None] = asyncio.Queue()
        self.subscribers.append(queue)
        self.subscribed.set()
        while (message := await queue.get()) is not None:
            yield message

    async def GetAllWorkers(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllWorkersReply:
        self.num_asked += 1
        await self.has_heard.wait()
        return gcs_pb2.GetAllWorkersReply(
            workers=self.workers, missing_dead_after_s=self.missing_dead_after_s
        )

    def tell(self, info: common_pb2.NodeInfo) -> None:
        news = gcs_pb2.NodeNews(nodes=[info])
        message = gcs_pb2.PubMessage(channel=gcs_pb2.NODE, payload=news.SerializeToString())
        self.subscribers[-1].put_nowait(message)

    def hang_up(self) -> None:
        self.subscribed.clear()
        self.subscribers[-1].put_nowait(None)


class Scene:
    """One directory that follows one GCS. An owner's object is here."""

    def __init__(self, gcs: Gcs, world: World, address: str) -> None:
        self.gcs = gcs
        self.dead_owners: list[WorkerKey] = []
        self.dead_nodes: list[PeerAddress] = []
        self.world = world
        self.process = world.network.start_process("here", "object manager")
        self.directory = NodeDirectory(
            world.transport(self.process),
            address,
            lambda: [OWNER],
            self.dead_owners.append,
            self.dead_nodes.append,
        )


def play(script: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def run(world: World) -> None:
        world.network.add_host("head")
        world.network.add_host("here")
        address = f"{world.network.ip_of('head')}:6379"
        gcs = Gcs()
        server = world.network.start_process("head", "gcs")
        await server.spawn(world.transport(server).serve(address, gcs_service_handlers(gcs)))
        scene = Scene(gcs, world, address)
        following = scene.process.spawn(scene.directory.run())
        await gcs.subscribed.wait()
        await scene.process.spawn(script(scene))
        following.cancel()

    with World(seed=1) as world:
        world.run(run(world), LIMIT_S)


def test_who_looks_for_a_node_waits_until_the_gcs_tells_of_it() -> None:
    async def script(scene: Scene) -> None:
        looking = asyncio.ensure_future(scene.directory.find(FAR, timeout_s=5))
        await asyncio.sleep(1)
        assert not looking.done()
        scene.gcs.tell(node(FAR))
        assert await looking == PeerAddress("10.0.0.7", 70)

    play(script)


def test_a_node_is_known_though_the_head_has_yet_to_hear_who_is_dead() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.hang_up()
        scene.gcs.has_heard.clear()
        await scene.gcs.subscribed.wait()
        scene.gcs.tell(node(FAR))
        assert await scene.directory.find(FAR, timeout_s=5) == PeerAddress("10.0.0.7", 70)
        scene.gcs.workers = [common_pb2.WorkerInfo(worker_id=OWNER, node_id=FAR)]
        scene.gcs.has_heard.set()
        await until(lambda: scene.dead_owners == [OWNER])

    play(script)


def test_where_nobody_is_missing_the_head_is_asked_once() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.workers = [common_pb2.WorkerInfo(worker_id=OWNER, node_id=FAR, is_alive=True)]
        scene.gcs.hang_up()
        await scene.gcs.subscribed.wait()
        num_asked = scene.gcs.num_asked
        await asyncio.sleep(100)
        assert scene.gcs.num_asked == num_asked + 1

    play(script)


def test_a_node_that_nobody_tells_of_is_given_up_after_the_time_that_the_caller_has() -> None:
    async def script(scene: Scene) -> None:
        with pytest.raises(NodeGone, match="did not tell of such a node within 5 s"):
            await scene.directory.find(FAR, timeout_s=5)

    play(script)


def test_a_node_may_be_known_to_a_gcs_that_cannot_be_reached() -> None:
    async def script(scene: Scene) -> None:
        scene.world.network.partition("head", "here")
        scene.gcs.hang_up()
        scene.directory.follow("10.9.9.9:1")
        await asyncio.sleep(1)
        with pytest.raises(TransferFailed, match="the GCS cannot be reached") as caught:
            await scene.directory.find(FAR, timeout_s=5)
        assert not isinstance(caught.value, NodeGone)

    play(script)


def test_a_dead_node_is_told_once_with_its_cause_and_its_workers_die_with_it() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.tell(node(FAR))
        await scene.directory.find(FAR, timeout_s=5)
        scene.gcs.workers = [common_pb2.WorkerInfo(worker_id=OWNER, node_id=FAR, is_alive=True)]
        for _ in range(2):
            scene.gcs.tell(node(FAR, dies_of="it fell silent"))
        await asyncio.sleep(1)
        with pytest.raises(TransferFailed, match="the node is dead .it fell silent."):
            await scene.directory.find(FAR, timeout_s=5)
        assert scene.dead_nodes == [PeerAddress("10.0.0.7", 70)]
        assert scene.dead_owners == [OWNER]

    play(script)


def test_of_very_many_dead_nodes_those_that_died_first_are_forgotten() -> None:
    async def script(scene: Scene) -> None:
        ids = [NodeKey(number.to_bytes(28, "big")) for number in range(1_001)]
        for node_id in ids:
            scene.gcs.tell(node(node_id, dies_of="it was let go"))
        for node_id in (ids[1], ids[-1]):
            with pytest.raises(TransferFailed, match="the node is dead"):
                await scene.directory.find(node_id, timeout_s=5)
        with pytest.raises(TransferFailed, match="did not tell of such a node"):
            await scene.directory.find(ids[0], timeout_s=5)

    play(script)


def test_a_subscription_that_ended_is_made_again_and_deaths_in_between_are_found() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.workers = [common_pb2.WorkerInfo(worker_id=OWNER, node_id=FAR, is_alive=False)]
        scene.gcs.hang_up()
        await scene.gcs.subscribed.wait()
        await asyncio.sleep(1)
        assert scene.dead_owners == [OWNER] and scene.directory.is_connected

    play(script)


def test_a_head_in_another_place_is_followed_though_the_old_one_holds_the_connection() -> None:
    async def script(scene: Scene) -> None:
        address = f"{scene.world.network.ip_of('head')}:7000"
        gcs = Gcs()
        other = scene.world.network.start_process("head", "another gcs")
        await other.spawn(scene.world.transport(other).serve(address, gcs_service_handlers(gcs)))
        scene.directory.follow(address)
        await gcs.subscribed.wait()
        gcs.tell(node(FAR))
        assert await scene.directory.find(FAR, timeout_s=5) == PeerAddress("10.0.0.7", 70)
        # Said again, it changes nothing.
        scene.directory.follow(address)
        await asyncio.sleep(5)
        assert len(gcs.subscribers) == 1

    play(script)


def test_an_owner_that_the_gcs_does_not_have_is_dead_when_it_was_missing_for_as_long_as_one_may_run() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.missing_dead_after_s = 65.0
        scene.gcs.tell(node(FAR, dies_of="its host burned"))
        await asyncio.sleep(60)
        assert scene.dead_owners == []
        await asyncio.sleep(40)
        assert scene.dead_owners == [OWNER]

    play(script)


def test_an_owner_whose_start_is_told_late_is_not_dead() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.missing_dead_after_s = 65.0
        scene.gcs.tell(node(FAR, dies_of="its host burned"))
        await asyncio.sleep(59)
        scene.gcs.workers = [common_pb2.WorkerInfo(worker_id=OWNER, node_id=b"n" * 28, is_alive=True)]
        await asyncio.sleep(300)
        assert scene.dead_owners == []

    play(script)


def test_an_owner_that_is_missing_lives_where_a_node_may_run_without_a_head_for_ever() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.tell(node(FAR, dies_of="its host burned"))
        await asyncio.sleep(500)
        assert scene.dead_owners == []

    play(script)


def test_a_gcs_that_is_new_has_its_time_to_hear_of_an_owner() -> None:
    async def script(scene: Scene) -> None:
        scene.gcs.missing_dead_after_s = 65.0
        scene.gcs.tell(node(FAR, dies_of="its host burned"))
        await asyncio.sleep(61)
        scene.gcs.hang_up()
        await scene.gcs.subscribed.wait()
        await asyncio.sleep(50)
        assert scene.dead_owners == []
        await asyncio.sleep(60)
        assert scene.dead_owners == [OWNER]

    play(script)

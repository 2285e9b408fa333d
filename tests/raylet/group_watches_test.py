"""Leases that wait for placement groups hear of the ends of these, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.effects import RejectionKind
from ray_mono.raylet.group_watches import GroupWatches
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.raylet.scheduling.lease_scene import Scene, units
from tests.simulation.world import World
from tests.waiting import until

G, H = b"g" * 18, b"h" * 18
LIMIT_S = 600.0
GONE = RejectionKind.PLACEMENT_GROUP_REMOVED

Row = common_pb2.PlacementGroupInfo


class Gcs:
    """What GcsClient says. It answers what a test tells it to."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, int]] = []
        self.num_open = 0
        self.registered = asyncio.Event()
        self.registered.set()
        self._answers: dict[bytes, asyncio.Future[Row]] = {}

    async def until_registered(self) -> None:
        await self.registered.wait()

    async def next_of_group(self, group_id: bytes, after_version: int) -> Row:
        self.calls.append((group_id, after_version))
        self.num_open += 1
        self._answers[group_id] = asyncio.get_running_loop().create_future()
        try:
            return await self._answers[group_id]
        finally:
            self.num_open -= 1

    def says(self, state: common_pb2.PlacementGroupState, version: int, group_id: bytes = G) -> None:
        self._answers[group_id].set_result(Row(state=state, version=version))

    def fails(self, code: StatusCode, group_id: bytes = G) -> None:
        self._answers[group_id].set_exception(RpcError(code, "because"))


class Node:
    """A node without bundles, so that what asks for a group waits."""

    def __init__(self, world: World) -> None:
        self.scene = scene = Scene(units(CPU=1))
        self.gcs = Gcs()
        self.failures: list[BaseException] = []
        effects: Any = SimpleNamespace(run=scene.take)
        gcs: Any = self.gcs
        self.tasks = BackgroundTasks(lambda error, name: self.failures.append(error))
        self.watches = GroupWatches(world.clock, scene.manager, effects, gcs, self.tasks)

    async def ask(self, name: str, group_id: bytes = G) -> None:
        strategy = Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group_id)
        self.scene.ask(name, strategy=strategy, resources=asked_for_in(units(CPU=1), group_id, ANY_BUNDLE))
        await self.look()

    async def look(self) -> None:
        self.watches.look()
        await asyncio.sleep(0.001)


def play(script: Callable[[Node], Awaitable[None]]) -> None:
    async def run(world: World) -> None:
        node = Node(world)
        await script(node)
        assert not node.failures
        await node.tasks.close()

    with World(seed=1) as world:
        world.run(run(world), LIMIT_S)


def test_who_waits_for_a_group_is_refused_when_it_is_removed() -> None:
    async def script(node: Node) -> None:
        await node.ask("1")
        await node.ask("2")
        assert node.gcs.calls == [(G, 0)]
        node.gcs.says(common_pb2.PLACEMENT_GROUP_PENDING, 3)
        await until(lambda: len(node.gcs.calls) == 2)
        assert node.gcs.calls[1] == (G, 3) and not node.scene.rejected
        node.gcs.says(common_pb2.PLACEMENT_GROUP_REMOVED, 4)
        await until(lambda: node.scene.rejected == {"1": GONE, "2": GONE})
        assert not len(node.tasks)

    play(script)


def test_who_waits_for_a_group_that_never_was_is_refused_and_who_asks_later_too() -> None:
    async def script(node: Node) -> None:
        for name in ("1", "2"):
            await node.ask(name)
            node.gcs.fails(StatusCode.NOT_FOUND)
            await until(lambda name=name: name in node.scene.rejected)
        assert node.gcs.calls == [(G, 0)] * 2

    play(script)


def test_each_group_is_watched_once_and_only_while_something_waits_for_it() -> None:
    async def script(node: Node) -> None:
        node.scene.ask("outside")
        node.scene.ask("waits outside")
        await node.look()
        assert not node.gcs.calls
        await node.ask("in g", G)
        await node.ask("in h", H)
        assert node.gcs.num_open == 2
        node.scene.do(lambda now_s: node.scene.manager.cancel(b"in g", now_s))
        await node.look()
        assert node.gcs.num_open == len(node.tasks) == 1
        node.gcs.says(common_pb2.PLACEMENT_GROUP_REMOVED, 1, H)
        await until(lambda: node.scene.rejected.get("in h") == GONE)
        await node.ask("in g again", G)
        assert node.gcs.calls == [(G, 0), (H, 0), (G, 0)]

    play(script)


def test_a_gcs_that_was_lost_is_asked_again_when_it_is_back_and_versions_count_anew() -> None:
    async def script(node: Node) -> None:
        await node.ask("1")
        node.gcs.says(common_pb2.PLACEMENT_GROUP_PENDING, 7)
        await until(lambda: len(node.gcs.calls) == 2)
        node.gcs.registered.clear()
        node.gcs.fails(StatusCode.UNAVAILABLE)
        await asyncio.sleep(100)
        assert len(node.gcs.calls) == 2 and not node.scene.rejected
        node.gcs.registered.set()
        await until(lambda: len(node.gcs.calls) == 3)
        assert node.gcs.calls[2] == (G, 0)
        node.gcs.says(common_pb2.PLACEMENT_GROUP_REMOVED, 2)
        await until(lambda: node.scene.rejected == {"1": GONE})

    play(script)


def test_a_gcs_that_refuses_is_not_asked_without_pauses() -> None:
    async def script(node: Node) -> None:
        await node.ask("1")
        for number in range(5):
            node.gcs.fails(StatusCode.UNAVAILABLE)
            await until(lambda number=number: len(node.gcs.calls) == number + 2)
        assert asyncio.get_running_loop().time() > 0.1 + 0.2 + 0.4 + 0.8

    play(script)

"""A node is drained, in virtual time: when that is refused, when it ends, and what holds of two requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.drain import Drain, joined
from tests.raylet.scheduling.lease_scene import HERE, Scene, units
from tests.simulation.world import World

LIMIT_S = 600.0

IDLE = common_pb2.DRAIN_NODE_REASON_IDLE_TERMINATION
PREEMPTION = common_pb2.DRAIN_NODE_REASON_PREEMPTION


@pytest.mark.parametrize(
    ("first_ms", "second_ms", "left_ms"), [(0, 0, 0), (0, 7, 7), (7, 0, 7), (7, 5, 5), (5, 7, 5)]
)
def test_the_earlier_deadline_holds_and_none_is_later_than_all(
    first_ms: int, second_ms: int, left_ms: int
) -> None:
    first = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="a", deadline_timestamp_ms=first_ms)
    second = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="b", deadline_timestamp_ms=second_ms)
    assert joined(first, second) == common_pb2.NodeDrain(
        reason=PREEMPTION, reason_message="a", deadline_timestamp_ms=left_ms
    )


def test_a_preemption_outweighs_an_idle_termination_whichever_came_first() -> None:
    idle = common_pb2.NodeDrain(reason=IDLE, reason_message="idle")
    preemption = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="spot")
    assert joined(idle, preemption) == joined(preemption, idle) == preemption


class Node:
    """One CPU, and what lies in its store."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.scene = scene = Scene(units(CPU=1))
        self.ends: list[str] = []
        self.killed: list[common_pb2.DeathCause] = []
        self.num_primaries = 0
        self.on_look: Callable[[], None] = lambda: None
        self.clients = Clients()
        effects: Any = SimpleNamespace(run=scene.take)
        evacuation: Any = SimpleNamespace(round=self._round, what_is_here=self._what_is_here)
        processes: Any = SimpleNamespace(kill=self._kill)
        self.drain = Drain(
            HERE,
            world.clock,
            self.clients,
            scene.pool,
            scene.manager,
            processes,
            effects,
            evacuation,
            self.ends.append,
        )

    def connect(self, worker_id: bytes, is_driver: bool) -> None:
        client: Any = SimpleNamespace(worker_id=worker_id, is_driver=is_driver)
        self.clients.add(client)

    async def request(
        self, reason: common_pb2.DrainNodeReason = PREEMPTION, in_s: float = 0
    ) -> raylet_pb2.DrainRayletReply:
        deadline_ms = int((self.world.clock.wall_s() + in_s) * 1000) if in_s else 0
        return await self.drain.request(
            common_pb2.NodeDrain(reason=reason, reason_message="spot", deadline_timestamp_ms=deadline_ms)
        )

    async def _round(self) -> int:
        return self.num_primaries

    async def _what_is_here(self) -> str:
        self.on_look()
        return "its store has primary copies" if self.num_primaries else ""

    def _kill(self, worker_id: bytes, force: bool, cause: common_pb2.DeathCause) -> None:
        self.killed.append(cause)
        self.clients.remove(worker_id)


def play(script: Callable[[Node], Awaitable[None]]) -> None:
    async def run(world: World) -> None:
        node = Node(world)
        running = asyncio.ensure_future(node.drain.run())
        await script(node)
        running.cancel()

    with World(seed=1) as world:
        world.run(run(world), LIMIT_S)


@pytest.mark.parametrize(
    ("used", "told"),
    [
        ("bundle", "bundles of placement groups are held"),
        ("lease", "workers are leased"),
        ("driver", "a driver"),
        ("object", "its store has primary copies"),
    ],
)
def test_a_node_in_use_is_preempted_and_not_terminated_as_idle(used: str, told: str) -> None:
    async def script(node: Node) -> None:
        if used == "lease":
            node.scene.ask("task")
        elif used == "bundle":
            node.scene.do(
                lambda now_s: node.scene.manager.prepare_bundles(b"g" * 18, {0: units(CPU=1)}, now_s)[1]
            )
        elif used == "driver":
            node.connect(b"d", is_driver=True)
        else:
            node.num_primaries = 1
        refused = await node.request(IDLE)
        assert not refused.is_accepted and told in refused.rejection_reason_message
        assert node.drain.drain is None
        assert (await node.request()).is_accepted
        assert node.drain.drain is not None
        assert (await node.request(IDLE)).drain.reason == PREEMPTION

    play(script)


def test_an_idle_node_ends_at_once() -> None:
    async def script(node: Node) -> None:
        assert (await node.request(IDLE, in_s=3600)).is_accepted
        await asyncio.sleep(1)
        assert node.ends == ["it was drained (DRAIN_NODE_REASON_IDLE_TERMINATION): spot"]

    play(script)


def test_it_ends_when_its_tasks_are_over_and_its_values_are_elsewhere() -> None:
    async def script(node: Node) -> None:
        node.scene.ask("task")
        node.num_primaries = 1
        await node.request()
        await asyncio.sleep(10)
        node.scene.worker_dies("task")
        await asyncio.sleep(10)
        assert not node.ends
        node.num_primaries = 0
        await asyncio.sleep(1)
        assert len(node.ends) == 1

    play(script)


def test_a_deadline_that_has_passed_is_one_that_has_come() -> None:
    async def script(node: Node) -> None:
        node.scene.ask("task")
        node.connect(b"w", is_driver=False)
        assert (await node.request(in_s=-3600)).is_accepted
        await asyncio.sleep(5)
        assert node.killed and node.ends

    play(script)


def test_what_waits_there_and_runs_nowhere_else_does_not_keep_the_node() -> None:
    async def script(node: Node) -> None:
        node.scene.ask("runs")
        node.scene.ask("waits")
        await node.request()
        node.scene.worker_dies("runs")
        await asyncio.sleep(10)
        assert node.ends

    play(script)


def test_what_begins_while_an_idle_node_is_looked_at_is_not_ended() -> None:
    async def script(node: Node) -> None:
        node.on_look = lambda: node.scene.ask("task")
        assert not (await node.request(IDLE)).is_accepted

    play(script)


def test_at_the_deadline_its_workers_are_killed_and_hear_why() -> None:
    async def script(node: Node) -> None:
        node.scene.ask("task")
        node.connect(b"w", is_driver=False)
        node.connect(b"d", is_driver=True)
        await node.request(in_s=3600)
        await node.request(in_s=60)
        await asyncio.sleep(59)
        assert not node.killed
        await asyncio.sleep(10)
        [cause] = node.killed
        assert cause.is_preempted and "spot; its deadline had come" in cause.message
        assert "its deadline had come" in node.ends[0]

    play(script)

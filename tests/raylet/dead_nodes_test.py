"""Who asks hears of every node that is dead, once."""

from __future__ import annotations

import asyncio

from ray_mono.protobuf import common_pb2
from ray_mono.raylet import dead_nodes
from ray_mono.raylet.dead_nodes import DeadNodes


def node(number: int) -> common_pb2.NodeInfo:
    return common_pb2.NodeInfo(node_id=b"%d" % number, host="h", node_manager_port=number)


def test_those_that_are_dead_come_first_and_then_each_that_dies() -> None:
    async def run() -> None:
        dead = DeadNodes()
        dead.died(node(1))
        stream = dead.stream()
        first = await anext(stream)
        assert (first.node_id, first.host, first.port) == (b"1", "h", 1)
        dead.died(node(1))
        dead.died(node(2))
        assert (await anext(stream)).node_id == b"2"
        await stream.aclose()
        dead.died(node(3))

    asyncio.run(run())


def test_only_so_many_are_kept() -> None:
    async def run() -> None:
        dead = DeadNodes()
        for number in range(dead_nodes.KEPT_MAX + 1):
            dead.died(node(number))
        assert (await anext(dead.stream())).node_id == b"1"

    asyncio.run(run())

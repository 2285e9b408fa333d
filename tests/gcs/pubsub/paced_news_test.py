"""What nodes hear of each other's resources, and how often, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ray_mono.common.background import BackgroundTasks
from ray_mono.gcs.pubsub.paced_news import BYTES_MAX, PERIOD_S, in_parts, resource_news
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.simulation.loop import new_loop


class Scene:
    """Some that listen to what nodes report."""

    def __init__(self, num_listeners: int) -> None:
        self.subscriptions = Subscriptions(10_000)
        self.news = resource_news(BackgroundTasks(self._failed), self.subscriptions)
        self.heard: list[list[tuple[float, list[tuple[bytes, int]]]]] = [[] for _ in range(num_listeners)]
        """Of each: when it heard something, and of which nodes which versions."""
        self.size_bytes = 0

    def _failed(self, error: BaseException, name: str) -> None:
        raise AssertionError(name) from error

    async def listen(self, number: int) -> None:
        filters = [(gcs_pb2.NODE_RESOURCES, [])]
        async for message in self.subscriptions.stream(filters, list, object()):  # type: ignore[arg-type]
            nodes = gcs_pb2.ResourceNews.FromString(message.payload).nodes
            told = [(each.node_id, each.version) for each in nodes]
            self.size_bytes += len(message.payload)
            self.heard[number].append((round(asyncio.get_running_loop().time(), 6), told))

    def report(self, number: int, version: int, available: common_pb2.ResourceSet | None = None) -> None:
        node_id = b"%04d" % number
        self.news.add(
            node_id, common_pb2.NodeResources(node_id=node_id, version=version, available=available)
        )


def play(num_listeners: int, script: Callable[[Scene], Awaitable[None]]) -> Scene:
    scene = Scene(num_listeners)

    async def run() -> None:
        listeners = [asyncio.ensure_future(scene.listen(number)) for number in range(num_listeners)]
        await asyncio.sleep(0)
        await script(scene)
        for each in listeners:
            each.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)

    loop = new_loop()
    try:
        loop.run_until_complete(loop.create_task(run()), 1_000.0)
    finally:
        loop.end()
    return scene


def test_one_report_leaves_at_once_and_those_after_it_together() -> None:
    async def script(scene: Scene) -> None:
        for number in range(3):
            scene.report(number, 1)
            await asyncio.sleep(PERIOD_S / 10)
        scene.report(1, 2)  # the latest is what counts
        await asyncio.sleep(10 * PERIOD_S)
        scene.report(0, 2)
        await asyncio.sleep(PERIOD_S)

    [heard] = play(1, script).heard
    assert heard == [
        (0.0, [(b"0000", 1)]),
        (PERIOD_S, [(b"0001", 2), (b"0002", 1)]),
        (round(PERIOD_S * 10.3, 6), [(b"0000", 2)]),
    ]


def test_all_nodes_are_heard_of_in_turn_where_more_report_than_a_message_takes() -> None:
    num_nodes, rounds = 4_000, 40

    async def script(scene: Scene) -> None:
        for version in range(rounds):
            for number in range(num_nodes):
                scene.report(number, version)
            await asyncio.sleep(PERIOD_S)

    heard = [{node_id for node_id, _ in told} for _, told in play(1, script).heard[0]]
    assert all(len(told) < num_nodes for told in heard[1:])
    for first in range(1, rounds - 3):
        assert len(set().union(*heard[first : first + 3])) == num_nodes


@pytest.mark.parametrize("num_nodes", [10, 100, 1_000])
@pytest.mark.parametrize("num_names", [1, 300])
def test_what_a_node_hears_in_a_second_does_not_grow_with_the_cluster(num_nodes: int, num_names: int) -> None:
    """Every node reports twenty times in it, some of resources with many names."""
    available = common_pb2.ResourceSet(amounts={f"CPU_group_{number}": 1 for number in range(num_names)})

    async def script(scene: Scene) -> None:
        for version in range(20):
            for number in range(num_nodes):
                scene.report(number, version, available)
            await asyncio.sleep(PERIOD_S)

    scene = play(1, script)
    assert len(scene.heard[0]) <= 20 + 1
    assert scene.size_bytes <= (20 + 1) * (1.2 * BYTES_MAX + available.ByteSize())
    assert all(told for _, told in scene.heard[0])


def test_what_the_head_sends_in_a_second_is_bounded_where_thousands_listen() -> None:
    async def script(scene: Scene) -> None:
        for version in range(20):
            scene.report(version, 1)
            await asyncio.sleep(PERIOD_S)

    scene = play(2_000, script)
    assert sum(map(len, scene.heard)) <= 10_000 + 2_000 and all(scene.heard)


def test_a_row_that_is_not_true_any_more_is_not_told() -> None:
    """Who subscribes meanwhile has the later one already."""

    async def script(scene: Scene) -> None:
        scene.report(1, version=1)
        await asyncio.sleep(PERIOD_S / 2)
        scene.report(2, version=1)
        scene.report(3, version=1)
        scene.news.forget(b"0002")
        await asyncio.sleep(PERIOD_S)
        scene.report(2, version=2)
        await asyncio.sleep(PERIOD_S)

    scene = play(1, script)
    assert [told for _, told in scene.heard[0]] == [[(b"0001", 1)], [(b"0003", 1)], [(b"0002", 2)]]


def test_many_rows_come_in_parts_that_fit_in_a_message() -> None:
    rows = [common_pb2.NodeInfo(node_id=b"%05d" % number, host="h" * 90) for number in range(1_000)]
    parts = list(in_parts(rows))
    assert [row for part in parts for row in part] == rows
    sizes_bytes = [sum(row.ByteSize() for row in part) for part in parts]
    assert max(sizes_bytes) <= BYTES_MAX < min(sizes_bytes[:-1]) + rows[0].ByteSize()
    assert list(in_parts([])) == []
    large = [common_pb2.NodeInfo(host="h" * BYTES_MAX)] * 2
    assert list(in_parts(large)) == [large[:1], large[1:]]

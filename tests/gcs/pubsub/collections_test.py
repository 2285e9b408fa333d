"""Task events that workers still hold are collected for whoever asks for them. In virtual time."""

from __future__ import annotations

import asyncio
from typing import cast

from ray_mono.gcs.pubsub.collections import Collections
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import Connection
from tests.gcs.scene import GcsScene, play
from tests.simulation.process import SimProcess

ANSWERS, IS_STOPPED, ENDS, ANSWERS_AND_ENDS = range(4)


async def hold(gcs: gcs_rpc.GcsServiceAsyncStub, process: SimProcess, worker: int, does: int) -> None:
    """A worker that holds one event, and what it does some time after it was asked."""
    wanted = gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(channel=gcs_pb2.COLLECT_EVENTS)])
    async for message in gcs.Subscribe(wanted):
        await asyncio.sleep(worker / 10)
        if does in (ANSWERS, ANSWERS_AND_ENDS):
            events = gcs_pb2.TaskEvents(worker_id=bytes([worker]), names=["f"], name_indices=[0])
            events.collection = message.payload
            await gcs.AddTaskEvents(events)
        if does in (ENDS, ANSWERS_AND_ENDS):
            process.kill("it ended")


async def ask(scene: GcsScene, gcs: gcs_rpc.GcsServiceAsyncStub, *what_they_do: int) -> tuple[int, float]:
    """(how many workers' events came, how many seconds it took) with a worker for each."""
    workers = []
    for number, does in enumerate(what_they_do):
        connection, process = await scene.connect(), scene.client_process
        assert process is not None
        workers.append(asyncio.create_task(hold(connection, process, number, does)))
    await asyncio.sleep(0.1)
    began_s = asyncio.get_running_loop().time()
    reply = await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest(collect=True))
    took_s = asyncio.get_running_loop().time() - began_s
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    await asyncio.sleep(0.1)
    return len(reply.batches), took_s


def test_what_every_worker_still_holds_is_in_the_answer() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        assert (await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest(collect=True))).batches == []
        num_batches, took_s = await ask(scene, gcs, ANSWERS, ANSWERS, ANSWERS)
        assert num_batches == 3 and took_s < 0.5
        # Answers of no event are no batches.
        await gcs.AddTaskEvents(gcs_pb2.TaskEvents(worker_id=b"\7", collection=b"1"))
        assert len((await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest())).batches) == 3

    play(script)


def test_a_worker_that_ends_is_not_waited_for_and_one_that_has_answered_stands_for_no_other() -> None:
    async def script(scene: GcsScene) -> None:
        num_batches, took_s = await ask(scene, await scene.start_gcs(), ANSWERS_AND_ENDS, ENDS, ANSWERS)
        assert num_batches == 2 and took_s < 0.5

    play(script)


def test_a_worker_that_cannot_answer_is_not_waited_for_for_long() -> None:
    async def script(scene: GcsScene) -> None:
        num_batches, took_s = await ask(scene, await scene.start_gcs(), IS_STOPPED, ANSWERS, ANSWERS)
        assert num_batches == 2 and 1 < took_s < 5

    play(script)


def test_the_last_words_of_one_worker_are_asked_of_that_one_and_not_awaited_for_long() -> None:
    async def script() -> None:
        subscriptions = Subscriptions(10)
        collections = Collections(subscriptions)
        connections = {key: cast("Connection", object()) for key in (b"dying", b"other")}
        heard: dict[bytes, list[bytes]] = {key: [] for key in connections}

        async def listen(key: bytes) -> None:
            async for message in subscriptions.stream(
                [(gcs_pb2.COLLECT_EVENTS, [key])], list, connections[key]
            ):
                heard[key].append(message.payload)
                if len(heard[key]) == 1:  # later it is deaf
                    collections.answered(message.payload, connections[key])

        listeners = [asyncio.create_task(listen(key)) for key in connections]
        await asyncio.sleep(0)
        for number in (1, 2):
            await collections.last_words(b"dying")
            assert (len(heard[b"dying"]), len(heard[b"other"])) == (number, 0)
        for listener in listeners:
            listener.cancel()
        await asyncio.wait(listeners)

    asyncio.run(script())

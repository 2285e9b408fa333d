"""Task events that workers still hold are collected for whoever asks for them. In virtual time."""

from __future__ import annotations

import asyncio

from ray_mono.protobuf import gcs_pb2, gcs_rpc
from tests.gcs.scene import GcsScene, play

NUM_WORKERS = 3


async def hold(gcs: gcs_rpc.GcsServiceAsyncStub, worker: int, is_stopped: bool) -> None:
    """A worker that holds one event, and sends it when it is asked, unless it is stopped."""
    wanted = gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(channel=gcs_pb2.COLLECT_EVENTS)])
    async for message in gcs.Subscribe(wanted):
        if not is_stopped:
            await asyncio.sleep(worker / 10)
            events = gcs_pb2.TaskEvents(worker_id=bytes([worker]), names=["f"], name_indices=[0])
            events.collection = message.payload
            await gcs.AddTaskEvents(events)


async def ask(gcs: gcs_rpc.GcsServiceAsyncStub, stopped: int) -> tuple[int, float]:
    """(how many workers' events came, how many seconds it took) where the first `stopped` workers do not answer."""
    workers = [asyncio.create_task(hold(gcs, number, number < stopped)) for number in range(NUM_WORKERS)]
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
        num_batches, took_s = await ask(gcs, stopped=0)
        assert num_batches == NUM_WORKERS and took_s < 0.5
        # Answers of no event are no batches.
        await gcs.AddTaskEvents(gcs_pb2.TaskEvents(worker_id=b"\7", collection=b"1"))
        assert len((await gcs.GetTaskEvents(gcs_pb2.GetTaskEventsRequest())).batches) == NUM_WORKERS

    play(script)


def test_a_worker_that_cannot_answer_is_not_waited_for_for_long() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        num_batches, took_s = await ask(gcs, stopped=1)
        assert num_batches == NUM_WORKERS - 1 and 1 < took_s < 5

    play(script)

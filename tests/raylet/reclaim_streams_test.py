"""Who is told that others wait for his leases."""

from __future__ import annotations

import asyncio

from ray_mono.raylet.effects import ReclaimLease
from ray_mono.raylet.reclaim_streams import ReclaimStreams

HOLDER = 1


def test_what_gathered_is_told_at_once_to_the_holder_who_listens_and_to_nobody_else() -> None:
    async def scene() -> None:
        streams = ReclaimStreams()
        streams.tell(ReclaimLease(b"early", HOLDER))
        stream = streams.stream(HOLDER)
        told = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        assert streams.listens(HOLDER) and not streams.listens(2)
        for lease_id in (b"a", b"b"):
            streams.tell(ReclaimLease(lease_id, HOLDER))
        streams.tell(ReclaimLease(b"another's", 2))
        assert list((await told).lease_ids) == [b"a", b"b"]
        await stream.aclose()
        assert not streams.listens(HOLDER)

    asyncio.run(scene())


def test_a_stream_that_was_replaced_takes_nothing_from_the_next_when_it_ends() -> None:
    async def scene() -> None:
        streams = ReclaimStreams()
        first, second = streams.stream(HOLDER), streams.stream(HOLDER)
        waits = [asyncio.ensure_future(anext(stream)) for stream in (first, second)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.wait(waits[:1])
        assert streams.listens(HOLDER)
        streams.tell(ReclaimLease(b"a", HOLDER))
        assert list((await waits[1]).lease_ids) == [b"a"]
        await second.aclose()

    asyncio.run(scene())

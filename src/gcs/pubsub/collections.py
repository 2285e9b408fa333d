"""Has others send what they still hold: workers their task events, nodes the state of their resources.

What happened before the question is then in the answer.

    collect ──number──► everybody who listens on the channel ──their report(number), or their end──► done

Who cannot answer (its code holds the interpreter, its process is stopped) is not waited for longer than
COLLECT_TIMEOUT_S; before a worker is killed, not longer than LAST_WORDS_S.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.protobuf import gcs_pb2
from ray_mono.rpc.surface import Connection

COLLECT_TIMEOUT_S = 2.0
LAST_WORDS_S = 0.1


class Collections:
    """Those that are under way."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        subscriptions.on_end(self._ended)
        self._next_number = 0
        # Who has not answered, once for each subscription, and what the last one sets.
        self._awaited: dict[bytes, tuple[Counter[Connection], asyncio.Event]] = {}

    async def last_words(self, worker_id: bytes) -> None:
        """What a worker ran that is about to be killed."""
        await self.collect(gcs_pb2.COLLECT_EVENTS, worker_id, LAST_WORDS_S)

    async def collect(
        self, channel: gcs_pb2.Channel, key: bytes = b"", timeout_s: float = COLLECT_TIMEOUT_S
    ) -> None:
        """Returns when everybody has answered who listens for the key (empty: for any key), or is gone."""
        self._next_number += 1
        number = str(self._next_number).encode()
        reached = self._subscriptions.publish(channel, key, number)
        if not reached:
            return
        done = asyncio.Event()
        self._awaited[number] = (Counter(reached), done)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), timeout_s)
        finally:
            del self._awaited[number]

    def answered(self, number: bytes, connection: Connection) -> None:
        """By one of them. Nothing happens where nobody waits for it."""
        if number in self._awaited:
            left, done = self._awaited[number]
            left[connection] -= 1
            if left[connection] <= 0:
                del left[connection]
            if not left:
                done.set()

    def _ended(self, connection: Connection) -> None:
        for number in self._awaited:
            self.answered(number, connection)

"""The shell around `publisher.Publisher`: wakes subscribers, and streams to each what Subscribe answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import cast

from ray_mono.gcs.pubsub.publisher import Message, Publisher, Subscription
from ray_mono.protobuf import gcs_pb2
from ray_mono.rpc.surface import Connection, RpcError, StatusCode

LOSSY_CHANNELS = (gcs_pb2.LOG, gcs_pb2.NODE_RESOURCES)


class Subscriptions:
    """All streams of messages to subscribers."""

    def __init__(self, queue_max: int) -> None:
        self._publisher = Publisher(queue_max, LOSSY_CHANNELS)
        self._queue_max = queue_max
        self._wake_ups: dict[int, asyncio.Event] = {}
        self._connections: dict[int, Connection] = {}
        self._on_end: Callable[[Connection], None] = lambda connection: None

    def on_end(self, callback: Callable[[Connection], None]) -> None:
        """callback(connection) runs when a subscription of this connection is over."""
        self._on_end = callback

    def publish(self, channel: gcs_pb2.Channel, key: bytes, payload: bytes) -> list[Connection]:
        """Returns the connection of each subscription that the message reached."""
        reached = self._publisher.publish(Message(channel, key, payload))
        for subscriber_id in reached:
            self._wake_ups[subscriber_id].set()
        return [self._connections[subscriber_id] for subscriber_id in reached]

    def reach(self, channel: gcs_pb2.Channel, key: bytes) -> tuple[int, int]:
        """(how many subscriptions want messages of this key, how many wait in the longest of the queues)."""
        return self._publisher.reach(channel, key)

    def expect(self, channel: gcs_pb2.Channel, key: bytes) -> None:
        """See Publisher."""
        self._publisher.expect(channel, key)

    def give_up_expected(self) -> None:
        self._publisher.give_up_expected()

    def all(self) -> list[Subscription]:
        """For a dump of the state."""
        return self._publisher.subscriptions()

    async def stream(
        self,
        filters: Sequence[tuple[gcs_pb2.Channel, Sequence[bytes]]],
        rows: Callable[[], list[Message]],
        connection: Connection,
    ) -> AsyncGenerator[gcs_pb2.PubMessage, None]:
        """rows() first, then every change since, until the caller leaves.

        Raises RpcError RESOURCE_EXHAUSTED for one who reads too slowly.
        """
        subscriber_id = self._publisher.subscribe(filters)
        wake_up = self._wake_ups[subscriber_id] = asyncio.Event()
        self._connections[subscriber_id] = connection
        try:
            # In the same turn as the subscription: no change falls between.
            messages = [*rows(), *self._publisher.take(subscriber_id)]
            while True:
                for message in messages:
                    yield to_proto(message)
                overflowed_on = self._publisher.overflowed_on(subscriber_id)
                if overflowed_on is not None:
                    channel = gcs_pb2.Channel.Name(overflowed_on)
                    raise RpcError(
                        StatusCode.RESOURCE_EXHAUSTED,
                        f"more than {self._queue_max} messages wait for this subscriber, the next on channel "
                        f"{channel}: subscribe again, and begin from the rows",
                    )
                await wake_up.wait()
                wake_up.clear()
                messages = self._publisher.take(subscriber_id)
        finally:
            self._publisher.unsubscribe(subscriber_id)
            del self._wake_ups[subscriber_id], self._connections[subscriber_id]
            self._on_end(connection)


def to_proto(message: Message) -> gcs_pb2.PubMessage:
    return gcs_pb2.PubMessage(
        channel=cast("gcs_pb2.Channel", message.channel), key=message.key, payload=message.payload
    )

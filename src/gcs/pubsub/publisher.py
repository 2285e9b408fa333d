"""The machine behind Subscribe: who wants what, and a bounded queue towards each.

It knows channels as numbers and payloads as bytes. A subscriber that does not read fills its queue. Some
channels may lose messages, since the next one replaces them (log lines, resource reports): there the oldest
goes. On any other channel a gap would be a lie about the cluster. So the subscription is ended, and the
subscriber begins again from the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    channel: int
    key: bytes
    payload: bytes


@dataclass
class Subscription:
    """One subscriber's wishes and queue. Belongs to Publisher."""

    subscriber_id: int
    wanted: Mapping[int, frozenset[bytes]]
    """Channel → keys; no keys: all."""
    queue: deque[Message] = field(default_factory=deque)
    dropped: int = 0
    overflowed_on: int | None = None
    """The channel whose message found no room: the subscription is over."""


class Publisher:
    """All subscriptions. Queues hold at most queue_max messages."""

    def __init__(self, queue_max: int, lossy_channels: Sequence[int]) -> None:
        self._queue_max = queue_max
        self._lossy = frozenset(lossy_channels)
        self._subscriptions: dict[int, Subscription] = {}
        self._expected: list[Subscription] = []
        self._next_id = 0

    def subscribe(self, filters: Sequence[tuple[int, Sequence[bytes]]]) -> int:
        """Subscribes to channels, each with the keys wanted (none: every key). Returns a number."""
        wanted: dict[int, frozenset[bytes]] = {}
        for channel, keys in filters:
            if channel in wanted and wanted[channel] and keys:
                wanted[channel] |= frozenset(keys)
            else:
                wanted[channel] = frozenset(keys) if channel not in wanted else frozenset()
        self._next_id += 1
        subscription = self._subscriptions[self._next_id] = Subscription(self._next_id, wanted)
        self._take_expected(subscription)
        return self._next_id

    def expect(self, channel: int, key: bytes) -> None:
        """Somebody subscribed to this at an earlier GCS, and will again: what comes first is kept for him."""
        self._expected.append(Subscription(0, {channel: frozenset([key])}))

    def give_up_expected(self) -> None:
        """Who has not come back by now will not."""
        self._expected.clear()

    def _take_expected(self, subscription: Subscription) -> None:
        for expected in list(self._expected):
            [(channel, keys)] = expected.wanted.items()
            wanted = subscription.wanted.get(channel)
            if wanted is not None and (not wanted or keys <= wanted):
                subscription.queue.extend(expected.queue)
                self._expected.remove(expected)

    def unsubscribe(self, subscriber_id: int) -> None:
        self._subscriptions.pop(subscriber_id, None)

    def publish(self, message: Message) -> list[int]:
        """Queues the message for everyone who wants it. Returns their numbers: each has something to take."""
        reached = self._reached(message.channel, message.key)
        for subscription in reached:
            self._enqueue(subscription, message)
        return [subscription.subscriber_id for subscription in reached if subscription.subscriber_id]

    def reach(self, channel: int, key: bytes) -> tuple[int, int]:
        """(how many subscriptions want messages of this key, how many wait in the longest of the queues). The
        expected ones count, too."""
        reached = self._reached(channel, key)
        return len(reached), max((len(subscription.queue) for subscription in reached), default=0)

    def _reached(self, channel: int, key: bytes) -> list[Subscription]:
        return [
            subscription
            for subscription in [*self._subscriptions.values(), *self._expected]
            if (keys := subscription.wanted.get(channel)) is not None
            and (not keys or not key or key in keys)
            and subscription.overflowed_on is None
        ]

    def _enqueue(self, subscription: Subscription, message: Message) -> None:
        queue = subscription.queue
        if len(queue) >= self._queue_max:
            oldest = next(
                (index for index, queued in enumerate(queue) if queued.channel in self._lossy), None
            )
            if oldest is not None:
                del queue[oldest]
            elif message.channel not in self._lossy:
                subscription.overflowed_on = message.channel
                queue.clear()
                return
            subscription.dropped += 1
            if oldest is None:
                return
        queue.append(message)

    def take(self, subscriber_id: int) -> list[Message]:
        """Everything queued for the subscriber, in order; the queue is empty afterwards."""
        subscription = self._subscriptions[subscriber_id]
        messages = list(subscription.queue)
        subscription.queue.clear()
        return messages

    def overflowed_on(self, subscriber_id: int) -> int | None:
        """The channel that ended the subscription, if one did."""
        return self._subscriptions[subscriber_id].overflowed_on

    def subscriptions(self) -> list[Subscription]:
        """For a dump of the state."""
        return list(self._subscriptions.values())

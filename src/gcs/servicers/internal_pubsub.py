"""InternalPubSubGcsService: streams of changes, and what others publish."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.pubsub.paced_news import in_parts
from ray_mono.gcs.pubsub.publisher import Message
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode

# What others may publish; the rows of the other channels are the GCS's own to tell.
OPEN_CHANNELS = (
    gcs_pb2.ERROR,
    gcs_pb2.LOG,
    gcs_pb2.RUN_ON_WORKERS,
    gcs_pb2.LOG_FLUSH,
    gcs_pb2.COLLECT_GARBAGE,
)


class InternalPubSubServicer(gcs_rpc.GcsServiceServicer):
    """Subscribers and publishers."""

    def __init__(self, subscriptions: Subscriptions, nodes: NodeManager, writes: WriteThrough) -> None:
        self._subscriptions = subscriptions
        self._nodes = nodes
        self._writes = writes

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        await self._writes.flushed()
        filters = [(wanted.channel, list(wanted.keys)) for wanted in request.channels]
        async with contextlib.aclosing(
            self._subscriptions.stream(filters, lambda: self._rows(request), context.connection)
        ) as stream:
            async for message in stream:
                yield message

    def _rows(self, request: gcs_pb2.SubscribeRequest) -> list[Message]:
        """The present rows of the channels that have any."""
        messages = []
        for wanted in request.channels:
            if wanted.channel == gcs_pb2.NODE:
                messages += [
                    Message(wanted.channel, b"", gcs_pb2.NodeNews(nodes=rows).SerializeToString())
                    for rows in in_parts(self._nodes.rows())
                ]
            elif wanted.channel == gcs_pb2.NODE_RESOURCES:
                news = gcs_pb2.ResourceNews(nodes=self._nodes.resources())
                messages.append(Message(wanted.channel, b"", news.SerializeToString()))
        return messages

    async def Publish(self, request: gcs_pb2.PublishRequest, context: CallContext) -> gcs_pb2.PublishReply:
        message = request.message
        if message.channel not in OPEN_CHANNELS:
            accepted = ", ".join(gcs_pb2.Channel.Name(channel) for channel in OPEN_CHANNELS)
            name = gcs_pb2.Channel.Name(message.channel)
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, f"message.channel must be one of {accepted}, got {name}"
            )
        if message.payload:
            self._subscriptions.publish(message.channel, message.key, message.payload)
        reached, backlog = self._subscriptions.reach(message.channel, message.key)
        return gcs_pb2.PublishReply(reached=reached, backlog=backlog)

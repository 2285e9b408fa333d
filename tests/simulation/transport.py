"""SimTransport: the Transport of ray_mono.rpc.surface over a SimNetwork.

Services get it injected where a real process gets the framed transport, and see the same: calls, one-way
messages, streams, cancellation, deadlines, connections that end. Every message is serialized and parsed, so
that no two processes share an object; deterministically, because protobuf's maps otherwise change their order
from process to process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_mono.rpc.surface import Handler
from tests.simulation.channel import SimChannel
from tests.simulation.network import SimNetwork
from tests.simulation.process import SimProcess
from tests.simulation.server import SimListener


class SimTransport:
    """The transport of one simulated process."""

    def __init__(self, network: SimNetwork, process: SimProcess, secret: str = "") -> None:
        self._network = network
        self._process = process
        self._secret = secret

    async def connect(self, address: str, timeout_s: float) -> SimChannel:
        """See Transport.connect. Anybody on the host may use its unix: addresses; the secret is asked for on
        all others.
        """
        end_s = self._network.loop.time() + timeout_s
        endpoint = await self._network.connect(self._process, address, timeout_s)
        channel = SimChannel(self._network.loop, address, endpoint)
        if address.startswith("unix:"):
            return channel
        try:
            await channel.say_hello(self._secret, end_s - self._network.loop.time())
        except BaseException:
            channel.close()
            raise
        return channel

    async def serve(self, address: str, handlers: Mapping[str, Handler[Any, Any]]) -> SimListener:
        listener = SimListener(self._network, self._process, handlers, self._secret)
        listener.address = self._network.bind(self._process, address, listener.accept)
        return listener

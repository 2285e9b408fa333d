"""Clients of the raylets: one connection to each, made when first needed, and again after an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ray_mono.common.background import BackgroundTasks
from ray_mono.protobuf.raylet_rpc import RayletServiceAsyncStub
from ray_mono.rpc.surface import AsyncChannel, RpcError, Transport


class RayletClientPool:
    """Open channels by address."""

    def __init__(
        self,
        transport: Transport,
        tasks: BackgroundTasks,
        connect_timeout_s: float,
        confirmed: Callable[[], Awaitable[None]],
    ) -> None:
        """confirmed(): returns when this GCS is known to be the latest one. Nobody else may tell raylets
        what to do. Raises RpcError where it is not.
        """
        self._confirmed = confirmed
        self._transport = transport
        self._tasks = tasks
        self._connect_timeout_s = connect_timeout_s
        self._channels: dict[str, AsyncChannel] = {}
        # Connections in the making, so that callers who come meanwhile wait for the same one.
        self._connecting: dict[str, asyncio.Task[AsyncChannel | RpcError]] = {}
        self._on_end: Callable[[str], None] = lambda address: None

    def on_end(self, callback: Callable[[str], None]) -> None:
        """callback(address) runs when an open connection ended that `drop` did not end."""
        self._on_end = callback

    async def client(self, address: str) -> RayletServiceAsyncStub:
        """Of the raylet at "host:port", connected. Raises RpcError UNAVAILABLE, UNAUTHENTICATED."""
        await self._confirmed()
        channel = self._channels.get(address)
        if channel is not None:
            return RayletServiceAsyncStub(channel)
        task = self._connecting.get(address)
        if task is None:
            task = self._connecting[address] = self._tasks.spawn(
                self._connect(address), f"connect to {address}"
            )
        outcome = await asyncio.shield(task)
        if isinstance(outcome, RpcError):
            raise outcome
        return RayletServiceAsyncStub(outcome)

    async def _connect(self, address: str) -> AsyncChannel | RpcError:
        """A failure is a result here: it belongs to those who wait, not to this task."""
        try:
            channel = await self._transport.connect(address, self._connect_timeout_s)
        except RpcError as error:
            return error
        finally:
            del self._connecting[address]
        self._channels[address] = channel
        channel.on_close(lambda reason: self._ended(address, channel))
        return channel

    def _ended(self, address: str, channel: AsyncChannel) -> None:
        if self._channels.get(address) is channel:
            del self._channels[address]
            self._on_end(address)

    def drop(self, address: str) -> None:
        """Ends the connection to a raylet that is given up; calls on it fail."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        for address in list(self._channels):
            self.drop(address)

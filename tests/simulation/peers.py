"""A simulated process's connections to core workers: one to each, made when first needed, as a real core
worker has it. What two processes say to each other on it arrives in order, which the protocol of ownership
builds on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ray_mono.protobuf import common_pb2, core_worker_rpc
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode
from tests.simulation.process import SimProcess
from tests.simulation.transport import SimTransport

CONNECT_TIMEOUT_S = 5.0

OnDone = Callable[[Any, RpcError | None], None]


class Peers:
    """Open channels by worker id."""

    def __init__(self, process: SimProcess, transport: SimTransport, node_id: bytes) -> None:
        self._process = process
        self._transport = transport
        self._node_id = node_id
        self._dead_nodes: dict[bytes, None] = {}
        self._of_node: dict[bytes, dict[bytes, None]] = {}
        self._channels: dict[bytes, AsyncChannel] = {}
        self._connecting: dict[bytes, asyncio.Task[AsyncChannel | RpcError]] = {}

    async def stub(self, address: common_pb2.Address) -> core_worker_rpc.CoreWorkerServiceAsyncStub:
        """Raises RpcError UNAVAILABLE."""
        worker_id = address.worker_id
        channel = self._channels.get(worker_id)
        if channel is None:
            connecting = self._connecting.get(worker_id)
            if connecting is None:
                connecting = self._connecting[worker_id] = self._process.spawn(
                    self._connect(address), "connect"
                )
            outcome = await asyncio.shield(connecting)
            if isinstance(outcome, RpcError):
                raise RpcError(outcome.code, outcome.message)
            channel = outcome
        return core_worker_rpc.CoreWorkerServiceAsyncStub(channel)

    async def _connect(self, address: common_pb2.Address) -> AsyncChannel | RpcError:
        is_local = address.node_id == self._node_id and address.unix_path
        target = f"unix:{address.unix_path}" if is_local else f"{address.host}:{address.port}"
        worker_id = address.worker_id
        try:
            channel = await self._transport.connect(target, CONNECT_TIMEOUT_S)
        except RpcError as error:
            return error
        finally:
            del self._connecting[worker_id]
        if address.node_id in self._dead_nodes:
            channel.close()
            return RpcError(StatusCode.UNAVAILABLE, "its node is dead")
        self._channels[worker_id] = channel
        self._of_node.setdefault(address.node_id, {})[worker_id] = None
        channel.on_close(lambda reason: self._ended(worker_id, channel))
        return channel

    def _ended(self, worker_id: bytes, channel: AsyncChannel) -> None:
        if self._channels.get(worker_id) is channel:
            del self._channels[worker_id]

    def node_died(self, node_id: bytes) -> None:
        """Its processes count as gone, whatever their connections say."""
        self._dead_nodes[node_id] = None
        for worker_id in self._of_node.pop(node_id, {}):
            if worker_id in self._channels:
                self._channels[worker_id].close()

    def calls_to(self, address: common_pb2.Address) -> Calls:
        """What core_worker's parts call a stub: its methods have `start`."""
        return Calls(self, self._process, address)

    async def call(self, address: common_pb2.Address, method: str, request: Any, on_done: OnDone) -> None:
        try:
            reply = await getattr(await self.stub(address), method)(request)
        except RpcError as error:
            on_done(None, error)
            return
        on_done(reply, None)


class Calls:
    """The methods of one core worker."""

    def __init__(self, peers: Peers, process: SimProcess, address: common_pb2.Address) -> None:
        self._peers = peers
        self._process = process
        self._address = common_pb2.Address()
        self._address.CopyFrom(address)

    def __getattr__(self, method: str) -> Call:
        return Call(self._peers, self._process, self._address, method)


class Call:
    """One method: `start` sends and returns."""

    def __init__(self, peers: Peers, process: SimProcess, address: common_pb2.Address, method: str) -> None:
        self._peers = peers
        self._process = process
        self._address = address
        self._method = method

    def start(self, request: Any, on_done: OnDone) -> None:
        task = self._process.spawn(
            self._peers.call(self._address, self._method, request, on_done), self._method
        )
        task.add_done_callback(raise_failure)


def raise_failure(task: asyncio.Task[Any]) -> None:
    """What nobody awaits and yet failed ends the run."""
    if not task.cancelled() and task.exception() is not None:
        raise task.exception()  # type: ignore[misc]

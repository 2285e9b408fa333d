"""One side of a simulated connection, and what travels on it. Delay, order and loss are network.py's
business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.simulation.process import SimProcess


@dataclass(frozen=True)
class Packet:
    """What an endpoint sends: the transport's message, opaque here but for what the trace shows."""

    kind: str
    path: str = ""
    call_id: int = 0
    payload: bytes = b""
    code: int = 0


class Receiver(Protocol):
    """The transport's half of an endpoint. Called in the context of the endpoint's process."""

    def packet_received(self, packet: Packet) -> None: ...

    def connection_ended(self, reason: str) -> None: ...


Item = Packet | str
"""What travels: a packet, or the reason of the connection's end."""


class Carrier(Protocol):
    """What endpoints need of the network."""

    def transmit(self, sender: Endpoint, receiver: Endpoint, item: Item) -> None: ...

    def forget(self, endpoint: Endpoint) -> None: ...

    def record(self, event: str, sender: Endpoint, receiver: Endpoint, item: Item) -> None: ...


class Endpoint:
    """One side of a connection."""

    def __init__(self, network: Carrier, process: SimProcess, number: int) -> None:
        self._network = network
        self.process = process
        self.number = number
        self.peer: Endpoint | None = None
        self.receiver: Receiver | None = None
        self.is_open = True
        # Broken: hears nothing any more, and will soon be told so.
        self.is_cut = False
        self.has_sent_into_silence = False
        self._last_arrival_s = 0.0
        self._held: list[Item] = []

    @property
    def name(self) -> str:
        return f"{self.process.name}#{self.number}"

    def send(self, packet: Packet) -> None:
        """Puts a packet on its way; nothing happens on a connection that has ended."""
        if self.is_open and not self.is_cut and self.peer is not None:
            self._network.transmit(self, self.peer, packet)

    def close(self) -> None:
        """Ends the connection from this side: the peer gets what was sent before, then the end."""
        if self.is_open and self.peer is not None:
            self.is_open = False
            self._network.transmit(self, self.peer, "the peer closed the connection")
            self._network.forget(self)

    def deliver(self, item: Item) -> None:
        """Called by the network at the time of arrival, in the context of this endpoint's process."""
        if not self.is_open or self.is_cut or self.peer is None:
            return
        self._network.record("deliver", self.peer, self, item)
        if isinstance(item, Packet):
            if self.receiver is not None:
                self.receiver.packet_received(item)
        else:
            # A turn later: handlers of messages that arrived at the same instant have started by then.
            self.process.loop.call_soon(self.end, item)

    def end(self, reason: str) -> None:
        """The connection is over for this side."""
        if self.is_open:
            self.is_open = False
            self._network.forget(self)
            if self.receiver is not None:
                self.receiver.connection_ended(reason)

    def arrival_s(self, earliest_s: float) -> float:
        """When a message can arrive here: not before those sent earlier."""
        self._last_arrival_s = max(self._last_arrival_s, earliest_s)
        return self._last_arrival_s

    def hold(self, item: Item) -> None:
        self._held.append(item)

    def take_held(self) -> list[Item]:
        held, self._held = self._held, []
        return held

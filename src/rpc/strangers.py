"""Connections that have not shown the secret: how many may stay, which of them goes first, and when. Knows no sockets and no clock.

Whoever reaches a port may open connections to it, and each costs a descriptor and some memory. Who knows the secret shows it within
milliseconds; so few strangers may stay, those that said less fewer, and the oldest makes room for the newest:

    stage      what it has said                                          at most, of one address
    SILENT     nothing, or less than a protocol's first message          128
    SHAKING    the handshake's first message                             256
    WAITING    HTTP/2's first message                                    128
    HTTP2      the same, and it is served                                16

    enter ─► SILENT ─┬─► SHAKING ───────────► in (leave)     each of them ──► sent away: by a newer one, or STAY_S after it entered
                     └─► WAITING ─► HTTP2 ──► in (leave)

HTTP/2 is dear: three descriptors, and gRPC's work to begin and end a connection. So few are served at once, and the others wait in
line: who was refused would only come back at once. Whoever is served has SERVED_S for himself; then he goes if others wait.
A flood from one address only takes places from itself. Floods from many share TOTAL_MAX: there the address that has most gives one
up. Addresses of IPv6 are counted by their network of 64 bits, which one machine can have all of.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray_mono.rpc.auth import HANDSHAKE_TIMEOUT_S

STAY_S = HANDSHAKE_TIMEOUT_S
# A thousand nodes may come back to a restarted head at once.
TOTAL_MAX = 1024

T = TypeVar("T")


class Stage(enum.Enum):
    """In the order in which they are given up."""

    SILENT = "silent"
    WAITING = "waiting"
    HTTP2 = "http2"
    SHAKING = "shaking"


ADDRESS_MAX: Mapping[Stage, int] = {
    Stage.SILENT: 128,
    Stage.WAITING: 128,
    Stage.HTTP2: 16,
    Stage.SHAKING: 256,
}
# Enough for the round trips of a client that has the secret, on a busy machine.
SERVED_S = 0.2


@dataclass
class _Entry:
    network: str
    stage: Stage
    since_s: float
    """When that stage began."""
    end_s: float


class Strangers(Generic[T]):
    """Those of one listener. T: the connection, whatever it is; hashed by identity."""

    def __init__(self, address_max: Mapping[Stage, int] = ADDRESS_MAX, total_max: int = TOTAL_MAX) -> None:
        self._address_max = address_max
        self._total_max = total_max
        # In the order of their entering, and so of their ends. Invariant: the same connections as in _by_network.
        self._entries: dict[T, _Entry] = {}
        self._by_network: dict[str, dict[Stage, dict[T, None]]] = {}
        # Networks of which somebody waits, or did until a moment ago.
        self._lines: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, stranger: T) -> bool:
        return stranger in self._entries

    def enter(self, stranger: T, host: str, now_s: float) -> T | None:
        """A new one, silent so far. Returns who has to go for it; that one is off the books."""
        network = network_of(host)
        full = self._crowded() if len(self._entries) >= self._total_max else None
        victim = self._give_up_one(full) if full is not None else None
        self._entries[stranger] = _Entry(network, Stage.SILENT, now_s, now_s + STAY_S)
        self._by_network.setdefault(network, {stage: {} for stage in Stage})[Stage.SILENT][stranger] = None
        return victim if victim is not None else self._bound(network, Stage.SILENT)

    def advance(self, stranger: T, stage: Stage, now_s: float) -> T | None:
        """It has said what that stage asks for. Its end stays the same. Returns who has to go, as enter does."""
        entry = self._entries[stranger]
        if entry.stage is stage:
            return None
        stages = self._by_network[entry.network]
        del stages[entry.stage][stranger]
        entry.stage, entry.since_s = stage, now_s
        stages[stage][stranger] = None
        if stage is Stage.WAITING:
            self._lines.add(entry.network)
        return self._bound(entry.network, stage)

    def serve(self, now_s: float) -> tuple[list[T], list[T]]:
        """Lets those that wait be served while there are places. Returns them, and those that have to go for them. To be called when
        somebody waits or goes, and every now and then while is_anyone_waiting."""
        served, victims = [], []
        for network in list(self._lines):
            stages = self._by_network.get(network, {})
            waiting, places = stages.get(Stage.WAITING, {}), stages.get(Stage.HTTP2, {})
            while waiting:
                if len(places) >= self._address_max[Stage.HTTP2]:
                    oldest = next(iter(places))
                    if now_s < self._entries[oldest].since_s + SERVED_S:
                        break
                    self.leave(oldest)
                    victims.append(oldest)
                first = next(iter(waiting))
                self.advance(first, Stage.HTTP2, now_s)
                served.append(first)
            if not waiting:
                self._lines.discard(network)
        return served, victims

    @property
    def is_anyone_waiting(self) -> bool:
        return bool(self._lines)

    def leave(self, stranger: T) -> None:
        """It is no stranger any more, or gone; nothing where it is not on the books."""
        entry = self._entries.pop(stranger, None)
        if entry is None:
            return
        stages = self._by_network[entry.network]
        del stages[entry.stage][stranger]
        if not any(stages.values()):
            del self._by_network[entry.network]

    def give_up(self) -> T | None:
        """The one that is missed least, off the books; None where there is none."""
        network = self._crowded()
        return None if network is None else self._give_up_one(network)

    def expired(self, now_s: float) -> list[T]:
        """Those whose time is over; they are off the books."""
        over = []
        for stranger, entry in self._entries.items():
            if entry.end_s > now_s:
                break
            over.append(stranger)
        for stranger in over:
            self.leave(stranger)
        return over

    @property
    def next_end_s(self) -> float | None:
        """When the next one's time is over; None where there is none."""
        return next((entry.end_s for entry in self._entries.values()), None)

    def clear(self) -> list[T]:
        """Takes all off the books and returns them."""
        everybody = list(self._entries)
        self._entries.clear()
        self._by_network.clear()
        self._lines.clear()
        return everybody

    def _bound(self, network: str, stage: Stage) -> T | None:
        those = self._by_network[network][stage]
        if len(those) <= self._address_max[stage]:
            return None
        oldest = next(iter(those))
        self.leave(oldest)
        return oldest

    def _crowded(self) -> str | None:
        """The network that has most; the first of several."""
        counts = {network: sum(map(len, stages.values())) for network, stages in self._by_network.items()}
        return max(counts, key=counts.__getitem__, default=None)

    def _give_up_one(self, network: str) -> T:
        oldest = next(stranger for those in self._by_network[network].values() for stranger in those)
        self.leave(oldest)
        return oldest


def network_of(host: str) -> str:
    """What is counted as one address: an IPv4 address, or an IPv6 network of 64 bits."""
    if ":" not in host:
        return host
    try:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host
    if packed[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return packed[:8].hex()

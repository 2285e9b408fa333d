"""Connections that have not shown the secret: how many may stay, which of them goes first, and when.
Knows no sockets and no clock.

Whoever reaches a port may open connections to it, and each costs a descriptor and some memory. Who knows the
secret shows it within milliseconds; so few strangers may stay, those that said less fewer, and the oldest
makes room for the newest:

    stage      what it has said                                     at most, of one address
    SILENT     nothing, or less than a protocol's first message     128
    SHAKING    that message, and it was answered                    256
    TOLD       what is wrong, and is told why                       64

    enter ─► SILENT ──► SHAKING ─┬─► in (leave)     each ──► sent away: by a newer one, or after STAY_S
                                 └─► TOLD

A flood from one address only takes places from itself. Floods from many share TOTAL_MAX: there the address
that has most gives one up. Addresses of IPv6 are counted by their network of 64 bits, which one machine can
have all of.
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


class Stage(enum.IntEnum):
    """In the order in which they are given up. A number, which is quick to look up."""

    TOLD = 0
    SILENT = 1
    SHAKING = 2


ADDRESS_MAX: Mapping[Stage, int] = {Stage.TOLD: 64, Stage.SILENT: 128, Stage.SHAKING: 256}


@dataclass
class _Entry:
    network: str
    stage: Stage
    end_s: float


class Strangers(Generic[T]):
    """Those of one listener. T: the connection, whatever it is; hashed by identity."""

    def __init__(self, address_max: Mapping[Stage, int] = ADDRESS_MAX, total_max: int = TOTAL_MAX) -> None:
        self._address_max = address_max
        self._total_max = total_max
        # In the order of their entering, and so of their ends. Invariant:
        # the same connections as in _by_network.
        self._entries: dict[T, _Entry] = {}
        self._by_network: dict[str, dict[Stage, dict[T, None]]] = {}
        # The networks by how many of theirs there are, since floods from many come one after the other.
        # Invariant: none is empty.
        self._by_count: dict[int, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, stranger: T) -> bool:
        return stranger in self._entries

    def enter(self, stranger: T, host: str, now_s: float) -> T | None:
        """A new one, silent so far. Returns who has to go for it; that one is off the books."""
        network = network_of(host)
        victim = self.give_up() if len(self._entries) >= self._total_max else None
        self._entries[stranger] = _Entry(network, Stage.SILENT, now_s + STAY_S)
        stages = self._by_network.get(network)
        if stages is None:
            stages = self._by_network[network] = {stage: {} for stage in Stage}
        stages[Stage.SILENT][stranger] = None
        self._recount(network, stages, 1)
        return victim if victim is not None else self._bound(network, Stage.SILENT)

    def advance(self, stranger: T, stage: Stage) -> T | None:
        """It has said what that stage asks for. Its end stays the same.
        Returns who has to go, as enter does.
        """
        entry = self._entries[stranger]
        if entry.stage is stage:
            return None
        stages = self._by_network[entry.network]
        del stages[entry.stage][stranger]
        entry.stage = stage
        stages[stage][stranger] = None
        return self._bound(entry.network, stage)

    def leave(self, stranger: T) -> None:
        """It is no stranger any more, or gone; nothing where it is not on the books."""
        entry = self._entries.pop(stranger, None)
        if entry is None:
            return
        stages = self._by_network[entry.network]
        del stages[entry.stage][stranger]
        self._recount(entry.network, stages, -1)

    def give_up(self) -> T | None:
        """The one that is missed least, off the books; None where there is none:
        of the network that has most, of several the one that has had so many for longest."""
        if not self._by_count:
            return None
        network = next(iter(self._by_count[max(self._by_count)]))
        oldest = next(stranger for those in self._by_network[network].values() for stranger in those)
        self.leave(oldest)
        return oldest

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
        self._by_count.clear()
        return everybody

    def _bound(self, network: str, stage: Stage) -> T | None:
        those = self._by_network[network][stage]
        if len(those) <= self._address_max[stage]:
            return None
        oldest = next(iter(those))
        self.leave(oldest)
        return oldest

    def _recount(self, network: str, stages: dict[Stage, dict[T, None]], change: int) -> None:
        """One of a network has come (1) or gone (-1)."""
        count = sum(map(len, stages.values()))
        if before := count - change:
            those = self._by_count[before]
            del those[network]
            if not those:
                del self._by_count[before]
        if count:
            self._by_count.setdefault(count, {})[network] = None
        else:
            del self._by_network[network]


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

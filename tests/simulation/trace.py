"""What happened in a run: a digest of every message, and the last of them in words.

Two runs are the same run when their digests are equal: the digest covers virtual time, sender, receiver,
kind, method and bytes of every message that was sent, delivered or lost, in order.
"""

from __future__ import annotations

import collections
import hashlib
from typing import NamedTuple


class Record(NamedTuple):
    """One event of the network, or a note of the simulation itself."""

    time_s: float
    event: str
    sender: str
    receiver: str
    what: str
    payload: bytes

    def __str__(self) -> str:
        who = f"{self.sender} -> {self.receiver}"
        return f"{self.time_s:12.6f}  {self.event:9} {who}  {self.what} ({len(self.payload)} B)"


class Trace:
    """Grows by record(). `kept` is how many records stay readable, None: all; the digest has all."""

    def __init__(self, kept: int | None = 200) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self._last: collections.deque[Record] = collections.deque(maxlen=kept)
        self.count = 0

    def record(
        self, time_s: float, event: str, sender: str, receiver: str, what: str, payload: bytes = b""
    ) -> None:
        head = f"{time_s!r}|{event}|{sender}|{receiver}|{what}|{len(payload)}|"
        self._digest.update(head.encode())
        self._digest.update(payload)
        self._last.append(Record(time_s, event, sender, receiver, what, payload))
        self.count += 1

    def digest(self) -> str:
        return self._digest.hexdigest()

    def tail(self, lines: int = 40) -> str:
        """The last records, one line each."""
        return "\n".join(str(record) for record in self.records()[-lines:])

    def records(self) -> list[Record]:
        """Those that are kept."""
        return list(self._last)

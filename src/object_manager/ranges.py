"""Which bytes of an object that arrives are not here yet, and which of them are asked of whom.

A machine without I/O. What is not here is a list of *parts*. At first it is one. A holder that brings bytes
has one part, and is asked for a *chunk* of it at a time, from its front on. A holder that has none

    takes a part that nobody has: the first one, so that others, to whom the object is passed on, have most,
    or else the upper half of what another one has and was not asked for,
    or else nothing, until another one has been asked for its chunk `slow_s` ago. That one is left (whoever
    runs the streams does it), and its part is free.

So holders share an object by their speeds, and no byte is asked for twice, but of one that was left. A holder
that is alone is asked for all at once: `ask` without chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

_NOT_KNOWN = 1 << 62


@dataclass(slots=True, eq=False)
class Part:
    """Bytes [at, end) are not here. Those below asked_end are asked for."""

    at: int
    end: int
    is_taken: bool = False
    asked_end: int = 0
    asked_s: float = 0.0

    def arrived(self, count: int) -> None:
        """From the front on. The only thing that happens to it in another thread."""
        self.at += count

    @property
    def ends_with_object(self) -> bool:
        """Nobody knows yet where that is."""
        return self.asked_end == _NOT_KNOWN


class Ranges:
    """Of one object."""

    def __init__(self, chunk_bytes: int, slow_s: float) -> None:
        self._chunk_bytes = chunk_bytes
        self._slow_s = slow_s
        self._size_bytes = _NOT_KNOWN
        self._parts = [Part(0, _NOT_KNOWN)]  # in order; some are here by now

    def described(self, size_bytes: int) -> None:
        """So large it is."""
        self._size_bytes = size_bytes
        for part in self._parts:
            part.end = min(part.end, size_bytes)
            part.asked_end = min(part.asked_end, size_bytes)

    @property
    def received_bytes(self) -> int:
        """All before this byte is here."""
        return next((part.at for part in self._parts if part.at < part.end), self._size_bytes)

    @property
    def is_whole(self) -> bool:
        return all(part.at >= part.end for part in self._parts)

    @property
    def is_for_several(self) -> bool:
        """Whether so much is missing that it is worth to ask others."""
        return sum(part.end - part.at for part in self._parts) >= 2 * self._chunk_bytes

    def take(self) -> Part | None:
        """For a holder that has none."""
        self._parts = [part for part in self._parts if part.at < part.end or part.is_taken]
        for part in self._parts:
            if not part.is_taken:
                part.is_taken = True
                return part
        largest = max(self._parts, key=_unasked_bytes, default=None)
        if largest is None or _unasked_bytes(largest) < self._chunk_bytes:
            return None
        half = Part(largest.end - (_unasked_bytes(largest) + 1) // 2, largest.end, is_taken=True)
        largest.end = half.at
        self._parts.insert(self._parts.index(largest) + 1, half)
        return half

    def ask(self, part: Part, by_chunks: bool, now_s: float) -> None:
        """Its next bytes are asked for."""
        part.asked_end = min(part.end, part.at + self._chunk_bytes) if by_chunks else part.end
        part.asked_s = now_s

    def leave(self, part: Part) -> None:
        """Its holder has brought it, or brings no more."""
        part.is_taken = False
        part.asked_end = part.at

    def slow(self, now_s: float) -> Part | None:
        """One whose chunk should be here by now; the one that was asked for first."""
        late = [part for part in self._parts if part.is_taken and part.at < part.asked_end]
        first = min(late, key=lambda part: part.asked_s, default=None)
        return first if first is not None and first.asked_s + self._slow_s <= now_s else None


def _unasked_bytes(part: Part) -> int:
    return part.end - max(part.at, part.asked_end)

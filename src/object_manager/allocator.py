"""Which bytes of the store's file are whose: offsets and lengths, nothing else.

A machine without I/O. It does not know what lies in a range, nor whether the system has pages for it: whoever
backs the file tells it how far it may go (`raise_limit`).

Warm memory first. A page that a process has mapped and written takes its bytes several times faster than one
it never touched, so

1. a writer gets the range back that it freed last, where that (with what is free after it) is large enough;
2. else the free range that fits closely and was freed last;
3. else the cold tail: from the *frontier*, where nothing was ever handed out, to the limit. A free range that
   ends at the frontier is used together with it.

Free ranges below the frontier are kept sorted by offset, merged with their neighbours, and in bins by size
(powers of two). A bin remembers in which order its ranges were freed. Every length is a multiple of
ALIGNMENT.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from ray_mono.common.our_bug import check
from ray_mono.object_manager.keys import ClientKey

ALIGNMENT = 64
# Of a bin, so many of the latest ranges are tried before a larger bin is: bounds the time of a search.
_TRIED_PER_BIN = 16
# Of the ranges that one writer freed, so many are remembered.
_REMEMBERED_PER_WRITER = 16


def aligned(size_bytes: int) -> int:
    """What a request of size_bytes takes. It is at least one unit: an empty object has a place of its own."""
    return max(ALIGNMENT, -(-size_bytes // ALIGNMENT) * ALIGNMENT)


class Allocator:
    """Hands out ranges of [0, capacity). Offsets and sizes are bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes // ALIGNMENT * ALIGNMENT
        # frontier <= limit <= capacity
        self.limit_bytes = 0
        self.frontier_bytes = 0
        # Sum of the lengths in _used.
        self.used_bytes = 0
        self._used: dict[int, tuple[int, ClientKey]] = {}  # offset -> length, writer
        self._free: dict[int, int] = {}  # offset -> length; all below the frontier
        self._free_offsets: list[int] = []  # the keys of _free, sorted
        self._bins: list[dict[int, None]] = [
            {} for _ in range(64)
        ]  # offsets in the order of their last change
        self._freed_by: dict[ClientKey, list[int]] = {}  # hints: may be out of date

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.used_bytes

    def raise_limit(self, limit_bytes: int) -> None:
        """The file is backed up to here. Lower than before is ignored: backed pages stay."""
        self.limit_bytes = max(
            self.limit_bytes, min(limit_bytes // ALIGNMENT * ALIGNMENT, self.capacity_bytes)
        )

    def limit_for(self, size_bytes: int) -> int:
        """The limit at which allocate(size_bytes) finds room in the tail; may lie beyond the capacity."""
        return self._tail_offset() + aligned(size_bytes)

    def allocate(self, size_bytes: int, writer: ClientKey) -> int | None:
        """Offset of a range of at least size_bytes; None where no range below the limit is large enough."""
        length = aligned(size_bytes)
        offset = self._where_writer_freed(length, writer)
        if offset is None:
            offset = self._in_bins(length, _TRIED_PER_BIN)
        if offset is None and self._tail_offset() + length <= self.limit_bytes:
            offset = self._tail_offset()
        if offset is None:
            offset = self._in_bins(length, None)
        if offset is None:
            return None
        self._take(offset, length)
        self._used[offset] = (length, writer)
        self.used_bytes += length
        return offset

    def free(self, offset: int) -> None:
        """Gives back the range that starts at `offset`, as a whole."""
        check(offset in self._used, f"free of {offset}, where no range starts")
        length, writer = self._used.pop(offset)
        self.used_bytes -= length
        freed = self._freed_by.setdefault(writer, [])
        freed.append(offset)
        if len(freed) > _REMEMBERED_PER_WRITER:
            del freed[0]
        index = bisect_left(self._free_offsets, offset)
        if index < len(self._free_offsets) and self._free_offsets[index] == offset + length:
            length += self._remove_free(self._free_offsets[index])
        if index > 0:
            before = self._free_offsets[index - 1]
            if before + self._free[before] == offset:
                length += self._remove_free(before)
                offset = before
        self._add_free(offset, length)

    def length_of(self, offset: int) -> int:
        """Length of the range that starts at `offset`."""
        check(offset in self._used, f"length of {offset}, where no range starts")
        return self._used[offset][0]

    def forget_writer(self, writer: ClientKey) -> None:
        """The writer is gone: what it freed is nobody's hint any more."""
        self._freed_by.pop(writer, None)

    # ---- searching

    def _where_writer_freed(self, length: int, writer: ClientKey) -> int | None:
        hints = self._freed_by.get(writer)
        if not hints:
            return None
        for position in range(len(hints) - 1, -1, -1):
            index = bisect_right(self._free_offsets, hints[position]) - 1
            start = self._free_offsets[index] if index >= 0 else 0
            end = start + self._free.get(start, 0)
            if not start <= hints[position] < end:
                del hints[position]  # taken meanwhile
            elif hints[position] + length <= end:
                return hints.pop(position)
            elif start + length <= end:
                return start
        return None

    def _in_bins(self, length: int, tries: int | None) -> int | None:
        """The latest range of the smallest bin that has one.

        The ranges of the first bin may be too short: `tries` of them are looked at.
        """
        first = _bin_of(length)
        for offset in reversed(self._bins[first]):
            if self._free[offset] >= length:
                return offset
            if tries is not None:
                tries -= 1
                if not tries:
                    break
        for bin_ in self._bins[first + 1 :]:
            if bin_:
                return next(reversed(bin_))
        return None

    def _tail_offset(self) -> int:
        if self._free_offsets:
            last = self._free_offsets[-1]
            if last + self._free[last] == self.frontier_bytes:
                return last
        return self.frontier_bytes

    # ---- the free ranges

    def _take(self, offset: int, length: int) -> None:
        """Removes [offset, offset + length) from the free ranges, the tail included."""
        end = offset + length
        index = bisect_right(self._free_offsets, offset) - 1
        if index >= 0 and offset < self._free_offsets[index] + self._free[self._free_offsets[index]]:
            start = self._free_offsets[index]
            free_end = start + self._remove_free(start)
            if start < offset:
                self._add_free(start, offset - start)
            if end < free_end:
                self._add_free(end, free_end - end)
        self.frontier_bytes = max(self.frontier_bytes, end)

    def _add_free(self, offset: int, length: int) -> None:
        self._free[offset] = length
        insort(self._free_offsets, offset)
        self._bins[_bin_of(length)][offset] = None

    def _remove_free(self, offset: int) -> int:
        length = self._free.pop(offset)
        del self._free_offsets[bisect_left(self._free_offsets, offset)]
        del self._bins[_bin_of(length)][offset]
        return length

    def check_invariants(self) -> None:
        """Recounts everything. Raises InternalError."""
        check(
            self.frontier_bytes <= self.limit_bytes <= self.capacity_bytes,
            f"frontier {self.frontier_bytes}, limit {self.limit_bytes}, capacity {self.capacity_bytes}",
        )
        check(sorted(self._free) == self._free_offsets, "free ranges and their sorted offsets differ")
        check(
            sorted(offset for bin_ in self._bins for offset in bin_) == self._free_offsets,
            "free ranges and bins differ",
        )
        ranges = [(offset, length, False) for offset, length in self._free.items()]
        ranges += [(offset, length, True) for offset, (length, _) in self._used.items()]
        position, was_used = 0, True
        for offset, length, used in sorted(ranges):
            check(offset == position, f"a range starts at {offset}, the one before ends at {position}")
            check(length > 0 and length % ALIGNMENT == 0, f"the range at {offset} has {length} bytes")
            check(used or was_used, f"the free range at {offset} follows a free range")
            check(
                used or offset in self._bins[_bin_of(length)], f"the free range at {offset} is in a wrong bin"
            )
            position, was_used = offset + length, used
        check(position == self.frontier_bytes, f"ranges end at {position}, frontier {self.frontier_bytes}")
        check(
            self.used_bytes == sum(length for length, _ in self._used.values()),
            f"used_bytes is {self.used_bytes}, its ranges have another sum",
        )


def _bin_of(length: int) -> int:
    return (length // ALIGNMENT).bit_length()

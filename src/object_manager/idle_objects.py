"""Objects that nobody reads, the least recently used first, and how much memory they take."""

from __future__ import annotations

from collections import OrderedDict

from ray_mono.object_manager.allocator import aligned
from ray_mono.object_manager.keys import ObjectKey


class IdleObjects:
    """One list of them."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[ObjectKey, int] = OrderedDict()
        self.total_bytes = 0

    def __contains__(self, object_id: ObjectKey) -> bool:
        return object_id in self._sizes

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def add(self, object_id: ObjectKey, size_bytes: int) -> None:
        """It was used last."""
        length = self._sizes[object_id] = aligned(size_bytes)
        self.total_bytes += length

    def remove(self, object_id: ObjectKey) -> None:
        self.total_bytes -= self._sizes.pop(object_id)

    def first(self) -> ObjectKey:
        """Whose last use is the longest ago."""
        return next(iter(self._sizes))

    def sizes(self) -> dict[ObjectKey, int]:
        """All of them, for a recount."""
        return dict(self._sizes)

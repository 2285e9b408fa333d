"""`ray.util.iter`, which Ray is about to remove: its names can be imported, and refuse to be used."""

from __future__ import annotations

from ray_mono._private.later import refusing


class ParallelIterator:
    """Nothing makes one."""


class LocalIterator:
    """Nothing makes one."""


from_items = refusing("ray.util.iter.from_items", "parallel iterators are")
from_range = refusing("ray.util.iter.from_range", "parallel iterators are")
from_iterators = refusing("ray.util.iter.from_iterators", "parallel iterators are")
from_actors = refusing("ray.util.iter.from_actors", "parallel iterators are")

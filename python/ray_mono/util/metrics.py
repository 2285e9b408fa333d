"""Counter, Gauge and Histogram, for programs that count what they do: the values of this process, by tags.

They are kept here, and `values()` tells them; nothing exports them from the node yet (docs/differences.md). A
metric that is pickled is, where it arrives, one of the same name and keys without values.
"""

from __future__ import annotations

import bisect
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
Tags = tuple[tuple[str, str], ...]


class Metric:
    """What the three kinds share. Recording is safe in threads.

    Args:
        name: letters, digits, "_" and ":" (which will not be taken for ever), no digit first. A metric with
            another name is warned of, and records nothing.
        description: for people.
        tag_keys: the tags that every record has, by default tags or its own.

    Raises:
        ValueError: the name is empty.
        TypeError: tag_keys is no tuple of str.
    """

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None) -> None:
        if not name:
            raise ValueError("name must not be empty")
        self._is_discarded = _NAME.fullmatch(name) is None
        if self._is_discarded:
            warnings.warn(
                f"the metric {name!r} will not be recorded: a name has letters, digits, '_' and ':' only,"
                " and begins with no digit",
                UserWarning,
                stacklevel=2,
            )
        elif ":" in name:
            warnings.warn(
                f"the name of the metric {name!r} has a ':', which will be an error",
                FutureWarning,
                stacklevel=2,
            )
        if tag_keys is not None and not isinstance(tag_keys, tuple):
            raise TypeError(f"tag_keys takes a tuple of str, got {tag_keys!r}, a {type(tag_keys).__name__}")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"tag_keys takes a tuple of str, got {key!r}, a {type(key).__name__}, in it")
        self._name = name
        self._description = description
        self._tag_keys = tag_keys or ()
        self._default_tags: dict[str, str] = {}
        self._values: dict[Tags, Any] = {}
        self._lock = threading.Lock()

    def set_default_tags(self, default_tags: Mapping[str, str]) -> Metric:
        """Tags of records that do not give their own. Returns the metric. Raises ValueError for an unknown
        key, TypeError for a value."""
        for key in default_tags:
            if key not in self._tag_keys:
                raise ValueError(
                    f"default_tags has {key!r}, which is not among the metric's tag_keys {self._tag_keys!r}"
                )
        self._default_tags = _checked(default_tags, "default_tags")
        return self

    @property
    def info(self) -> dict[str, Any]:
        """name, description, tag_keys and default_tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": self._default_tags,
        }

    def values(self) -> dict[Tags, Any]:
        """What this process recorded, by the sorted pairs of key and value: a number, or for a histogram the
        number of values in each bucket, of which the last is for what is above every boundary.
        """
        with self._lock:
            return {
                tags: list(value) if isinstance(value, list) else value
                for tags, value in self._values.items()
            }

    def _final_tags(self, tags: Mapping[str, str] | None) -> Tags:
        final = {**self._default_tags, **_checked(tags or {}, "tags")}
        missing = [key for key in self._tag_keys if key not in final]
        if missing:
            raise ValueError(f"{self._name}: no value was given for the tag(s) {', '.join(missing)}")
        return tuple(sorted(final.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._name, self._description, self._tag_keys)


class Counter(Metric):
    """A number that only grows. Arguments and errors are Metric's."""

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        """Adds value, which is above 0.

        Raises TypeError and ValueError for what cannot be counted, and for tags that are missing.
        """
        _check_number(value)
        if value <= 0:
            raise ValueError(f"value takes a number above 0, got {value!r}")
        if not self._is_discarded:
            key = self._final_tags(tags)
            with self._lock:
                self._values[key] = self._values.get(key, 0.0) + value


class Gauge(Metric):
    """The latest of the values that were set. Arguments and errors are Metric's."""

    def set(self, value: float | None, tags: Mapping[str, str] | None = None) -> None:
        """None changes nothing.

        Raises TypeError for what is no number, ValueError for tags that are missing.
        """
        if value is None:
            return
        _check_number(value)
        if not self._is_discarded:
            key = self._final_tags(tags)
            with self._lock:
                self._values[key] = value


class Histogram(Metric):
    """How many values fell between which boundaries.

    Args:
        boundaries: upper ends of the buckets, above 0; there is one more bucket above the last.

    The others, and the other errors, are Metric's.

    Raises:
        ValueError: there are no boundaries, or one is not above 0.
    """

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, description, tag_keys)
        if not boundaries:
            raise ValueError(
                f"boundaries takes a list of numbers above 0, as in boundaries=[1.0, 2.0]; got {boundaries!r}"
            )
        for boundary in boundaries:
            if boundary <= 0:
                raise ValueError(f"boundaries takes numbers above 0, got {boundary!r} in {boundaries!r}")
        self.boundaries = boundaries
        self._bounds = sorted(boundaries)

    def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Counts one value. Raises TypeError for what is no number, ValueError for tags that are missing."""
        _check_number(value)
        if not self._is_discarded:
            key = self._final_tags(tags)
            with self._lock:
                buckets = self._values.setdefault(key, [0] * (len(self._bounds) + 1))
                buckets[bisect.bisect_left(self._bounds, value)] += 1

    @property
    def info(self) -> dict[str, Any]:
        """Metric's, and boundaries."""
        return {**super().info, "boundaries": self.boundaries}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._name, self._description, self.boundaries, self._tag_keys)


def _checked(tags: Mapping[str, str], argument: str) -> dict[str, str]:
    for key, value in tags.items():
        if not isinstance(value, str):
            raise TypeError(
                f"{argument} takes values of type str, got {value!r}, a {type(value).__name__}, for {key!r}"
            )
    return dict(tags)


def _check_number(value: object) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"value takes an int or a float, got {value!r}, a {type(value).__name__}")

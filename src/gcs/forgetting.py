"""Which rows of what is over are forgotten: those beyond a count, and those of too long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Row = TypeVar("Row")


def oldest(rows: Mapping[Key, Row], count_max: int, is_old: Callable[[Row], bool]) -> list[Key]:
    """Of rows in the order of their ends: the keys of those that go, the first first."""
    excess = max(0, len(rows) - count_max)
    return [*islice(rows, excess), *_while_old(islice(rows.items(), excess, None), is_old)]


def _while_old(rows: Iterable[tuple[Key, Row]], is_old: Callable[[Row], bool]) -> Iterable[Key]:
    for key, row in rows:
        if not is_old(row):
            return
        yield key

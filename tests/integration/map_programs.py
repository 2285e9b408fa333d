"""What the tests of `map` call, and what they ask about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray_mono as ray

CHUNKS = ["auto", 1, 7, 1000, 1 << 100]


@ray.remote
def square(x: int) -> int:
    return x * x


@ray.remote
class Log:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, value: Any) -> int:
        if value == "bad":
            raise ValueError(value)
        self.seen.append(value)
        return len(self.seen)

    def read(self) -> list[Any]:
        return self.seen

    def many(self, value: int) -> Iterator[int]:
        yield from range(value)


def note_run(directory: Path, item: int) -> int:
    """Which time this is that the item begins."""
    with open(directory / str(item), "ab", buffering=0) as file:
        file.write(b".")
        return file.tell()

"""Programs that stream, and what the tests of generators ask about them."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import ray_mono as ray
from ray_mono.exceptions import RayTaskError
from tests.integration.bounded import get

LARGE = 200_000
GateFunction = Callable[[str | None, str | None], None]


def outcome(reference: Any) -> Any:
    """The value, or the name of the error's original type."""
    try:
        return get(reference)
    except Exception as error:
        return type(error.cause if isinstance(error, RayTaskError) else error).__name__


@ray.remote
def numbers(count: int, fails_at: int = -1) -> Iterator[int]:
    for number in range(count):
        if number == fails_at:
            raise ValueError("that far and no further")
        yield number


@ray.remote(num_cpus=0)
def gated(folder: str, touch_and_wait: GateFunction, count: int) -> Iterator[int]:
    """Makes the file made-N before it yields N, and waits for the file gate-N before that."""
    for number in range(count):
        touch_and_wait(None, f"{folder}/gate-{number}")
        Path(f"{folder}/made-{number}").touch()
        yield number


def open_gates(folder: Path, *gates: int) -> None:
    for number in gates:
        (folder / f"gate-{number}").touch()


def made(folder: Path) -> int:
    return len(list(folder.glob("made-*")))


@ray.remote
def endless() -> Iterator[int]:
    """Not as fast as it can: who stops it reads all of them."""
    for number in itertools.count():
        yield number
        time.sleep(0.001)


class Streamer:
    def numbers(self, count: int) -> Iterator[int]:
        yield from range(count)

    def endless(self) -> Iterator[int]:
        yield from endless._function()

    def die_after(self, count: int) -> Iterator[int]:
        yield from range(count)
        os._exit(1)

    @ray.method(_generator_backpressure_num_objects=2, num_returns="streaming")
    def in_twos(self, folder: str) -> Iterator[int]:
        for number in range(6):
            Path(f"{folder}/made-{number}").touch()
            yield number


class AsyncStreamer:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def numbers(self, count: int, fails_at: int = -1) -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            if number == fails_at:
                raise KeyError(number)
            yield number

    async def endless(self) -> AsyncIterator[int]:
        for number in itertools.count():
            yield number
            await asyncio.sleep(0.001)

    async def until_opened(self) -> AsyncIterator[str]:
        yield "closed"
        await self.gate.wait()
        yield "open"

    async def open(self) -> None:
        self.gate.set()

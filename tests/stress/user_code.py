"""The tasks and actors of the stress programs. Each says by its result whether it ran as it must: the drivers
compare.

An actor counts the calls of every caller, who numbers them from 0: what is lost, doubled or out of order
shows.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np

import ray_mono as ray

# For whoever looks at a worker that is stuck.
faulthandler.register(signal.SIGUSR2, all_threads=True)

NESTED_TIMEOUT_S = 120.0
"""Of waits inside of tasks: they wait for tasks that take milliseconds, behind everybody else's."""


def checksum(value: Any) -> int:
    """Of an array or of bytes."""
    return zlib.crc32(memoryview(value).cast("B"))


def pattern(seed: int, size_bytes: int) -> np.ndarray[Any, Any]:
    """An array that nothing else looks like."""
    return np.arange(seed, seed + size_bytes // 8, dtype=np.int64)


# ---------------------------------------------------------------- tasks


@ray.remote
def add_one(value: int) -> int:
    return value + 1


@ray.remote
def measure(value: Any, *others: Any, **named: Any) -> tuple[int, int]:
    """(checksum of the first, sum of the numbers behind it)."""
    return checksum(value), sum(others) + sum(named.values())


@ray.remote
def make(seed: int, size_bytes: int) -> np.ndarray[Any, Any]:
    return pattern(seed, size_bytes)


@ray.remote(num_returns=3)
def split(seed: int, size_bytes: int) -> tuple[int, np.ndarray[Any, Any], bytes]:
    """Small, large, small."""
    return seed, pattern(seed, size_bytes), b"x" * (seed % 100)


@ray.remote
def count_leaves(depth: int, width: int) -> int:
    """Of a tree of tasks."""
    if depth == 0:
        return 1
    below = [count_leaves.remote(depth - 1, width) for _ in range(width)]
    return sum(ray.get(below, timeout=NESTED_TIMEOUT_S))


@ray.remote
def boxed(seed: int, sizes_bytes: list[int]) -> list[Any]:
    """References that this worker owns."""
    return [ray.put(pattern(seed, size_bytes)) for size_bytes in sizes_bytes]


@ray.remote
def unbox(box: list[Any]) -> list[int]:
    """Checksums of what references in a list (or in lists in it) lead to."""
    found: list[int] = []
    for item in box:
        value = ray.get(item, timeout=NESTED_TIMEOUT_S)
        if isinstance(value, list):
            found.extend(checksum(ray.get(inner, timeout=NESTED_TIMEOUT_S)) for inner in value)
        else:
            found.append(checksum(value))
    return found


@ray.remote
def hold(seconds: float, value: int) -> int:
    threading.Event().wait(seconds)
    return value


@ray.remote(max_retries=2)
def die_once(marker: str, value: int) -> int:
    """Kills its worker the first time: the marker tells."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


@ray.remote
def items(count: int, size_bytes: int) -> Any:
    for number in range(count):
        yield number, b"x" * size_bytes


@ray.remote
def fail(value: int) -> None:
    raise KeyError(value)


@ray.remote(max_retries=3, retry_exceptions=[OSError])
def fail_once(marker: str, value: int) -> int:
    path = Path(marker)
    if not path.exists():
        path.touch()
        raise OSError(value)
    return value


@ray.remote
def call_for(actor: Any, caller: str, num_calls: int) -> int:
    """Calls an actor in the caller's name. Returns how many calls were answered right."""
    numbers = range(num_calls)
    refs = [actor.add.remote(caller, number, None, num_calls) for number in numbers]
    answers = ray.get(refs, timeout=NESTED_TIMEOUT_S)
    return sum(answer == (number, 0) for answer, number in zip(answers, numbers, strict=True))


@ray.remote
def pass_on(source: Any, target: Any, key: str) -> int:
    """Has one actor hand a reference to another through this task. Returns the checksum of its object."""
    box = ray.get(source.lend.remote(key), timeout=NESTED_TIMEOUT_S)
    ray.get(target.keep.remote(key, box), timeout=NESTED_TIMEOUT_S)
    return checksum(ray.get(box[0], timeout=NESTED_TIMEOUT_S))


# ---------------------------------------------------------------- actors


class _Counts:
    """Calls by caller; under a lock, since some actors have threads."""

    def __init__(self, is_ordered: bool) -> None:
        self._lock = threading.Lock()
        self._is_ordered = is_ordered
        self.total = 0
        self.by_caller: dict[str, int] = {}
        self.troubles: list[str] = []
        self.kept: dict[str, list[Any]] = {}

    def add(self, caller: str, number: int, num_calls: int) -> None:
        """num_calls: how many the caller makes in all, where it knows: behind the last of them it is
        forgotten."""
        with self._lock:
            expected = self.by_caller.get(caller, 0)
            if self._is_ordered and number != expected and len(self.troubles) < 10:
                self.troubles.append(f"call {number} of {caller} came when {expected} was due")
            self.by_caller[caller] = expected + 1
            self.total += 1
            if expected + 1 == num_calls:
                del self.by_caller[caller]

    def told(self) -> tuple[int, dict[str, int], list[str], int]:
        with self._lock:
            return self.total, dict(self.by_caller), list(self.troubles), len(self.kept)


class Plain:
    """One call at a time."""

    IS_ORDERED = True

    def __init__(self) -> None:
        self._counts = _Counts(self.IS_ORDERED)

    def add(self, caller: str, number: int, payload: Any = None, num_calls: int = 0) -> tuple[int, int]:
        """Returns (number, checksum of the payload, 0 without one)."""
        self._counts.add(caller, number, num_calls)
        return number, 0 if payload is None else checksum(payload)

    def told(self) -> tuple[int, dict[str, int], list[str], int]:
        """(calls of add, by caller who is not done, what went wrong, boxes kept)."""
        return self._counts.told()

    def keep(self, key: str, box: list[Any]) -> None:
        self._counts.kept[key] = box

    def lend(self, key: str) -> list[Any]:
        return self._counts.kept[key]

    def read(self, key: str) -> int:
        return checksum(ray.get(self._counts.kept[key][0], timeout=NESTED_TIMEOUT_S))

    def drop(self, key: str) -> None:
        del self._counts.kept[key]


class Threaded(Plain):
    """Calls may overtake each other, also those that still wait for their arguments."""

    IS_ORDERED = False


class Async:
    """The same with coroutines."""

    def __init__(self) -> None:
        self._counts = _Counts(is_ordered=False)

    async def add(self, caller: str, number: int, payload: Any = None, num_calls: int = 0) -> tuple[int, int]:
        self._counts.add(caller, number, num_calls)
        await asyncio.sleep(0.001 * (number % 3))
        return number, 0 if payload is None else checksum(payload)

    async def told(self) -> tuple[int, dict[str, int], list[str], int]:
        return self._counts.told()

    async def keep(self, key: str, box: list[Any]) -> None:
        self._counts.kept[key] = box

    async def lend(self, key: str) -> list[Any]:
        return self._counts.kept[key]

    async def read(self, key: str) -> int:
        return checksum(await self._counts.kept[key][0])

    async def drop(self, key: str) -> None:
        del self._counts.kept[key]


class Bus:
    """Streams what is published to whoever subscribed."""

    def __init__(self) -> None:
        self._queues: list[asyncio.Queue[Any]] = []

    async def publish(self, item: Any) -> None:
        for queue in self._queues:
            queue.put_nowait(item)

    async def count(self) -> int:
        return len(self._queues)

    async def subscribe(self, size_bytes: int) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.append(queue)
        while (item := await queue.get()) is not None:
            yield item, b"x" * size_bytes

    async def items(self, count: int, size_bytes: int) -> Any:
        for number in range(count):
            yield number, b"x" * size_bytes
            if number % 7 == 0:
                await asyncio.sleep(0)


class Gate:
    """Calls that take as long as they are told."""

    def nap(self, seconds: float) -> float:
        threading.Event().wait(seconds)
        return seconds

    def until(self, path: str) -> str:
        while not os.path.exists(path):
            threading.Event().wait(0.01)
        return path


class Mortal:
    """Kills its process on demand; its owner lets it be restarted."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def add_one(self, value: int) -> int:
        return value + 1

    def die_once(self, marker: str, value: int) -> int:
        path = Path(marker)
        if not path.exists():
            path.touch()
            os.kill(self.pid, signal.SIGKILL)
        return value


KINDS: list[tuple[type, dict[str, Any]]] = [
    (Plain, {}),
    (Async, {}),
    (Threaded, {"max_concurrency": 4}),
    (Plain, {"name": True}),
]
"""In turn: the class, and its options; `name` stands for one of its own."""


def start_actor(index: int, prefix: str) -> Any:
    """The actor number `index` of a driver."""
    kind, options = KINDS[index % len(KINDS)]
    if "name" in options:
        options = {**options, "name": f"{prefix}-{index}"}
    return ray.remote(kind).options(num_cpus=0, **options).remote()

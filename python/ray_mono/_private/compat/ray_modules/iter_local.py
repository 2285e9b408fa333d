"""`LocalIterator` of `ray.util.iter`: an iteration in one process. Until it begins it is only described, and
can be sent to another process.

It has a base, which makes an iterator, and steps, each of which takes an iterator and gives one. A base is
called with a timeout: None, or how many seconds it may wait for an item. After that it yields NOT_READY,
which every step hands on. So `union` can read from whichever of its parts has something, in one thread.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import ray_mono as ray

Base = Callable[[float | None], Iterator[Any]]
Step = Callable[[Iterator[Any]], Iterator[Any]]

PULLED_MAX = 100
"""What `union` takes at once of a part with the weight "*"."""
PAUSE_S = 0.001


class _NextValueNotReady(Exception):  # noqa: N818 - Ray's name, which programs compare with
    """Stands in an iteration for an item that is not there yet."""


NOT_READY = _NextValueNotReady()


class Source:
    """Which actor the latest item came from; shared by all that is made of one iteration."""

    actor: Any = None


class LocalIterator:
    """To be read by one process. `iter` and `next` begin it; every other method describes another."""

    def __init__(
        self,
        base_iterator: Base,
        steps: Sequence[Step] = (),
        timeout: float | None = None,
        name: str = "unknown",
        source: Source | None = None,
    ) -> None:
        self.name = name
        self._base = base_iterator
        self._steps = tuple(steps)
        self._timeout = timeout
        self._source = source or Source()
        self._running: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._running is None:
            self._running = self._begin()
        return self._running

    def __next__(self) -> Any:
        return next(iter(self))

    def __repr__(self) -> str:
        return f"LocalIterator[{self.name}]"

    def _begin(self) -> Iterator[Any]:
        running = self._base(self._timeout)
        for step in self._steps:
            running = step(running)
        return running

    def _with(self, step: Step, said: str) -> LocalIterator:
        return LocalIterator(
            self._base, (*self._steps, step), name=f"{self.name}.{said}", source=self._source
        )

    def _again(self, timeout: float | None) -> LocalIterator:
        return LocalIterator(self._base, self._steps, timeout, self.name, self._source)

    def transform(self, fn: Step) -> LocalIterator:
        """fn takes the whole iterator and hands on each _NextValueNotReady in it."""
        return self._with(partial(_transformed, fn), "transform()")

    def for_each(
        self, fn: Callable[[Any], Any], max_concurrency: int = 1, resources: Mapping[str, Any] | None = None
    ) -> LocalIterator:
        """fn of each item.

        Args:
            max_concurrency: 1 runs fn here, in order. More runs it in so many tasks at once (0: as many as
                there are items), and gives the results as the tasks end.
            resources: the options of these tasks.
        """
        if max_concurrency < 0:
            raise ValueError(f"max_concurrency must be at least 0, got {max_concurrency!r}")
        if max_concurrency == 1:
            return self._with(partial(_each, fn), "for_each()")
        return self._with(partial(_as_tasks, fn, max_concurrency, dict(resources or {})), "for_each()")

    def filter(self, fn: Callable[[Any], bool]) -> LocalIterator:
        return self._with(partial(_chosen, fn), "filter()")

    def batch(self, n: int) -> LocalIterator:
        """Lists of n items, of which the last may be shorter."""
        return self._with(partial(_batches, n), f"batch({n})")

    def flatten(self) -> LocalIterator:
        return self._with(_flat, "flatten()")

    def combine(self, fn: Callable[[Any], Iterable[Any]]) -> LocalIterator:
        """Every item of what fn gives for each item."""
        combined = self.for_each(fn).flatten()
        combined.name = f"{self.name}.combine()"
        return combined

    def shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> LocalIterator:
        """Gives random items of a buffer that it keeps filled. All are shuffled if the buffer holds all."""
        said = f"shuffle(shuffle_buffer_size={shuffle_buffer_size}, seed={seed})"
        return self._with(partial(_shuffled, shuffle_buffer_size, seed), said)

    def zip_with_source_actor(self) -> LocalIterator:
        """(actor, item) of what was gathered asynchronously.

        Reading raises ValueError for what came from no actor.
        """
        return self._with(partial(_with_actor, self._source), "zip_with_source_actor()")

    def take(self, n: int) -> list[Any]:
        return list(islice(self, n))

    def show(self, n: int = 20) -> None:
        """Prints the first n items."""
        for item in islice(self, n):
            print(item)

    def duplicate(self, n: int) -> list[LocalIterator]:
        """n iterators, each with every item, to be read by this process.

        What one of them has not taken is kept for it.
        """
        if n < 2:
            raise ValueError(f"the number of copies must be at least 2, got {n!r}")
        kept: list[deque[Any]] = [deque() for _ in range(n)]
        copies = (partial(_copy, self, kept, number) for number in range(n))
        return [
            LocalIterator(copy, name=f"{self.name}.duplicate[{number}]", source=self._source)
            for number, copy in enumerate(copies)
        ]

    def union(
        self,
        *others: LocalIterator,
        deterministic: bool = False,
        round_robin_weights: Sequence[float | str] | None = None,
    ) -> LocalIterator:
        """Items of all, as they are ready.

        Args:
            deterministic: one item of each in turn, for which it waits.
            round_robin_weights: how many items of each in turn, on average, for which it waits. "*": those
                that are ready.
        """
        parts = [self, *others]
        for part in parts:
            if not isinstance(part, LocalIterator):
                raise ValueError(f"union takes LocalIterators, got {part!r} of type {type(part).__name__}")
        weights = list(round_robin_weights or ())
        if weights and len(weights) != len(parts):
            raise ValueError(
                f"round_robin_weights must have one weight for each of {len(parts)}, got {weights!r}"
            )
        if not weights:
            # Ready ones are not waited for, and give one item in turn.
            weights = [1] * len(parts)
            timeouts = [None if deterministic else 0.0] * len(parts)
        else:
            timeouts = [0.0 if weight == "*" else None for weight in weights]
        read = [part._again(timeout) for part, timeout in zip(parts, timeouts, strict=True)]
        name = f"LocalUnion[{', '.join(map(str, parts))}]"
        return LocalIterator(partial(_union, list(zip(weights, read, strict=True))), name=name)


# ---- steps


def _transformed(fn: Step, items: Iterator[Any]) -> Iterator[Any]:
    yield from fn(items)


def _each(fn: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
            continue
        # A function may say itself that it has nothing yet: then it is called again.
        while isinstance(result := fn(item), _NextValueNotReady):
            yield result
        yield result


def _as_tasks(
    fn: Callable[[Any], Any], most: int, options: dict[str, Any], items: Iterator[Any]
) -> Iterator[Any]:
    function = ray.remote(fn).options(**options)
    running: list[Any] = []
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
            continue
        if most and len(running) >= most:
            done, running = ray.wait(running)
            yield from ray.get(done)
        running.append(function.remote(item))
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)


def _chosen(fn: Callable[[Any], bool], items: Iterator[Any]) -> Iterator[Any]:
    return (item for item in items if isinstance(item, _NextValueNotReady) or fn(item))


def _batches(size: int, items: Iterator[Any]) -> Iterator[Any]:
    batch: list[Any] = []
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
            continue
        batch.append(item)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _flat(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
        else:
            yield from item


def _shuffled(size: int, seed: int | None, items: Iterator[Any]) -> Iterator[Any]:
    rng = random.Random(seed)
    buffer: list[Any] = []
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
            continue
        buffer.append(item)
        if len(buffer) >= size:
            yield buffer.pop(rng.randrange(len(buffer)))
    while buffer:
        yield buffer.pop(rng.randrange(len(buffer)))


def _with_actor(source: Source, items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, _NextValueNotReady):
            yield item
        elif source.actor is None:
            raise ValueError("zip_with_source_actor() needs items that gather_async() or get_shard() brought")
        else:
            yield source.actor, item


# ---- bases


def _copy(
    original: LocalIterator, kept: list[deque[Any]], number: int, timeout: float | None
) -> Iterator[Any]:
    mine = kept[number]
    while True:
        if not mine:
            if timeout is not None and any(kept):
                # Another copy still has items to give, and this one must not wait. Let the other one go on
                # first: each item read here would be kept for it, too.
                yield NOT_READY
                continue
            if original._running is None:
                original._timeout = timeout
            try:
                item = next(original)
            except StopIteration:
                return
            if isinstance(item, _NextValueNotReady):
                # It is of no use to the others, which may wait.
                if timeout is None:
                    time.sleep(PAUSE_S)
                else:
                    yield item
                continue
            for each in kept:
                each.append(item)
        yield mine.popleft()


def _union(parts: list[tuple[float | str, LocalIterator]], timeout: float | None) -> Iterator[Any]:
    parts = list(parts)
    while parts:
        is_idle = True
        for weight, part in list(parts):
            for _ in range(_whole(weight)):
                item = next(part, parts)
                if item is parts:
                    parts.remove((weight, part))
                if item is parts or isinstance(item, _NextValueNotReady):
                    break
                is_idle = False
                yield item
        if timeout is not None:
            yield NOT_READY
        elif is_idle and parts:
            time.sleep(PAUSE_S)


def _whole(weight: float | str) -> int:
    """A whole number of items, which on average is the weight."""
    if isinstance(weight, str):
        return PULLED_MAX
    return int(weight) + (random.random() < weight % 1)

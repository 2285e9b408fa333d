"""`ray.util.iter`: iterations over items that actors make, each its part (a shard). Ray is about to remove
it, but libraries still subclass its worker.

A ParallelIterator is sets of actors, each with the steps (iter_local.py) that its actors do to their items.
Nothing runs until it is gathered. Then each actor is told the steps, and asked for items. An actor that has
no more raises StopIteration, in classes that inherit from the worker, too; whoever asks an actor by hand
looks for that. A batch may be empty.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import ray_mono as ray
from ray_mono._private.compat.ray_modules.iter_local import (
    NOT_READY,
    LocalIterator,
    Source,
    Step,
    _NextValueNotReady,
)

__all__ = [
    "LocalIterator",
    "ParallelIterator",
    "ParallelIteratorWorker",
    "_NextValueNotReady",
    "from_actors",
    "from_items",
    "from_iterators",
    "from_range",
]

Describe = Callable[[LocalIterator], LocalIterator]
"""What a LocalIterator becomes: how a shard's items are transformed, by the methods of that class."""


def from_items(items: Sequence[Any], num_shards: int = 2, repeat: bool = False) -> ParallelIterator:
    """Gives the items to num_shards actors in turn. repeat: each begins again at its end."""
    kind = type(items[0]).__name__ if items else "None"
    shards = [list(items[number::num_shards]) for number in range(num_shards)]
    return from_iterators(shards, repeat, f"from_items[{kind}, {len(items)}, {_said(num_shards, repeat)}]")


def from_range(n: int, num_shards: int = 2, repeat: bool = False) -> ParallelIterator:
    """Gives the numbers below n to num_shards actors, in parts. The last one also has what is left over."""
    size = n // num_shards
    starts = [number * size for number in range(num_shards)]
    shards = [range(start, end) for start, end in zip(starts, [*starts[1:], n], strict=True)]
    return from_iterators(shards, repeat, f"from_range[{n}, {_said(num_shards, repeat)}]")


def from_iterators(
    generators: Sequence[Any], repeat: bool = False, name: str | None = None
) -> ParallelIterator:
    """Makes an actor for each iterable, or function that makes one."""
    actors = [ray.remote(ParallelIteratorWorker).remote(each, repeat) for each in generators]
    return from_actors(actors, name or f"from_iterators[{_said(len(actors), repeat)}]")


def from_actors(actors: Sequence[Any], name: str | None = None) -> ParallelIterator:
    """Actors whose classes inherit from ParallelIteratorWorker."""
    return ParallelIterator([(tuple(actors), ())], name or f"from_actors[shards={len(actors)}]")


def _said(num_shards: int, repeat: bool) -> str:
    return f"shards={num_shards}{', repeat=True' if repeat else ''}"


class ParallelIterator:
    """Can be sent to tasks and actors, and is read by one process.

    Its methods describe another iteration, and work as those of LocalIterator.
    """

    def __init__(
        self,
        actor_sets: Sequence[tuple[tuple[Any, ...], tuple[Describe, ...]]],
        name: str,
        parents: Sequence[ParallelIterator] = (),
    ) -> None:
        """
        Args:
            actor_sets: (actors, their steps).
            parents: these actors ask the actors of those, which end when nobody refers to them.
        """
        self.name = name
        self._actor_sets = list(actor_sets)
        self._parents = list(parents)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError(f"{self!r} is read through gather_sync() or gather_async()")

    def __repr__(self) -> str:
        return f"ParallelIterator[{self.name}]"

    def _with(self, describe: Describe, said: str) -> ParallelIterator:
        sets = [(actors, (*steps, describe)) for actors, steps in self._actor_sets]
        return ParallelIterator(sets, f"{self.name}.{said}", self._parents)

    def transform(self, fn: Step) -> ParallelIterator:
        return self._with(lambda items: items.transform(fn), "transform()")

    def for_each(
        self, fn: Callable[[Any], Any], max_concurrency: int = 1, resources: Mapping[str, Any] | None = None
    ) -> ParallelIterator:
        if max_concurrency < 0:
            raise ValueError(f"max_concurrency must be at least 0, got {max_concurrency!r}")
        return self._with(lambda items: items.for_each(fn, max_concurrency, resources), "for_each()")

    def filter(self, fn: Callable[[Any], bool]) -> ParallelIterator:
        return self._with(lambda items: items.filter(fn), "filter()")

    def batch(self, n: int) -> ParallelIterator:
        return self._with(lambda items: items.batch(n), f"batch({n})")

    def flatten(self) -> ParallelIterator:
        return self._with(lambda items: items.flatten(), "flatten()")

    def combine(self, fn: Callable[[Any], Iterable[Any]]) -> ParallelIterator:
        return self._with(lambda items: items.combine(fn), "combine()")

    def local_shuffle(self, shuffle_buffer_size: int, seed: int | None = None) -> ParallelIterator:
        """Each shard by itself."""
        said = f"local_shuffle(shuffle_buffer_size={shuffle_buffer_size}, seed={seed})"
        return self._with(lambda items: items.shuffle(shuffle_buffer_size, seed), said)

    def repartition(self, num_partitions: int, batch_ms: int = 0) -> ParallelIterator:
        """Makes num_partitions actors, which share the items of these in turn."""
        asked = _told(self._actor_sets)
        bases = [partial(_sliced, asked, num_partitions, start, batch_ms) for start in range(num_partitions)]
        name = f"{self.name}.repartition[num_partitions={num_partitions}]"
        return ParallelIterator(from_iterators(bases)._actor_sets, name, [self])

    def union(self, other: ParallelIterator) -> ParallelIterator:
        if not isinstance(other, ParallelIterator):
            raise TypeError(f"union takes a ParallelIterator, got {other!r} of type {type(other).__name__}")
        sets = self._actor_sets + other._actor_sets
        return ParallelIterator(sets, f"ParallelUnion[{self}, {other}]", self._parents + other._parents)

    def select_shards(self, shards_to_keep: Sequence[int]) -> ParallelIterator:
        """Only these shards. Raises ValueError for none, for one that is not there, and after a union."""
        if len(self._actor_sets) > 1:
            raise ValueError("select_shards() cannot follow union()")
        (actors, steps) = self._actor_sets[0]
        if not shards_to_keep or not set(shards_to_keep) <= set(range(len(actors))):
            raise ValueError(
                f"shards_to_keep must name some of 0 to {len(actors) - 1}, got {shards_to_keep!r}"
            )
        kept = tuple(actor for number, actor in enumerate(actors) if number in shards_to_keep)
        return ParallelIterator([(kept, steps)], f"{self}.select_shards({len(kept)} total)", self._parents)

    def num_shards(self) -> int:
        return sum(len(actors) for actors, _ in self._actor_sets)

    def shards(self) -> list[LocalIterator]:
        return [self.get_shard(number) for number in range(self.num_shards())]

    def get_shard(self, shard_index: int, batch_ms: int = 0, num_async: int = 1) -> LocalIterator:
        """That shard's items, in order. Raises ValueError where there is none of this index."""
        _check(batch_ms, num_async)
        every = [((actor,), steps) for actors, steps in self._actor_sets for actor in actors]
        if not 0 <= shard_index < len(every):
            raise ValueError(f"shard_index must be from 0 to {len(every) - 1}, got {shard_index!r}")
        source = Source()
        base = partial(_in_order, [every[shard_index]], batch_ms, num_async, source)
        return LocalIterator(base, name=f"{self.name}.shard[{shard_index}]", source=source)

    def batch_across_shards(self) -> LocalIterator:
        """Lists of one item of each shard, those that have ended left out."""
        return LocalIterator(partial(_across, self._actor_sets), name=f"{self}.batch_across_shards()")

    def gather_sync(self) -> LocalIterator:
        """An item of each shard in turn."""
        gathered = self.batch_across_shards().flatten()
        gathered.name = f"{self}.gather_sync()"
        return gathered

    def gather_async(self, batch_ms: int = 0, num_async: int = 1) -> LocalIterator:
        """All items as they come.

        Args:
            batch_ms: for how long a shard gathers items before it answers; 0: each by itself.
            num_async: how many questions to a shard may be open.
        """
        _check(batch_ms, num_async)
        source = Source()
        base = partial(_as_they_come, self._actor_sets, batch_ms, num_async, source)
        return LocalIterator(base, name=f"{self}.gather_async()", source=source)

    def take(self, n: int) -> list[Any]:
        return self.gather_sync().take(n)

    def show(self, n: int = 20) -> None:
        self.gather_sync().show(n)


def _check(batch_ms: int, num_async: int) -> None:
    if batch_ms < 0 or num_async < 1:
        raise ValueError(
            f"batch_ms must be at least 0 and num_async at least 1, got {batch_ms!r} and {num_async!r}"
        )


class ParallelIteratorWorker:
    """The actor behind a shard. Classes that inherit from it call its __init__."""

    def __init__(self, item_generator: Any, repeat: bool) -> None:
        """item_generator: an iterable, or a function that makes one. repeat: begin again at its end."""
        self._all_items = _repeated(item_generator) if repeat else _made(item_generator)
        self._items: Iterator[Any] | None = None
        self._slices: list[deque[Any]] = []

    def par_iter_init(self, steps: Sequence[Describe]) -> None:
        """From here on `steps` are done to the items. It begins with the first item, if the iterable can be
        read again."""
        items = LocalIterator(partial(_of, self._all_items))
        for describe in steps:
            items = describe(items)
        self._items = iter(items)
        self._slices.clear()

    def par_iter_next(self) -> Any:
        """Raises StopIteration after the last one."""
        if self._items is None:
            raise RuntimeError("par_iter_init() comes first")
        return next(self._items)

    def par_iter_next_batch(self, batch_ms: int) -> list[Any]:
        """What comes within so many milliseconds, at least one item; 0: one item.

        Raises StopIteration after the last one.
        """
        return _until(batch_ms, self.par_iter_next)

    def par_iter_slice(self, step: int, start: int) -> Any:
        """The next item whose number, divided by step, leaves start.

        Raises StopIteration after the last one.
        """
        while len(self._slices) < step:
            self._slices.append(deque())
        if not self._slices[start]:
            for slice_ in self._slices[:step]:
                try:
                    slice_.append(self.par_iter_next())
                except StopIteration:
                    break
        if not self._slices[start]:
            raise StopIteration
        return self._slices[start].popleft()

    def par_iter_slice_batch(self, step: int, start: int, batch_ms: int) -> list[Any]:
        """As par_iter_next_batch, of par_iter_slice."""
        return _until(batch_ms, lambda: self.par_iter_slice(step, start))


def _made(given: Any) -> Iterable[Any]:
    return given() if callable(given) else given


def _repeated(given: Any) -> Iterator[Any]:
    """Its items again and again. It ends only if there are none."""
    has_more = True
    while has_more:
        has_more = False
        items = _made(given)
        if items is given and iter(items) is items:
            raise ValueError(f"{items!r} can be read once: to repeat it, give a function that makes it")
        for item in items:
            has_more = True
            yield item


def _of(items: Iterable[Any], timeout: float | None) -> Iterator[Any]:
    return iter(items)


def _until(batch_ms: int, take: Callable[[], Any]) -> list[Any]:
    end_s = time.monotonic() + batch_ms / 1000
    batch: list[Any] = []
    while not batch or time.monotonic() < end_s:
        try:
            batch.append(take())
        except StopIteration:
            if not batch:
                raise
            break
    return batch


# ---- bases of LocalIterators

ENDED = object()


def _answer(ref: Any) -> Any:
    """What the actor gave, or ENDED."""
    try:
        return ray.get(ref)
    except StopIteration:
        return ENDED


def _told(actor_sets: Sequence[tuple[tuple[Any, ...], tuple[Describe, ...]]]) -> list[Any]:
    """The actors, each of which knows its steps."""
    ray.get([actor.par_iter_init.remote(steps) for actors, steps in actor_sets for actor in actors])
    return [actor for actors, _ in actor_sets for actor in actors]


def _across(actor_sets: Any, timeout: float | None) -> Iterator[Any]:
    actors = _told(actor_sets)
    while actors:
        answers = [actor.par_iter_next.remote() for actor in actors]
        while timeout is not None and ray.wait(answers, num_returns=len(answers), timeout=timeout)[1]:
            yield NOT_READY
        items = [_answer(ref) for ref in answers]
        actors = [actor for actor, item in zip(actors, items, strict=True) if item is not ENDED]
        if row := [item for item in items if item is not ENDED]:
            yield row


def _in_order(
    actor_sets: Any, batch_ms: int, num_async: int, source: Source, timeout: float | None
) -> Iterator[Any]:
    [actor] = _told(actor_sets)
    answers = deque(actor.par_iter_next_batch.remote(batch_ms) for _ in range(num_async))
    while True:
        if timeout is not None and not ray.wait([answers[0]], timeout=timeout)[0]:
            yield NOT_READY
            continue
        batch = _answer(answers.popleft())
        if batch is ENDED:
            return
        answers.append(actor.par_iter_next_batch.remote(batch_ms))
        source.actor = actor
        yield from batch


def _as_they_come(
    actor_sets: Any, batch_ms: int, num_async: int, source: Source, timeout: float | None
) -> Iterator[Any]:
    def ask(actor: Any) -> Any:
        return actor.par_iter_next_batch.remote(batch_ms)

    return _answers(_told(actor_sets) * num_async, ask, source, timeout)


def _sliced(asked: list[Any], step: int, start: int, batch_ms: int) -> Iterator[Any]:
    return _answers(
        asked, lambda actor: actor.par_iter_slice_batch.remote(step, start, batch_ms), Source(), None
    )


def _answers(
    actors: list[Any], ask: Callable[[Any], Any], source: Source, timeout: float | None
) -> Iterator[Any]:
    """What the actors answer, each asked again until it has nothing more."""
    answers = {ask(actor): actor for actor in actors}
    while answers:
        ready, _ = ray.wait(list(answers), timeout=timeout)
        for ref in ready:
            source.actor = actor = answers.pop(ref)
            batch = _answer(ref)
            if batch is not ENDED:
                answers[ask(actor)] = actor
                yield from batch
        if timeout is not None:
            yield NOT_READY

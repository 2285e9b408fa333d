"""ActorPool: a fixed set of actors, and work for whichever of them is free.

The driver's side only: the pool knows who is idle, which reference belongs to whom, and in which order the
values were given. An actor has one call of the pool at a time; what finds no idle actor waits in a queue
here, and starts when a result has been taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ray_mono._private.worker import get, wait
from ray_mono.core_worker.object_ref import ObjectRef

if TYPE_CHECKING:
    from ray_mono.actor import ActorHandle

V = TypeVar("V")
__tracebackhide__ = True
_Call = Callable[["ActorHandle[Any]", V], Any]


class ActorPool:
    """Work for a set of actors of one kind: `pool.map(lambda actor, value: actor.double.remote(value), [1, 2,
    3])`.

    Not safe for use by several threads at a time.
    """

    def __init__(self, actors: list[Any]) -> None:
        """actors: handles; the pool only borrows them, and they may be of different classes.

        Raises TypeError for anything else.
        """
        if not isinstance(actors, Iterable):
            raise TypeError(
                f"actors must be a list of actors' handles, got {actors!r} of type {type(actors).__name__}"
            )
        self._idle = list(actors)
        self._busy: dict[ObjectRef[Any], tuple[int, ActorHandle[Any], Any]] = {}
        """By reference: the position of its value among all that started, the actor, and what fn returned;
        in the order in which they started."""
        self._refs: dict[int, ObjectRef[Any]] = {}
        """Results that nobody has taken yet, by position."""
        self._next_position = 0
        """The position of the next call to start."""
        self._next_return = 0
        """The position of what get_next() returns next."""
        self._waiting: deque[tuple[_Call[Any], Any]] = deque()

    def map(self, fn: _Call[V], values: Iterable[V]) -> Iterator[Any]:
        """The results for the values, in their order.

        What was submitted before is finished and thrown away first. Work starts at once, not when the
        iterator is read.

        Args:
            fn: takes an actor and a value, and returns the reference of a call.

        The iterator raises what a call raised.
        """
        self._start_over(fn, values)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next()

        return results()

    def map_unordered(self, fn: _Call[V], values: Iterable[V]) -> Iterator[Any]:
        """As `map`, but each result as soon as it is there."""
        self._start_over(fn, values)

        def results() -> Iterator[Any]:
            while self.has_next():
                yield self.get_next_unordered()

        return results()

    def _start_over(self, fn: _Call[V], values: Iterable[V]) -> None:
        while self.has_next():
            try:
                self.get_next_unordered(timeout=0)
            except TimeoutError:
                # It would be in the way of the new results, so it is waited for however long it takes.
                wait([next(iter(self._busy))])
        for value in values:
            self.submit(fn, value)

    def submit(self, fn: _Call[V], value: V) -> None:
        """Starts `fn(actor, value)` on an idle actor, or as soon as one is.

        Raises TypeError if fn returns no reference.
        """
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle[-1]
        result = fn(actor, value)
        # Of a call with several returns the last stands for all: they come together.
        ref = result[-1] if isinstance(result, list) and result else result
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"fn must return the reference of a call, as in actor.method.remote(value), got {result!r}"
            )
        self._idle.pop()
        self._busy[ref] = (self._next_position, actor, result)
        self._refs[self._next_position] = ref
        self._next_position += 1

    def has_next(self) -> bool:
        """Whether there are results to take, finished or not."""
        return bool(self._busy)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The result for the value that was submitted first; waits for it.

        Args:
            timeout: in seconds; None waits as long as it takes.
            ignore_if_timedout: after a timeout the result is forgotten and its actor counts as idle.

        Raises StopIteration where nothing is left, TimeoutError, ValueError after get_next_unordered() has
        taken results out of order, and what the call raised.
        """
        if not self.has_next():
            raise StopIteration("get_next(): every result has been taken")
        if self._next_return not in self._refs:
            raise ValueError(
                "get_next() cannot follow get_next_unordered(): which result is next is not known"
            )
        ref = self._refs[self._next_return]
        is_ready = bool(wait([ref], timeout=timeout)[0])
        if not is_ready and not ignore_if_timedout:
            raise TimeoutError(f"get_next(): no result within {timeout!r} s")
        return self._take(ref, is_ready, timeout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Any result, the first that is there. Arguments and errors as for get_next, without its order.

        With ignore_if_timedout, it is the oldest of the results that is forgotten.
        """
        if not self.has_next():
            raise StopIteration("get_next_unordered(): every result has been taken")
        ready, _ = wait(list(self._busy), num_returns=1, timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError(f"get_next_unordered(): no result within {timeout!r} s")
        ref = ready[0] if ready else next(iter(self._busy))
        return self._take(ref, bool(ready), timeout)

    def _take(self, ref: ObjectRef[Any], is_ready: bool, timeout: float | None) -> Any:
        position, actor, result = self._busy.pop(ref)
        del self._refs[position]
        # Unordered results leave gaps, and only a result that is there makes get_next() possible again.
        self._next_return = max(self._next_return, position + 1)
        self._return_actor(actor)
        if not is_ready:
            raise TimeoutError(f"no result within {timeout!r} s; {ref!r} is ignored from now on")
        return get(result)

    def _return_actor(self, actor: ActorHandle[Any]) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> ActorHandle[Any] | None:
        """Takes an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: ActorHandle[Any]) -> None:
        """Adds an actor. Raises ValueError if the pool has it already."""
        if actor in self._idle or any(actor == busy for _, busy, _ in self._busy.values()):
            raise ValueError(f"{actor!r} is in this pool already")
        self._return_actor(actor)

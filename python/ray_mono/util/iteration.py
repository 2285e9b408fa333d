"""Results one by one, in the order in which they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray_mono._private.worker import get, wait

if TYPE_CHECKING:
    from ray_mono.actor import ActorMethod
    from ray_mono.core_worker.object_ref import ObjectRef
    from ray_mono.remote_function import RemoteFunction


def as_completed(
    refs: Sequence[ObjectRef[Any]], *, chunk_size: int = 10, yield_obj_refs: bool = False, **kwargs: Any
) -> Iterator[Any]:
    """The values of the references (or, with yield_obj_refs, these) as they are ready.

    Args:
        chunk_size: how many to take at once at most.
        kwargs: of `wait`, besides num_returns: timeout (seconds for each chunk, after which GetTimeoutError
            is raised), fetch_local.

    Raises what `get` raises, when the reference's turn comes; ValueError for a chunk_size below 1 or kwargs
    of other names.
    """
    _check(chunk_size, kwargs)
    return _completed(list(refs), chunk_size, yield_obj_refs, kwargs)


def _completed(
    pending: list[ObjectRef[Any]], chunk_size: int, yield_obj_refs: bool, options: dict[str, Any]
) -> Iterator[Any]:
    while pending:
        ready, pending = _some_ready(pending, chunk_size, options)
        yield from ready if yield_obj_refs else get(ready)


def _some_ready(
    pending: list[ObjectRef[Any]], chunk_size: int, options: dict[str, Any]
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    from ray_mono.exceptions import GetTimeoutError

    ready, rest = wait(pending, num_returns=min(chunk_size, len(pending)), **options)
    if not ready:
        raise GetTimeoutError(
            f"none of {len(pending)} references was ready within {options.get('timeout')} s"
        )
    return ready, rest


def map_unordered(
    fn: RemoteFunction[Any] | ActorMethod,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    **kwargs: Any,
) -> Iterator[Any]:
    """The results of `fn.remote(item)` as they are ready.

    Args:
        backpressure_size: how many calls may be unfinished at once; None: all are made at the start.
        chunk_size, yield_obj_refs, kwargs: as for as_completed.

    Raises as as_completed does, and ValueError for a backpressure_size below 1.
    """
    _check(chunk_size, kwargs)
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(
            f"backpressure_size must be at least 1, or None for no limit, got {backpressure_size!r}"
        )
    calls = (fn.remote(item) for item in items)
    return _mapped(calls, backpressure_size, chunk_size, yield_obj_refs, kwargs)


def _mapped(
    calls: Iterator[ObjectRef[Any]],
    most: int | None,
    chunk_size: int,
    yield_obj_refs: bool,
    options: dict[str, Any],
) -> Iterator[Any]:
    pending = list(calls) if most is None else list(islice(calls, most))
    while pending:
        ready, pending = _some_ready(pending, chunk_size, options)
        yield from ready if yield_obj_refs else get(ready)
        if most is not None:
            pending += islice(calls, most - len(pending))


def _check(chunk_size: int, options: dict[str, Any]) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size!r}")
    if unknown := sorted(options.keys() - {"timeout", "fetch_local"}):
        raise ValueError(f"accepted are timeout and fetch_local, as by wait(), got {', '.join(unknown)}")

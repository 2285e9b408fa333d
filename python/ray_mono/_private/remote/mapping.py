"""`map`, of functions and of actors' methods: what is the same for both. It is ours; Ray has none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ray_mono._private.argument_checks import plain
from ray_mono._private.remote.signature import CallSignature

AUTO = "auto"
_CORE_CHOOSES = 0


def chunk_of(chunk: Any) -> int:
    """As the core takes it. Raises TypeError and ValueError for what is no chunk."""
    if chunk == AUTO and isinstance(chunk, str):
        return _CORE_CHOOSES
    accepted = "it takes 'auto', or how many items travel together, an int of at least 1"
    number = plain(chunk)
    if not isinstance(number, int) or isinstance(number, bool):
        kind = TypeError if not isinstance(chunk, str) else ValueError
        raise kind(f"map() got chunk={chunk!r}: {accepted}")
    if number < 1:
        raise ValueError(f"map() got chunk={chunk!r}: {accepted}")
    return min(number, sys.maxsize)


def items_of(items: Iterable[Any], signature: CallSignature) -> list[Any]:
    """All of them, before anything is submitted: what the iterator raises leaves nothing behind. Raises
    TypeError where the function does not take one positional argument."""
    try:
        iterator = iter(items)
    except TypeError:
        if isinstance(items, Iterable):
            raise  # by its own __iter__
        what = type(items).__name__
        raise TypeError(f"map() of {signature.name}() takes an iterable of items, got {what}") from None
    given = list(iterator)
    if given:
        signature.check(given[:1], {})
    return given


def one_by_one(submit: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What `.remote()` gives for each of them."""
    refs: list[Any] = []
    with named_if_it_fails(refs):
        for item in items:
            refs.append(submit(item))
    return refs


@contextlib.contextmanager
def named_if_it_fails(refs: list[Any]) -> Iterator[None]:
    """What is raised meanwhile has what was submitted until then: `error.submitted`, a list."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            error.__dict__["submitted"] = list(refs)
        raise

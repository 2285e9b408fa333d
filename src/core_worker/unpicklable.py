"""Which part of a value keeps it from being pickled: the value is taken apart, and what fails by itself is taken apart in turn.

Only for errors: it pickles the value again, several times.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ray_mono.common import code_pickler

DEPTH_MAX = 4
# Of one value, so many parts are tried.
PARTS_MAX = 1000


def where(value: Any) -> str:
    """For the end of a message, e.g. "; its .engine.lock (a lock) does not". Empty where no part of it is the culprit."""
    path, culprit = "", value
    # A property of the value's may raise anything: what was found until then is said.
    with contextlib.suppress(Exception):
        for _ in range(DEPTH_MAX):
            step, part = _failing_part(culprit)
            path, culprit = path + step, part
    return f"; its {path} (a {type(culprit).__name__}) does not" if path else ""


def _failing_part(value: Any) -> tuple[str, Any]:
    """Raises StopIteration where each part by itself can be pickled."""
    tried = itertools.islice(parts(value), PARTS_MAX)
    return next((step, part) for step, _, part in tried if not pickles(part))


def pickles(value: Any) -> bool:
    try:
        code_pickler.dumps(value)
    except Exception:  # whatever pickling raises
        return False
    return True


def parts(value: Any) -> Iterator[tuple[str, str, Any]]:
    """(how a path goes on to it, its name, it): of a function what it uses, of a container its elements, of all their attributes."""
    if inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        for name, part in (*used.globals.items(), *used.nonlocals.items()):
            yield f"variable {name}", name, part
        return
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", repr(key), part
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"[{index}]", f"[{index}]", part
    for name, part in inspect.getmembers(value):
        if not (name.startswith("__") and name.endswith("__")) and not inspect.isbuiltin(part):
            yield f".{name}", name, part

"""Makes a scenario that fails smaller: whatever can be left out, so that it still fails alike, is left out.

Each part of it (faults, tasks, actors, ...) is tried without one half, without quarters, without single
elements (delta debugging, after Zeller and Hildebrandt), and each setting with its default, to any depth. It
begins again until a pass changes nothing, or the time is over. Two failures are alike if their first lines
are, but for numbers and ids.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from ray_mono.common.scheduling.resources import ResourceSet
from tests.simulation.scenario import Scenario

_NUMBERS_AND_IDS = re.compile(r"\b[0-9a-f]*\d[0-9a-f.]*\b")


@dataclass(frozen=True)
class Shrunk:
    """What is left of a scenario, and how it fails."""

    scenario: Scenario
    error: Exception
    num_runs: int


def shrink(
    scenario: Scenario, error: Exception, run: Callable[[Scenario], Exception | None], seconds: float
) -> Shrunk:
    """The smallest found within so many real seconds. error: how the scenario fails. run: a scenario's
    failure, or None."""
    end_s = time.monotonic() + seconds
    kind, left, num_runs = _kind_of(error), scenario, 0
    has_changed = True
    while has_changed:
        has_changed = False
        # What is tried depends on what is left, so it is asked for again after each success.
        tried: set[str] = set()
        candidates = _smaller(left)
        while (candidate := next(candidates, None)) is not None and time.monotonic() < end_s:
            if repr(candidate) in tried:
                continue
            tried.add(repr(candidate))
            failure = run(candidate)
            num_runs += 1
            if failure is not None and _kind_of(failure) == kind:
                left, error, has_changed = candidate, failure, True
                candidates = _smaller(left)
    return Shrunk(left, error, num_runs)


def _kind_of(error: Exception) -> tuple[str, str]:
    first_line = str(error).partition("\n")[0]
    return type(error).__name__, _NUMBERS_AND_IDS.sub("#", first_line)[:80]


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with less in them. The first node is the head's, and stays."""
    for fewer in _fewer(scenario.node_units[1:]):
        yield dataclasses.replace(scenario, node_units=(*scenario.node_units[:1], *fewer))
    yield from _plainer(scenario, Scenario(scenario.node_units, 1, ()))


def _plainer(value: Any, plain: Any) -> Iterator[Any]:
    """A dataclass with less in one of its fields, towards `plain`."""
    for field in dataclasses.fields(value):
        has, default = getattr(value, field.name), getattr(plain, field.name)
        if has == default:
            continue
        for less in _less(has, default):
            yield dataclasses.replace(value, **{field.name: less})


def _less(value: Any, default: Any) -> Iterator[Any]:
    if not isinstance(value, tuple) or default != ():
        yield default
        if dataclasses.is_dataclass(value):
            yield from _plainer(value, default)
        return
    yield from _fewer(value)
    yield from _plainer_inside(value)


def _plainer_inside(elements: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """As many, of which one is plainer."""
    for number, element in enumerate(elements):
        inner: Iterator[Any] = iter(())
        if dataclasses.is_dataclass(element):
            inner = _plainer(element, _plain(element))
        elif isinstance(element, tuple):
            inner = _plainer_inside(element)
        for plainer in inner:
            yield (*elements[:number], plainer, *elements[number + 1 :])


def _plain(element: Any) -> Any:
    """With defaults wherever there are some."""
    defaults = {field.name: _default_of(field) for field in dataclasses.fields(element)}
    needed = {name: getattr(element, name) for name, default in defaults.items() if default is MISSING}
    return type(element)(**needed)


def _fewer(elements: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    size = len(elements)
    while size:
        for start in range(0, len(elements), size):
            yield elements[:start] + elements[start + size :]
        size //= 2


# ---- as Python


def as_python(value: Any, indent: int = 0) -> str:
    """An expression that makes the value again, for a test: of dataclasses only what is not the default."""
    inside = " " * (indent + 4)
    match value:
        case ResourceSet():
            return f"ResourceSet.from_units({dict(value.to_units())!r})"
        case enum.Enum():
            return f"{type(value).__name__}.{value.name}"
        case tuple() if value and dataclasses.is_dataclass(value[0]):
            lines = "".join(f"{inside}{as_python(each, indent + 4)},\n" for each in value)
            return f"(\n{lines}{' ' * indent})"
        case tuple():
            inner = ", ".join(as_python(each, indent) for each in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        case _ if dataclasses.is_dataclass(value):
            given = [
                f"{field.name}={as_python(getattr(value, field.name), indent)}"
                for field in dataclasses.fields(value)
                if getattr(value, field.name) != _default_of(field)
            ]
            return f"{type(value).__name__}({', '.join(given)})"
        case _:
            return repr(value)


def _default_of(field: dataclasses.Field[Any]) -> Any:
    """MISSING where there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()

"""The part that keeps a value from being pickled is named by the way to it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono import cloudpickle
from ray_mono.core_worker.values import unpicklable
from tests.core_worker.scene import Scene

LOCK = threading.Lock()


class Engine:
    def __init__(self) -> None:
        self.lock = LOCK


class Conf:
    def __init__(self) -> None:
        self.engine = Engine()

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("slot",)

    def __init__(self) -> None:
        self.slot = LOCK


class OwnState:
    def __init__(self) -> None:
        self.left_out = LOCK

    def __getstate__(self) -> Any:
        return {"kept": Conf()}


@dataclasses.dataclass
class Data:
    field: Any


class Handle:
    """Its properties are no part of its pickle, nor is what its class has."""

    shared = LOCK

    def __init__(self) -> None:
        self.culprit = LOCK

    @property
    def a_lock(self) -> Any:
        return threading.Lock()


class Own(list[Any]):
    pass


CONF = Conf()


def helper() -> Any:
    return LOCK


def own_list() -> Any:
    made = Own([1])
    made.extra = LOCK  # type: ignore[attr-defined]
    return made


def closure() -> Callable[[], Any]:
    conf = Conf()
    return lambda: conf


def uses_it_inside() -> Any:
    def inner() -> Any:
        return [CONF for _ in range(3)]

    return inner


def with_default(x: int = 1, y: Any = LOCK, *, z: Any = None) -> None: ...


def method_class() -> type:
    class Local:
        def method(self) -> Any:
            return helper()

        @staticmethod
        def harmless() -> None: ...

    return Local


def circle() -> Any:
    value: dict[str, Any] = {}
    value["itself"] = value
    value["lock"] = LOCK
    return value


class Child:
    """Fails only for its way back."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


def way_back() -> Any:
    value: dict[str, Any] = {}
    value["child"] = Child(value)
    value["lock"] = LOCK
    return value


def with_attribute() -> Any:
    def function() -> None: ...

    function.kept = Conf()  # type: ignore[attr-defined]
    return function


CASES: list[tuple[Any, str]] = [
    (Conf(), ".engine.lock (a lock)"),
    ([Conf()], "[0].engine.lock (a lock)"),
    ({"a": [({"b": Conf()},)]}, "['a'][0][0]['b'].engine.lock (a lock)"),
    ({frozenset([LOCK]): 1}, f"key {frozenset([LOCK])!r}[0] (a lock)"),
    (Conf().method, ".__self__.engine.lock (a lock)"),
    ({"g": (i for i in "ab")}, "['g'] (a generator)"),
    (helper, "variable LOCK (a lock)"),
    (lambda: CONF.engine, "variable CONF.engine.lock (a lock)"),
    (lambda: helper(), "variable helper, its variable LOCK (a lock)"),
    (closure(), "variable conf.engine.lock (a lock)"),
    (uses_it_inside, "variable CONF.engine.lock (a lock)"),
    (with_default, "default of y (a lock)"),
    (with_attribute(), ".kept.engine.lock (a lock)"),
    (method_class(), ".method, its variable helper, its variable LOCK (a lock)"),
    (functools.partial(len, Conf()), ".args[0].engine.lock (a lock)"),
    (collections.deque([Conf()]), "[0].engine.lock (a lock)"),
    (Slotted(), ".slot (a lock)"),
    (OwnState(), ".kept.engine.lock (a lock)"),
    (Data(Conf()), ".field.engine.lock (a lock)"),
    (Handle(), ".culprit (a lock)"),
    (own_list(), ".extra (a lock)"),
    (ValueError(LOCK), ".__reduce__()[1][0] (a lock)"),
    ([threading.Thread()], "[0]._started._cond._lock (a lock)"),
    (circle(), "['lock'] (a lock)"),
    ([way_back()], "[0]['lock'] (a lock)"),
]


@pytest.fixture(autouse=True)
def by_value(request: pytest.FixtureRequest) -> Any:
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.mark.parametrize(("value", "path"), CASES, ids=[path for _, path in CASES])
def test_the_culprit_is_named_by_its_path(value: Any, path: str) -> None:
    assert unpicklable.where(value) == f"; its {path} does not"


@pytest.mark.parametrize("value", [LOCK, (i for i in "ab"), 1, {"a": [1]}], ids=repr)
def test_of_what_has_no_guilty_part_nothing_is_said(value: Any) -> None:
    assert unpicklable.where(value) == ""


def test_a_function_that_cannot_be_sent_names_what_it_uses() -> None:
    with pytest.raises(TypeError, match=r"function 'helper' .* its variable LOCK \(a lock\) does not"):
        Scene().core.export(helper, "function")

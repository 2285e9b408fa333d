"""Which methods an actor's calls run: those of its class, as it was before the constructor."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.core_worker.task_execution.actor_runtime import body_of, method_of


class Base:
    def inherited(self) -> str:
        return "its base's"


class Kind(Base):
    constant = 3

    def __init__(self) -> None:
        kind: Any = type(self)
        kind.method = lambda self: "patched"
        kind.added = lambda self: "added"
        Base.inherited = lambda self: "patched"  # type: ignore[method-assign]
        self.shadowed = "an attribute"  # type: ignore[assignment,method-assign]

    def method(self) -> str:
        return "the class's"

    def shadowed(self) -> str:
        return "the class's"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__

    @staticmethod
    def static() -> str:
        return "static"

    @property
    def given(self) -> Any:
        return lambda: "given"


def test_what_the_constructor_changes_in_the_class_or_the_instance_is_not_what_calls_run() -> None:
    body = body_of(Kind)
    instance = Kind()
    names = ("method", "inherited", "shadowed", "of_class", "static", "given")
    told = [method_of(instance, name, body)() for name in names]
    assert told == ["the class's", "its base's", "the class's", "Kind", "static", "given"]
    assert instance.method() == "patched"
    assert method_of(instance, "added", body)() == "added", "what the class had not is looked up"
    with pytest.raises(AttributeError):
        method_of(instance, "missing", body)

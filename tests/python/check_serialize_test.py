"""inspect_serializability finds what cannot be pickled, and serializers that users register."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import cloudpickle
from ray_mono.core_worker.values import serialization
from ray_mono.util.check_serialize import inspect_serializability

LOCK = threading.Lock()


def inspect(value: Any, **arguments: Any) -> tuple[bool, dict[tuple[str, ...], Any], str]:
    printed = io.StringIO()
    is_fine, failures = inspect_serializability(value, print_file=printed, **arguments)
    return is_fine, {failure.path: failure.obj for failure in failures}, printed.getvalue()


def test_what_pickles_is_fine() -> None:
    assert inspect([1, "a"])[:2] == (True, {})


def test_the_global_that_a_function_uses_is_found() -> None:
    lock = LOCK

    def uses_it() -> Any:
        return lock

    is_fine, failures, printed = inspect(uses_it, name="f")
    assert not is_fine and failures == {("f", "lock"): LOCK}
    assert "lock" in printed


def test_the_attribute_that_holds_it_is_found_and_no_other() -> None:
    class Holder:
        def __init__(self) -> None:
            self.fine = 1
            self.inner = {"key": [LOCK]}

    holder = Holder()
    is_fine, failures, _ = inspect(holder, name="h")
    assert not is_fine
    assert failures == {("h", "inner", "'key'", "[0]"): LOCK}


def test_depth_bounds_how_far_it_looks() -> None:
    assert inspect({"a": {"b": LOCK}}, name="d", depth=1)[1] == {("d", "'a'"): {"b": LOCK}}


class Handle:
    """Of something that lives in this process only."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


@pytest.fixture
def registered() -> Iterator[None]:
    ray.util.register_serializer(Handle, serializer=lambda handle: handle.number, deserializer=Handle)
    yield
    ray.util.deregister_serializer(Handle)


def test_a_registered_serializer_is_used_wherever_the_instance_is(registered: None) -> None:
    again = pickle.loads(cloudpickle.dumps({"deep": [Handle(7)]}))["deep"][0]
    assert (type(again), again.number) == (Handle, 7)
    kept = serialization.serialize(Handle(8))
    assert serialization.deserialize(kept.metadata, kept.to_bytes()).number == 8


def test_without_it_the_class_is_pickled_as_ever(registered: None) -> None:
    ray.util.deregister_serializer(Handle)
    with pytest.raises(TypeError):
        cloudpickle.dumps(Handle(1))
    ray.util.deregister_serializer(Handle)  # twice does nothing


def test_what_is_no_class_or_no_function_is_named() -> None:
    with pytest.raises(TypeError, match="cls must be a class, got 3"):
        ray.util.register_serializer(3, serializer=len, deserializer=len)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="deserializer must be a function"):
        ray.util.register_serializer(Handle, serializer=len, deserializer=None)  # type: ignore[arg-type]

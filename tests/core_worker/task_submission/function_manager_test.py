"""Functions and classes on their way to the workers, and loaded there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.context import JobContext
from ray_mono.core_worker.object_ref import ObjectRef, disconnected, found_by
from ray_mono.core_worker.process import current
from ray_mono.core_worker.task_submission import function_manager
from ray_mono.core_worker.task_submission.function_manager import FUNCTIONS, FunctionManager, script_name
from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.core_worker.scene import JOB_ID, OWNER, Scene

NOBODY = common_pb2.FunctionDescriptor(
    python=common_pb2.PythonFunctionDescriptor(function_name="f", function_hash=b"h" * 28)
)


class Process:
    """One that exports and loads by the GCS's table of functions. The home of the references that it
    unpickles."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = rows
        self.num_read = 0
        self.scene = Scene(is_driver=False)
        self.scene.wire.replies.update(KvPut=self._put, KvGet=self._get)
        self._unpickled = self.scene.parts.unpickled
        self.manager = FunctionManager(self.scene.context, self._unpickled, self.scene.core.job_code)

    def _put(self, request: Any) -> Any:
        assert request.namespace == FUNCTIONS and not request.overwrite
        self.rows.setdefault(request.key, request.value)
        return gcs_pb2.KvPutReply(added=True)

    def _get(self, request: Any) -> Any:
        assert request.namespace == FUNCTIONS
        self.num_read += 1
        value = self.rows.get(request.key)
        return gcs_pb2.KvGetReply(found=value is not None, value=value)

    def load(self, descriptor: common_pb2.FunctionDescriptor) -> Any:
        return self.manager.load(JOB_ID, descriptor, OWNER)

    def reference_arrived(self, object_id: bytes, owner: bytes) -> ObjectRef[Any]:
        self._unpickled.arrived(object_id, owner)
        return ObjectRef(object_id, self)  # type: ignore[arg-type]

    def reference_dropped(self, object_id: bytes) -> None: ...


class Here:
    """A driver and a worker of its."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.driver, self.worker = Process(self.rows), Process(self.rows)


@pytest.fixture
def here() -> Iterator[Here]:
    made = Here()
    found_by(lambda: made.worker)  # type: ignore[arg-type,return-value]
    yield made

    def nobody() -> Any:
        raise disconnected()

    found_by(current.require)


def double(number: int) -> int:
    return 2 * number


class Counter:
    def method(self) -> str:
        return "of the class"


def test_what_one_process_exports_another_one_loads_once(here: Here) -> None:
    exported = here.driver.manager.export(double, "remote function")
    assert list(here.rows) == [JOB_ID + exported.descriptor.python.function_hash]
    assert here.worker.load(exported.descriptor)(4) == 8
    assert here.worker.load(exported.descriptor) is here.worker.load(exported.descriptor)
    assert here.worker.num_read == 1 and exported.captured == ()


def test_a_class_is_named_as_one(here: Here) -> None:
    python = here.driver.manager.export(Counter, "actor class").descriptor.python
    assert (python.class_name, python.function_name) == ("Counter", "__init__")
    assert python.module_name == Counter.__module__
    function = here.driver.manager.export(double, "remote function").descriptor.python
    assert (function.class_name, function.function_name) == ("", "double")


def test_another_code_has_another_key(here: Here) -> None:
    codes = [lambda: 1, lambda: 2]
    hashes = {here.driver.manager.export(code, "f").descriptor.python.function_hash for code in codes}
    assert len(hashes) == len(here.rows) == 2


def test_what_does_not_pickle_is_named_with_what_it_uses(here: Here) -> None:
    lock = threading.Lock()

    def uses_a_lock() -> Any:
        return lock

    with pytest.raises(TypeError, match=r"remote function '.*uses_a_lock'.*lock.*Make it inside"):
        here.driver.manager.export(uses_a_lock, "remote function")
    assert not here.rows


def code_of(size_bytes: int) -> Any:
    captured = b"x" * size_bytes

    def carries() -> bytes:
        return captured

    return carries


@pytest.mark.parametrize(("size_bytes", "warned", "refused"), [(1000, 0, 0), (30_000, 1, 0), (70_000, 0, 1)])
def test_large_code_is_warned_of_and_very_large_code_refused(
    here: Here,
    size_bytes: int,
    warned: int,
    refused: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(function_manager, "WARN_BYTES", 20_000)
    monkeypatch.setattr(function_manager, "MAX_BYTES", 60_000)
    with caplog.at_level(logging.WARNING):
        if refused:
            with pytest.raises(ValueError, match="at most"):
                here.driver.manager.export(code_of(size_bytes), "remote function")
        else:
            here.driver.manager.export(code_of(size_bytes), "remote function")
    assert len(caplog.records) == warned and len(here.rows) == 1 - refused


def test_code_that_is_not_in_the_table_is_named(here: Here) -> None:
    with pytest.raises(RaySystemError, match="'f' is not in the cluster's function table"):
        here.worker.load(NOBODY)


def test_code_that_captured_references_is_made_anew_for_each_call_and_read_once(here: Here) -> None:
    captured = here.driver.scene.core.put(1)

    def uses() -> Any:
        return captured

    exported = here.driver.manager.export(uses, "remote function")
    assert list(exported.captured) == [captured]
    first, second = here.worker.load(exported.descriptor), here.worker.load(exported.descriptor)
    assert first is not second and first() == second() == captured and here.worker.num_read == 1


def test_code_of_another_job_is_another_one(here: Here) -> None:
    exported = here.driver.manager.export(double, "remote function")
    with pytest.raises(RaySystemError):
        here.worker.manager.load(b"job2", exported.descriptor, OWNER)


def test_a_script_goes_by_the_name_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    monkeypatch.setattr(__main__, "__file__", "elsewhere/train.py", raising=False)
    assert script_name() == "train"
    monkeypatch.delattr(__main__, "__file__")
    assert script_name() == ""


def test_a_function_of_no_module_is_exported(here: Here) -> None:
    def made() -> None: ...

    made.__module__ = None  # type: ignore[assignment]
    assert here.driver.manager.export(made, "remote function").descriptor.python.module_name == ""


@pytest.mark.parametrize(("script", "told"), [("train", "train"), ("", "__main__")])
def test_what_the_drivers_script_defines_goes_by_its_name_wherever_it_is_exported(
    here: Here, script: str, told: str
) -> None:
    def made() -> None: ...

    context, manager = here.worker.scene.context, here.worker.manager
    context.enter_job(JobContext(JOB_ID, script=script), context.get())
    assert manager.export(made, "remote function").descriptor.python.module_name == __name__
    made.__module__ = "__main__"
    assert manager.export(made, "remote function").descriptor.python.module_name == told

"""What a driver hears of calls that fail and are run again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RayTaskError, WorkerCrashedError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.task_submission import retry_notices
from ray_mono.core_worker.task_submission.retry_notices import FUNCTIONS_MAX, TEXT_MAX, told
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from tests.core_worker.fake_core import FakeCore

EXECUTOR = common_pb2.Address(worker_id=b"x" * 28)
loaded: list[str] = []


class NoisyError(Exception):
    """Its code must not run where it is only told of."""

    def __reduce__(self) -> Any:
        return _load, ()


def _load() -> NoisyError:
    loaded.append("loaded")
    return NoisyError()


def error_of(text: str, cause: Exception) -> RayTaskError:
    return RayTaskError("f", text, cause, proctitle="f", pid=7, ip="host")


class Caller:
    """A process whose tasks fail."""

    def __init__(self) -> None:
        core = FakeCore()
        self.told: list[str] = []
        core.warn_driver = lambda kind, message: self.told.append(message)  # type: ignore[attr-defined]
        self.manager = TaskManager(core)  # type: ignore[arg-type]

    def task(self, name: str = "f", retries: int = 3, code: bytes = b"code") -> PendingTask:
        spec = common_pb2.TaskSpec(name=name, num_returns=1)
        spec.function.python.function_hash = code
        task = PendingTask(b"t" * 24, CallTemplate(spec, 1), b"", (), 0, ())
        task.retries_left, task.retry_exceptions, task.resubmit = retries, True, lambda task: None
        self.manager.add(task)
        return task

    def fails(self, task: PendingTask, error: RayTaskError) -> None:
        value = common_pb2.SerializedObject(
            metadata=serialization.ERROR, data=serialization.serialize_error(error).to_bytes()
        )
        returned = core_worker_pb2.ReturnObject(object_id=task.return_ids[0], value=value)
        reply = core_worker_pb2.PushTaskReply(is_application_error=True, returns=[returned])
        loaded.clear()  # what serializes it looks whether it can be loaded
        self.manager.complete(task, reply, EXECUTOR)

    def loses(self, task: PendingTask) -> None:
        self.manager.lost(task, WorkerCrashedError)


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_an_error_for_which_a_call_is_run_again_is_told_without_code_of_the_users(caller: Caller) -> None:
    caller.fails(caller.task(), error_of("ValueError: the third\n", NoisyError()))
    (message,) = caller.told
    assert message.startswith("f() failed and is run again (retries left: 2): ") and "the third" in message
    assert not loaded


def test_of_a_long_error_beginning_and_end_are_told() -> None:
    error = error_of("begins" + "x" * 10**6 + "ends", ValueError())
    text = told(serialization.serialize_error(error).to_bytes())
    assert "begins" in text and text.endswith("ends") and len(text) < TEXT_MAX + 100


def test_an_error_that_is_not_told_is_not_read(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(retry_notices, "told", lambda data: read.append(data) or told(data))
    for _ in range(100):
        caller.fails(caller.task(), error_of("ValueError: again\n", ValueError()))
    assert len(read) == len(caller.told) == 7 and all("again" in message for message in caller.told)


def test_an_error_with_the_name_of_a_file_that_is_not_utf8_reaches_the_driver(caller: Caller) -> None:
    sent: list[gcs_pb2.PublishRequest] = []
    core: Any = caller.manager._core
    core.job_id, core.gcs = b"job", SimpleNamespace(Publish=SimpleNamespace(notify=sent.append))
    core.warn_driver = lambda kind, message: CoreWorker.warn_driver(core, kind, message)
    caller.fails(caller.task(), error_of("FileNotFoundError: caf\udce9.txt\n", ValueError()))
    (request,) = sent
    assert "caf\\udce9.txt" in common_pb2.ErrorInfo.FromString(request.message.payload).message


@pytest.mark.parametrize(("retries", "left"), [(1, "retries left: 0"), (-1, "retries without end")])
def test_how_often_a_call_may_still_be_run_again_is_told(caller: Caller, retries: int, left: str) -> None:
    caller.loses(caller.task(retries=retries))
    assert caller.told == [f"f() failed and is run again ({left}): its worker was lost"]


def test_a_call_that_is_not_run_again_is_not_told_here(caller: Caller) -> None:
    caller.loses(caller.task(retries=0))
    assert caller.told == []


def test_of_many_retries_of_a_function_few_are_told(caller: Caller) -> None:
    for _ in range(1000):
        caller.loses(caller.task(retries=1))
    assert len(caller.told) == 10 and "512 such retries so far" in caller.told[-1]


@pytest.mark.parametrize("other", [{"name": "g"}, {"code": b"another f"}])
def test_another_function_is_told_by_itself(caller: Caller, other: dict[str, Any]) -> None:
    for _ in range(9):
        caller.loses(caller.task())
    before = len(caller.told)
    caller.loses(caller.task(**other))
    assert len(caller.told) == before + 1 and "so far" not in caller.told[-1]


def test_what_is_counted_has_a_bound(caller: Caller) -> None:
    for number in range(FUNCTIONS_MAX + 10):
        caller.loses(caller.task(name=f"f{number}"))
    assert len(caller.manager._retry_notices._times) == FUNCTIONS_MAX

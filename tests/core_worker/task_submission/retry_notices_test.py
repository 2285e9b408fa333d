"""What a driver hears of calls that fail and are run again."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import RayTaskError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission import retry_notices
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.retry_notices import FUNCTIONS_MAX, TEXT_MAX, told
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.core_worker.scene import Scene, failure
from tests.core_worker.task_submission.tasks import crash

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
        self.scene = Scene()
        self.messages: list[common_pb2.ErrorInfo] = []

    def task(self, name: str = "f", retries: int = -1, code: bytes = b"code") -> ObjectRef[Any]:
        """On a worker."""
        python = common_pb2.PythonFunctionDescriptor(function_hash=code)
        options = TaskOptions(name=name, max_retries=retries, retry_exceptions=True)
        exported = Exported(common_pb2.FunctionDescriptor(python=python))
        (ref,) = self.scene.core.submit_task(self.scene.core.task_template(exported, options), [])
        if self.scene.wire.open("RequestWorkerLease"):
            self.scene.grant()
        return ref  # type: ignore[no-any-return]

    def fails(self, ref: ObjectRef[Any], error: RayTaskError) -> None:
        reply = failure(error, ref.binary())
        loaded.clear()  # what serializes it looks whether it can be loaded
        self._last_push().answer(reply)
        self._listen()

    def loses(self) -> None:
        crash(self.scene)
        self._listen()
        if self.scene.wire.open("RequestWorkerLease"):
            self.scene.grant()

    def _last_push(self) -> Any:
        return self.scene.wire.last("PushTask")

    def _listen(self) -> None:
        for said in self.scene.wire.all("Publish"):
            assert said.request.message.channel == gcs_pb2.ERROR and said.is_notice
            self.messages.append(common_pb2.ErrorInfo.FromString(said.request.message.payload))
        # What was said before is of no use to anybody.
        self.scene.wire.said[:] = [
            said for said in self.scene.wire.said if said.done is not None and not said.is_answered
        ]

    @property
    def told(self) -> list[str]:
        return [message.message for message in self.messages]


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_an_error_for_which_a_call_is_run_again_is_told_without_code_of_the_users(caller: Caller) -> None:
    caller.fails(caller.task(retries=3), error_of("ValueError: the third\n", NoisyError()))
    (message,) = caller.told
    assert message.startswith("f() failed and is run again (retries left: 2): ") and "the third" in message
    assert not loaded


def test_what_is_told_goes_to_the_driver_of_the_job_with_its_time(caller: Caller) -> None:
    caller.fails(caller.task(), error_of("ValueError: no\n", ValueError()))
    (message,) = caller.messages
    assert (message.job_id, message.type, message.time_s) == (
        b"job1",
        "task_retried",
        caller.scene.reactor.wall_s(),
    )


def test_of_a_long_error_beginning_and_end_are_told() -> None:
    error = error_of("begins" + "x" * 10**6 + "ends", ValueError())
    text = told(serialization.serialize_error(error).to_bytes())
    assert "begins" in text and text.endswith("ends") and len(text) < TEXT_MAX + 100


def test_an_error_that_just_fits_is_told_whole() -> None:
    frame = len(told(serialization.serialize_error(error_of("", ValueError())).to_bytes()))
    for left_out in (0, 1):
        text = "x" * (TEXT_MAX - frame + left_out)
        shown = told(serialization.serialize_error(error_of(text, ValueError())).to_bytes())
        assert ("characters" in shown) is bool(left_out)


def test_an_error_that_is_not_told_is_not_read(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(retry_notices, "told", lambda data: read.append(data) or told(data))
    ref = caller.task()
    for _ in range(100):
        caller.fails(ref, error_of("ValueError: again\n", ValueError()))
    assert len(read) == len(caller.told) == 7 and all("again" in message for message in caller.told)


def test_an_error_with_the_name_of_a_file_that_is_not_utf8_reaches_the_driver(caller: Caller) -> None:
    caller.fails(caller.task(), error_of("FileNotFoundError: caf\udce9.txt\n", ValueError()))
    assert "caf\\udce9.txt" in caller.told[0]


@pytest.mark.parametrize(("retries", "left"), [(1, "retries left: 0"), (-1, "retries without end")])
def test_how_often_a_call_may_still_be_run_again_is_told(caller: Caller, retries: int, left: str) -> None:
    caller.task(retries=retries)
    caller.loses()
    assert caller.told == [f"f() failed and is run again ({left}): its worker was lost"]


def test_a_call_that_is_not_run_again_is_not_told_here(caller: Caller) -> None:
    caller.task(retries=0)
    caller.loses()
    assert caller.told == []


def test_of_many_retries_of_a_function_few_are_told(caller: Caller) -> None:
    caller.task()
    for _ in range(1000):
        caller.loses()
    assert len(caller.told) == 10 and "512 such retries so far" in caller.told[-1]
    assert "so far" not in caller.told[0] and "2 such retries so far" in caller.told[1]


@pytest.mark.parametrize("other", [{"name": "g"}, {"code": b"another f"}])
def test_another_function_is_told_by_itself(caller: Caller, other: dict[str, Any]) -> None:
    ref = caller.task()
    for _ in range(9):
        caller.fails(ref, error_of("ValueError: again\n", ValueError()))
    before = len(caller.told)
    caller.scene.core.cancel(ref, False, False)
    caller.fails(ref, error_of("ValueError: the last\n", ValueError()))
    caller.fails(caller.task(**other), error_of("ValueError: again\n", ValueError()))
    assert len(caller.told) == before + 1 and "so far" not in caller.told[-1]


def test_what_is_counted_has_a_bound(caller: Caller) -> None:
    error = error_of("ValueError: again\n", ValueError())

    def fails_twice(name: str) -> str:
        """What is told after its last retry."""
        ref = caller.task(name, retries=1)
        caller.fails(ref, error)
        caller.fails(ref, error)  # for good
        return caller.told[-1]

    for number in range(FUNCTIONS_MAX + 1):
        fails_twice(f"f{number}")
    # The first was forgotten, and the next ones are still counted.
    assert "such retries" in fails_twice("f1")
    assert "such retries" not in fails_twice("f0")
    assert "such retries" in fails_twice(f"f{FUNCTIONS_MAX}")

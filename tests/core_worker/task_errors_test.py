"""Errors of users on their way to a caller: whatever their own code does, they arrive, and can be caught and shown there."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import Any

import pytest

from ray_mono.common.exceptions import RayError, RaySystemError, RayTaskError
from ray_mono.core_worker.task_errors import argument_error, describe_error, unreadable, users_traceback
from ray_mono.core_worker.task_execution.task_reply import serialized_error
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from tests.core_worker.scene import Scene
from tests.hostile_errors import NAMES, throw

SPEC = common_pb2.TaskSpec(name="f", type=common_pb2.NORMAL_TASK)
TEXT_ALONE = ("hash", "a group")
"""Their type does not come: the class cannot be pickled, or a group is nothing without what it holds."""
ENV = Scene().env
BYTES_MAX = ENV.config.error_bytes_max


def raised(name: str) -> BaseException:
    try:
        throw(name)
    except BaseException as error:
        return error
    raise AssertionError


def arrived(error: BaseException) -> Any:
    return serialization.deserialize(serialization.ERROR, serialized_error("f", error, BYTES_MAX).to_bytes())


def check_shown(error: BaseException, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    sys.__excepthook__(type(error), error, None)
    texts = [str(error), f"{error}", capsys.readouterr().err, "".join(traceback.format_exception(error))]
    for text in texts:
        assert all(word in text for word in words), text
    assert repr(error) and error


@pytest.mark.parametrize("name", NAMES)
def test_an_error_whose_own_code_fails_arrives_and_can_be_caught_shown_and_sent_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cause = raised(name)
    error = arrived(describe_error(SPEC, cause, None, ENV))
    assert type(error) is RayTaskError
    check_shown(error, capsys, "in throw")
    combined = error.as_instanceof_cause()
    check_shown(combined, capsys, "in throw", "ray_mono::f")
    with pytest.raises(RayTaskError):
        raise combined
    assert issubclass(type(combined), type(cause)) or name in TEXT_ALONE
    assert type(pickle.loads(pickle.dumps(combined))) is type(combined)


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_such_an_error_kept_from_being_read_is_a_failed_argument(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (raised(name), unreadable(raised(name)), describe_error(SPEC, raised(name), None, ENV)):
        check_shown(
            arrived(argument_error(SPEC, error, None, ENV)).as_instanceof_cause(), capsys, "in throw"
        )


class OwnRayError(RayError):
    def __str__(self) -> str:
        raise ValueError

    def __reduce__(self) -> Any:
        raise ValueError


def test_an_error_of_a_class_below_ours_is_no_exception(capsys: pytest.CaptureFixture[str]) -> None:
    check_shown(
        arrived(argument_error(SPEC, OwnRayError(), None, ENV)), capsys, "str() of this OwnRayError fails"
    )


def test_what_cannot_be_sent_at_all_is_told_in_words() -> None:
    class Unsendable(RayTaskError):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise SystemExit("no")

    error = arrived(Unsendable("f", "the traceback", ValueError("v")))
    assert type(error) is RaySystemError
    assert all(word in str(error) for word in ("f() raised Unsendable", "the traceback", "SystemExit: no"))


def test_a_traceback_is_made_where_the_current_directory_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    try:
        exec("1 / 0")
    except ZeroDivisionError as error:
        text = users_traceback(error)
    assert 'File "<string>", line 1' in text and f'File "{__file__}"' in text


def test_what_used_up_the_memory_is_let_go_before_the_answer_is_made() -> None:
    class Big: ...

    left: list[int] = []

    def use_up() -> None:
        big = Big()
        big.__class__ = type("Big", (Big,), {"__del__": lambda self: left.append(1)})
        raise MemoryError

    try:
        use_up()
    except MemoryError as error:
        described = describe_error(SPEC, error, None, ENV)
        assert left
    assert "in use_up" in str(described)

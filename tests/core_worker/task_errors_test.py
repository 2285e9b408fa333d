"""Errors of users on their way to a caller: they arrive, and can be caught and shown there."""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import Any

import pytest

from ray_mono.common.exceptions import RayError, RaySystemError, RayTaskError, TaskCancelledError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.context import TaskContext, TaskKind
from ray_mono.core_worker.task_errors import (
    ARGUMENT_FAILED,
    HOPS_MAX,
    argument_error,
    cancelled_error,
    describe_error,
    handed_on,
    unreadable,
    users_traceback,
)
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
        check_shown(arrived(argument_error(SPEC, error, None, ENV)).as_instanceof_cause(), capsys, "in throw")


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


# ---- what an error tells


class Actor:
    """As an error knows it."""

    name, class_name, module_name = "given", "Actor", "m"

    def repr_name(self) -> str:
        return "its repr"


CALL = common_pb2.TaskSpec(
    name="method",
    type=common_pb2.ACTOR_TASK,
    actor_task=common_pb2.ActorTaskSpec(actor_id=b"a" * 16),
)


@pytest.mark.parametrize(
    ("spec", "actor", "words"),
    [
        (SPEC, None, ["ray_mono::f", "pid=1", "ip=here"]),
        (CALL, Actor(), ["ray_mono::Actor.method", "its repr", (b"a" * 16).hex()]),
        (
            common_pb2.TaskSpec(
                name="method",
                type=common_pb2.ACTOR_TASK,
                actor_task=common_pb2.ActorTaskSpec(task_name="shown"),
            ),
            Actor(),
            ["ray_mono::shown"],
        ),
        (
            common_pb2.TaskSpec(
                name="Actor.__init__",
                type=common_pb2.ACTOR_CREATION_TASK,
                actor_creation=common_pb2.ActorCreationSpec(actor_id=b"b" * 16),
            ),
            None,
            ["ray_mono::Actor.__init__", (b"b" * 16).hex()],
        ),
    ],
    ids=["task", "call", "named call", "constructor"],
)
def test_an_error_says_where_it_was_raised(spec: Any, actor: Any, words: list[str]) -> None:
    error = describe_error(spec, ValueError("v"), actor, ENV)
    assert all(word in str(error) for word in words) and "ValueError: v" in str(error)


def test_a_traceback_has_the_users_frames_and_none_of_ours() -> None:
    scene = Scene()

    def users() -> None:
        scene.core.wait([scene.submit()], 1, None, True)  # which would wait for ever

    with pytest.raises(BaseException) as caught:
        users()
    text = users_traceback(caught.value)
    assert "in users" in text and "core_worker/core_worker.py" not in text


def test_causes_and_contexts_are_shown_without_our_frames_too() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        text = users_traceback(error)
    assert text.index("inner") < text.index("direct cause") < text.index("outer")


def test_an_error_without_any_frame_of_the_users_has_no_heading() -> None:
    assert users_traceback(ValueError("v")) == "ValueError: v\n"


# ---- through several calls


def test_an_error_that_comes_through_several_calls_has_the_users_own_at_its_root() -> None:
    first = describe_error(SPEC, LookupError("root"), None, ENV)
    second: Any = argument_error(SPEC, first, None, ENV)
    third: Any = argument_error(SPEC, second, None, ENV)
    assert isinstance(third.cause, LookupError) and str(third).count(ARGUMENT_FAILED) == 2
    assert isinstance(third.as_instanceof_cause(), LookupError)


def test_what_cannot_be_read_is_not_taken_for_an_error_of_the_function() -> None:
    error: Any = argument_error(SPEC, LookupError("in the pickle"), None, ENV)
    assert isinstance(error.cause, RaySystemError) and "cannot be unpickled" in str(error)
    assert ARGUMENT_FAILED in str(error)


def test_an_interrupt_while_an_argument_is_read_is_described_as_it_is() -> None:
    error: Any = argument_error(SPEC, KeyboardInterrupt(), None, ENV)
    assert isinstance(error.cause, KeyboardInterrupt) and ARGUMENT_FAILED not in str(error)


def test_a_cancelled_task_says_where_its_code_was() -> None:
    def here() -> None:
        raise KeyboardInterrupt

    task = TaskContext(b"t" * 24, TaskKind(b"job1"))
    with pytest.raises(KeyboardInterrupt) as caught:
        here()
    error: Any = cancelled_error(SPEC, task, caught.value, None, ENV)
    assert isinstance(error.cause, TaskCancelledError) and "in here" in str(error)
    assert (b"t" * 24).hex() in str(error)


def template(spec: Any = SPEC) -> CallTemplate:
    return CallTemplate(spec, 1)


def handed(data: bytes, spec: Any = SPEC) -> bytes:
    made = handed_on(template(spec), data, ENV)
    assert made is not None
    return made


def data_of(error: BaseException) -> bytes:
    return serialized_error("f", error, BYTES_MAX).to_bytes()


def test_an_owner_hands_an_error_on_as_the_worker_would_have() -> None:
    first = describe_error(SPEC, LookupError("root"), None, ENV)
    here = serialization.deserialize(serialization.ERROR, handed(data_of(first)))
    there: Any = argument_error(SPEC, arrived(first), None, ENV)
    assert str(here) == str(there) and isinstance(here.cause, LookupError)
    assert (here.proctitle, here.pid, here.ip, here.actor_id) == ("ray_mono::f", 1, "here", None)


def test_a_calls_error_that_is_handed_on_names_the_actor() -> None:
    error = serialization.deserialize(serialization.ERROR, handed(data_of(RaySystemError("lost")), CALL))
    assert error.actor_id == (b"a" * 16).hex() and isinstance(error.cause, RaySystemError)


def test_one_that_is_not_ours_alone_is_not_handed_on() -> None:
    assert handed_on(template(), pickle.dumps(LookupError()), ENV) is None
    assert handed_on(template(), b"no pickle", ENV) is None


def test_so_many_calls_tell_of_themselves_and_no_more() -> None:
    data = data_of(describe_error(SPEC, LookupError("root"), None, ENV))
    for _ in range(HOPS_MAX):
        before, data = data, handed(data)
        assert data != before
    assert handed(data) == data
    error = serialization.deserialize(serialization.ERROR, data)
    assert str(error).count(ARGUMENT_FAILED) == HOPS_MAX

"""Errors that nobody asks for are printed once; those that somebody was given, and those that are not the
user's, are not."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import ActorDiedError, RayTaskError, TaskCancelledError, WorkerCrashedError
from ray_mono.core_worker.objects import unhandled_errors
from ray_mono.core_worker.objects.unhandled_errors import SILENCED_BY, UnhandledErrors
from ray_mono.core_worker.values import serialization
from tests.core_worker.scene import Scene, failure, in_store
from tests.no_threads import no_threads


def task_error(text: str, cause: BaseException | None = None) -> RayTaskError:
    return RayTaskError("f", text, cause or KeyError("k"))


class Forgotten:
    """Tasks that failed and whose results nobody asks for."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.scene = Scene()
        self.capfd = capfd

    def fail(self, error: BaseException, is_asked: bool = False) -> None:
        ref = self.scene.submit()
        self.scene.finish(ref, failure(error, ref.binary()))
        if is_asked:
            self.scene.state_of(ref)

    def printed(self) -> str:
        self.scene.core.shutdown()
        return self.capfd.readouterr().err


@pytest.fixture
def forgotten(capfd: pytest.CaptureFixture[str]) -> Forgotten:
    return Forgotten(capfd)


def test_an_error_that_nobody_asked_for_is_printed(forgotten: Forgotten) -> None:
    forgotten.fail(task_error("its traceback"))
    printed = forgotten.printed()
    assert "Nobody asked for the result of a task that failed" in printed and "its traceback" in printed


def test_one_that_somebody_got_is_not(forgotten: Forgotten) -> None:
    forgotten.fail(task_error("its traceback"), is_asked=True)
    assert forgotten.printed() == ""


@pytest.mark.parametrize("has_one_inside_another", [False, True])
def test_one_among_many_that_go_at_once_is_printed_and_what_is_large_leaves_its_store(
    forgotten: Forgotten, has_one_inside_another: bool
) -> None:
    scene = forgotten.scene
    refs = [scene.core.put(number) for number in range(100)]
    if has_one_inside_another:
        refs.append(scene.core.put([refs[0]]))
    large, failed = scene.submit(), scene.submit()
    large_id = large.binary()
    scene.finish(large, in_store(large_id))
    scene.finish(failed, failure(task_error("its traceback"), failed.binary()))
    refs += large, failed, scene.submit()
    del large, failed
    refs.clear()
    assert scene.core.reference_counts() == scene.core.describe()["values"] == 0
    assert [each.object_id for said in scene.wire.all("Free") for each in said.request.objects] == [large_id]
    assert forgotten.printed().count("its traceback") == 1


def test_values_are_not_printed(forgotten: Forgotten) -> None:
    forgotten.scene.core.put("a value")
    assert forgotten.printed() == ""


@pytest.mark.parametrize(
    "error",
    [
        WorkerCrashedError("its worker died"),
        task_error("stopped", TaskCancelledError()),
        ActorDiedError("it was killed", "aa"),
    ],
)
def test_what_is_not_the_users_is_not_printed(forgotten: Forgotten, error: BaseException) -> None:
    forgotten.fail(error)
    assert forgotten.printed() == ""


def test_nothing_is_printed_where_that_is_silenced(
    forgotten: Forgotten, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SILENCED_BY, "1")
    forgotten.fail(task_error("its traceback"))
    assert forgotten.printed() == ""


def test_a_reference_that_went_before_its_error_came_is_told_too(forgotten: Forgotten) -> None:
    ref = forgotten.scene.submit()
    reply, task_id = failure(task_error("its traceback"), ref.binary()), ref.task_id().binary()
    del ref
    forgotten.scene.turn()
    forgotten.scene.grant()
    push = forgotten.scene.wire.last("PushTask")
    assert push.request.task_id == task_id
    push.answer(reply)
    assert "its traceback" in forgotten.printed()


def test_what_fails_since_the_process_leaves_is_not_told(forgotten: Forgotten) -> None:
    scene = forgotten.scene
    ref = scene.submit()
    reply = failure(task_error("its traceback"), ref.binary())
    del ref
    scene.turn()
    scene.grant()
    scene.core.at_shutdown(lambda: scene.wire.last("PushTask").answer(reply))
    assert forgotten.printed() == ""


# ---- by itself


def data_of(error: BaseException) -> bytes:
    return serialization.serialize_error(error).to_bytes()


def note_all(capfd: pytest.CaptureFixture[str], *noted: tuple[bytes, Any]) -> str:
    errors = UnhandledErrors()
    for object_id, error in noted:
        errors.note(object_id, data_of(error))
    errors.close()
    return capfd.readouterr().err


def test_the_returns_of_one_task_are_one_error(capfd: pytest.CaptureFixture[str]) -> None:
    noted = [(b"t" * 24 + bytes([number, 0, 0, 0]), task_error("once")) for number in (1, 2)]
    printed = note_all(capfd, *noted, (b"u" * 28, task_error("another")))
    assert printed.count("Nobody asked") == 2 and printed.count("once") == 1


def test_a_constructor_that_failed_is_told_once_for_each_actor(capfd: pytest.CaptureFixture[str]) -> None:
    deaths = [ActorDiedError(task_error("init of " + actor_id), actor_id) for actor_id in ("aa", "aa", "bb")]
    assert all(death.actor_init_failed for death in deaths)
    noted = [(bytes([number]) * 28, death) for number, death in enumerate(deaths)]
    printed = note_all(capfd, *noted)
    assert (printed.count("init of aa"), printed.count("init of bb")) == (1, 1)


class Unreadable(Exception):
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_an_error_that_cannot_be_read_is_told_as_that(capfd: pytest.CaptureFixture[str]) -> None:
    errors = UnhandledErrors()
    errors.note(b"t" * 28, serialization.serialize(Unreadable()).to_bytes())
    errors.close()
    assert "an error that cannot be read here: ValueError" in capfd.readouterr().err


def test_what_is_too_much_is_counted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unhandled_errors, "WAITING_MAX", 0)
    errors = UnhandledErrors()
    errors.note(b"a" * 28, data_of(task_error("left out")))
    monkeypatch.setattr(unhandled_errors, "WAITING_MAX", 1000)
    errors.note(b"b" * 28, data_of(task_error("told")))
    errors.close()
    printed = capfd.readouterr().err
    assert "told" in printed and "left out" not in printed
    assert "1 more errors that nobody asked for are not shown" in printed


def test_what_has_no_value_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    errors = UnhandledErrors()
    errors.note(b"a" * 28, None)
    errors.close()
    assert capfd.readouterr().err == ""


def test_one_for_which_there_is_no_thread_is_counted_with_the_next(forgotten: Forgotten) -> None:
    with no_threads():
        forgotten.fail(task_error("the first"))
        forgotten.scene.turn()
    forgotten.fail(task_error("the second"))
    printed = forgotten.printed()
    assert "the first" not in printed and "the second" in printed
    assert "1 more errors that nobody asked for are not shown" in printed


def test_an_end_without_a_thread_is_an_end(forgotten: Forgotten, caplog: pytest.LogCaptureFixture) -> None:
    with no_threads():
        forgotten.fail(task_error("its traceback"))
        assert forgotten.printed() == ""
    assert not caplog.records

"""Exceptions read without code of their classes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from ray_mono.common import raw_error


class Trouble(BaseException):
    """No Exception, as what ends a process is none."""


class Hides(ValueError):
    def __getattribute__(self, name: str) -> Any:
        raise Trouble


class Exits(SystemExit):
    @property
    def code(self) -> Any:  # type: ignore[override]
        return 0


class HasNoText(Exception):
    def __str__(self) -> str:
        raise Trouble

    __repr__ = __str__


class Pretends(Exception):
    @property
    def __class__(self) -> Any:
        return SystemExit


def raised(error: BaseException, context: BaseException | None = None) -> BaseException:
    try:
        try:
            if context is not None:
                raise context
        finally:
            raise error
    except BaseException as caught:
        return caught


def test_what_its_class_hides_is_read() -> None:
    context = KeyError("before")
    error = raised(Hides("one", 2), context)
    found = raw_error.traceback_of(error)
    assert found is not None and raw_error.context_of(error) is context
    assert raw_error.arguments_of(error) == ("one", 2)
    raw_error.set_arguments(error, (3,))
    raw_error.attributes_of(error)["kept"] = 4
    raw_error.set_traceback(error, None)
    assert raw_error.arguments_of(error) == (3,) and raw_error.attributes_of(error) == {"kept": 4}
    assert raw_error.traceback_of(error) is None and raw_error.name_of(error) == "Hides"


def test_it_is_what_its_class_is_whatever_it_says() -> None:
    assert raw_error.is_a(Pretends(), Pretends) and not raw_error.is_a(Pretends(), SystemExit)
    assert raw_error.is_a(raised(Hides()), ValueError)


@pytest.mark.parametrize("code", [0, 7, None, "text"])
def test_the_status_of_an_exit_is_the_one_that_it_was_made_with(code: Any) -> None:
    assert raw_error.exit_code_of(Exits(code)) == code


def test_texts_that_fail_have_words_of_their_own() -> None:
    error = HasNoText()
    assert raw_error.str_of(error) == "<str() of this HasNoText fails>"
    assert raw_error.repr_of(error) == "<repr() of this HasNoText fails>"
    assert "HasNoText: <" in raw_error.text_of(error)
    assert raw_error.text_of(Hides()) == "Hides"
    assert raw_error.text_of(ValueError("plain")) == "ValueError: plain"


def test_what_the_frames_of_an_error_and_of_what_came_before_hold_is_let_go() -> None:
    held: list[weakref.ref[Any]] = []

    class Large: ...

    def fail(error: BaseException) -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise error

    try:
        try:
            fail(KeyError("before"))
        except KeyError:
            fail(ValueError("after"))
    except ValueError as error:
        assert [one() is not None for one in held] == [True, True]
        raw_error.let_frames_go(error)
        assert [one() for one in held] == [None, None]


def test_a_ring_of_contexts_has_an_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert list(raw_error.with_contexts(first)) == [first, second]
    raw_error.let_frames_go(second)

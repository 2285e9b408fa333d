"""Calls are checked where they are made, against the signature of the user's function."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_mono._private.remote import signature


def nothing() -> None: ...
def two(a: Any, b: Any) -> None: ...
def default(a: Any, b: Any = 1) -> None: ...
def keyword_only(a: Any, *, b: Any, c: Any = 1) -> None: ...
def positional_only(a: Any, b: Any = 1, /, c: Any = 2) -> None: ...
def any_positional(a: Any, *rest: Any) -> None: ...
def any_keyword(a: Any, /, **rest: Any) -> None: ...
def everything(a: Any, /, b: Any, c: Any = 3, *args: Any, d: Any, e: Any = 5, **kwargs: Any) -> None: ...


FUNCTIONS: list[Callable[..., None]] = [
    nothing,
    two,
    default,
    keyword_only,
    positional_only,
    any_positional,
    any_keyword,
    everything,
]


@given(
    function=st.sampled_from(FUNCTIONS),
    args=st.lists(st.integers(0, 3), max_size=4),
    kwargs=st.dictionaries(st.sampled_from("abcdex"), st.integers(0, 3), max_size=4),
)
def test_a_call_is_accepted_exactly_when_python_would_accept_it(
    function: Callable[..., None], args: list[int], kwargs: dict[str, int]
) -> None:
    checked = signature.of(function, "f")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=r"^f\(\) "):
            checked.check(args, kwargs)
    else:
        checked.check(args, kwargs)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "message"),
    [
        (two, [1], {}, "missing a required argument: 'b'"),
        (two, [1, 2, 3], {}, "takes 2 positional arguments, got 3"),
        (two, [1, 2], {"z": 3}, "got an unexpected keyword argument 'z'"),
        (two, [1, 2], {"a": 3}, "got several values for argument 'a'"),
        (keyword_only, [1], {}, "missing a required keyword-only argument: 'b'"),
        (positional_only, [], {"a": 1}, "takes 'a' by position only"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_with_it(
    function: Callable[..., None], args: list[int], kwargs: dict[str, int], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        signature.of(function, function.__name__).check(args, kwargs)
    assert f"{function.__name__}() {message}" in str(caught.value)


class Methods:
    def plain(self, a: Any) -> None: ...
    @staticmethod
    def static(a: Any) -> None: ...
    @classmethod
    def of_class(cls, a: Any) -> None: ...
    def odd(*args: Any) -> None: ...


@pytest.mark.parametrize("name", ["plain", "static", "of_class"])
def test_methods_are_checked_as_callers_of_an_instance_see_them(name: str) -> None:
    checked = signature.of_method(Methods, name, f"Methods.{name}")
    checked.check([1], {})
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        checked.check([], {})
    with pytest.raises(TypeError, match="takes 1 positional argument, got 2"):
        checked.check([1, 2], {})


def test_what_does_not_tell_what_it_takes_is_not_checked() -> None:
    signature.of_method(Methods, "odd", "odd").check([1, 2], {})
    signature.of(iter, "iter").check([1, 2, 3], {"x": 1})


def test_a_signature_travels_without_the_defaults_and_annotations() -> None:
    def function(a: Any, b: Any = lambda: None) -> None: ...

    checked = signature.of(function, "function")
    assert pickle.loads(pickle.dumps(checked)) == checked


@given(st.lists(st.integers()), st.dictionaries(st.text(min_size=1), st.integers()))
def test_arguments_come_back_from_their_flat_form(args: list[int], kwargs: dict[str, int]) -> None:
    assert signature.recover(signature.flatten(args, kwargs)) == (args, kwargs)


def test_the_flat_form_is_key_or_none_then_value() -> None:
    assert signature.flatten([1], {"a": 4}) == [None, 1, "a", 4]
    with pytest.raises(ValueError, match="pairs"):
        signature.recover([None])

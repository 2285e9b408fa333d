"""Signatures of remote functions and methods. Calls are checked by them where they are made, so that the
error is raised where the mistake is.

A CallSignature keeps of each parameter its name, its kind and whether it must be given, so that it travels
with an actor's handle whatever the defaults and annotations are. Arguments travel flattened, [key or None,
value, …].
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class CallSignature:
    """What a call must look like. `name` is the function's, as the user calls it."""

    name: str
    positional: tuple[str, ...] = ()
    """Parameters that may be given by position, in order."""
    num_positional_only: int = 0
    num_required: int = 0
    """The first so many of `positional` have no default."""
    keyword_only: tuple[str, ...] = ()
    keyword_only_required: tuple[str, ...] = ()
    has_var_positional: bool = False
    has_var_keyword: bool = False
    # A call without keywords may have so many arguments. Most calls are checked by that alone.
    fewest: int = field(init=False, repr=False, compare=False)
    most: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        most = sys.maxsize if self.has_var_positional else len(self.positional)
        object.__setattr__(self, "fewest", self.num_required)
        object.__setattr__(self, "most", -1 if self.keyword_only_required else most)

    def check(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises TypeError, naming the function, if the function could not be called so."""
        if kwargs or not self.fewest <= len(args) <= self.most:
            self._check_in_full(len(args), kwargs)

    def _check_in_full(self, count: int, kwargs: dict[str, Any]) -> None:
        if count > len(self.positional) and not self.has_var_positional:
            most = len(self.positional)
            raise self._wrong(
                f"takes {most or 'no'} positional argument{'' if most == 1 else 's'}, got {count}"
            )
        by_keyword = self.positional[self.num_positional_only :]
        for key in kwargs:
            if key in by_keyword:
                if self.positional.index(key) < count:
                    raise self._wrong(f"got several values for argument {key!r}")
            elif key not in self.keyword_only and not self.has_var_keyword:
                if key in self.positional:
                    raise self._wrong(f"takes {key!r} by position only, but it was given as a keyword")
                raise self._wrong(f"got an unexpected keyword argument {key!r}")
        for index in range(count, self.num_required):
            name = self.positional[index]
            if index < self.num_positional_only or name not in kwargs:
                raise self._wrong(f"missing a required argument: {name!r}")
        for name in self.keyword_only_required:
            if name not in kwargs:
                raise self._wrong(f"missing a required keyword-only argument: {name!r}")

    def _wrong(self, what: str) -> TypeError:
        return TypeError(f"{self.name}() {what}")


def anything(name: str) -> CallSignature:
    """For callables that do not tell what they take."""
    return CallSignature(name, has_var_positional=True, has_var_keyword=True)


def of(function: Callable[..., Any], name: str, *, skip_first: bool = False) -> CallSignature:
    """The signature of `function`, which users know as `name`.

    Args:
        skip_first: leave out the first parameter (`self`), which the caller does not give.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # functions written in C
        return anything(name)
    if skip_first and parameters and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    positional = [parameter for parameter in parameters if parameter.kind in _POSITIONAL]
    keyword_only = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    kinds = {parameter.kind for parameter in parameters}
    return CallSignature(
        name=name,
        positional=tuple(parameter.name for parameter in positional),
        num_positional_only=sum(each.kind is inspect.Parameter.POSITIONAL_ONLY for each in positional),
        num_required=sum(each.default is inspect.Parameter.empty for each in positional),
        keyword_only=tuple(parameter.name for parameter in keyword_only),
        keyword_only_required=tuple(
            each.name for each in keyword_only if each.default is inspect.Parameter.empty
        ),
        has_var_positional=inspect.Parameter.VAR_POSITIONAL in kinds,
        has_var_keyword=inspect.Parameter.VAR_KEYWORD in kinds,
    )


def of_method(owner: type, attribute: str, name: str) -> CallSignature:
    """The signature of a method as callers of an instance see it: without `self` (or `cls`)."""
    static = inspect.getattr_static(owner, attribute)
    if isinstance(static, staticmethod):
        return of(static.__func__, name)
    if isinstance(static, classmethod):
        return of(static.__func__, name, skip_first=True)
    if isinstance(static, functools.partialmethod):
        return anything(name)
    return of(static, name, skip_first=True)


def flatten(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """[None, 1, "a", 4] for f(1, a=4)."""
    flat: list[Any] = []
    for value in args:
        flat.append(None)
        flat.append(value)
    for key, value in kwargs.items():
        flat.append(key)
        flat.append(value)
    return flat


def recover(flat: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that `flatten` made `flat` of. Raises ValueError for a list of odd length."""
    if len(flat) % 2:
        raise ValueError(f"flattened arguments come in pairs, got {len(flat)} items")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for index in range(0, len(flat), 2):
        if flat[index] is None:
            args.append(flat[index + 1])
        else:
            kwargs[flat[index]] = flat[index + 1]
    return args, kwargs

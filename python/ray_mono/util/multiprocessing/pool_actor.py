"""The pool's end in a worker process: runs batches of calls and says for each whether it returned or
raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from types import FunctionType
from typing import Any

from ray_mono import cloudpickle

Calls = list[tuple[Iterable[Any], Mapping[str, Any] | None]]
"""Arguments and keyword arguments of each call."""


@dataclass(frozen=True)
class Failure:
    """A call that raised, in the place of its value."""

    error: BaseException
    traceback: str = ""

    def exception(self) -> BaseException:
        """The user's own exception, with the worker's traceback as its cause, as the standard library has
        it."""
        if self.traceback:
            self.error.__cause__ = RemoteTraceback(self.traceback)
        return self.error


class PoolActor:
    """One process of a pool."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: Iterable[Any]) -> None:
        self._set_globals: dict[str, Any] = {}
        self._initializer_module = getattr(initializer, "__module__", None)
        if initializer is None:
            return
        namespace = getattr(initializer, "__globals__", {})
        before = dict(namespace)
        initializer(*initargs)
        missing = object()
        self._set_globals = {
            name: value for name, value in namespace.items() if before.get(name, missing) is not value
        }

    def run_batch(self, function: Callable[..., Any], calls: Calls) -> list[Any]:
        """The values of the calls; a Failure for each that raised."""
        self._share_globals(function)
        return [self._run(function, arguments, keywords) for arguments, keywords in calls]

    def _share_globals(self, function: Any) -> None:
        """A program's own functions arrive by value, each with globals of its own. What the initializer has
        set in its globals is what the functions of the same module look for in theirs."""
        if not self._set_globals:
            return
        plain = getattr(function, "func", function)  # a functools.partial
        plain = getattr(plain, "__func__", plain)
        if isinstance(plain, FunctionType) and plain.__module__ == self._initializer_module:
            plain.__globals__.update(self._set_globals)

    def _run(
        self, function: Callable[..., Any], arguments: Iterable[Any], keywords: Mapping[str, Any] | None
    ) -> Any:
        try:
            return function(*arguments, **(keywords or {}))
        except Exception as error:
            # Without the frame of this method.
            frames = error.__traceback__.tb_next if error.__traceback__ else None
            text = "".join(traceback.format_exception(type(error), error, frames))
            return Failure(_sendable(error, function), f'\n"""\n{text}"""')


def _sendable(error: Exception, function: Any) -> Exception:
    """The error, or what says so if it cannot be pickled or unpickled."""
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception as reason:
        return MaybeEncodingError(reason, f"{error!r}, raised by {function!r}")
    return error

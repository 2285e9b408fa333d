"""One call in local mode, of a task or a method: what is to be run, and what its errors mean."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.task_error import RayTaskError
from ray_mono.core_worker import generator_runner

# Between `.remote()` and the user's function: not shown in tracebacks.
_OUR_FILES = {
    *(os.path.join(os.path.dirname(__file__), f"local_{part}.py") for part in ("mode", "actor", "streams")),
    generator_runner.__file__,
}


@dataclass(frozen=True)
class LocalCall:
    """One call."""

    function: Callable[[list[Any], dict[str, Any]], Any]
    name: str
    num_returns: int
    """A count, STREAMING_RETURNS or DYNAMIC_RETURNS."""
    retries: int
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    actor_id: bytes = b""
    actor_id_hex: str | None = None
    backpressure: int = 0
    """Items of a generator that may wait to be taken; 0: any number."""

    def error_of(self, error: BaseException) -> RayTaskError:
        """What the caller gets for an exception of the function."""
        return RayTaskError(self.name, _user_traceback(error), error, actor_id=self.actor_id_hex)

    def covers(self, error: RayTaskError) -> bool:
        """Whether its options say that it runs again after `error`, if retries are left."""
        retried = self.retry_exceptions
        return retried is True or bool(retried and isinstance(error.cause, retried))


def _user_traceback(error: BaseException) -> str:
    """The traceback as text, from the first frame that is not ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))

"""Messages to a job's driver that a call failed and is run again. Without them a program whose calls often
fail would be slow and not say why. The driver is told of a function's first retry, and then each time that
their number has doubled.
"""

from __future__ import annotations

from ray_mono.common.task_error import load_packed
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.job_warnings import JobWarnings

FUNCTIONS_MAX = 1000
"""How many functions are counted at once. Beyond that the one that was counted first is forgotten, and its
next retry counts as its first."""

TEXT_MAX = 4000
"""At most so many characters of an error are told. They go through the GCS, and onto a screen."""


class RetryNotices:
    """The notices of one process, about calls that it made. Lock held."""

    def __init__(self, warnings: JobWarnings) -> None:
        self._warnings = warnings
        # Retries by name and code of the function.
        self._times: dict[tuple[str, bytes], int] = {}

    def tell(self, template: CallTemplate, retries_left: int, why: str | bytes) -> None:
        """A call of this template is run again. why: a text, or a serialized error.

        retries_left: how many are left after this one; -1: retries without end.
        """
        name, code = template.title, template.spec.function.python.function_hash
        times = self._times[name, code] = self._times.get((name, code), 0) + 1
        if times & (times - 1):
            return
        if len(self._times) > FUNCTIONS_MAX:
            del self._times[next(iter(self._times))]
        so_far = f"; {times} such retries so far" if times > 1 else ""
        text = why if isinstance(why, str) else told(why)
        self._warnings.tell(
            "task_retried", f"{name}() failed and is run again ({left(retries_left)}{so_far}): {text}"
        )


def left(num_retries: int) -> str:
    """For people; -1: retries without end."""
    return "retries without end" if num_retries < 0 else f"retries left: {num_retries}"


def told(data: bytes) -> str:
    """The text of a serialized error, for people. It is read without running code of the user's."""
    error = load_packed(data)
    if error is None:
        return "its code raised an error"
    text, half = str(error), TEXT_MAX // 2
    left_out = len(text) - TEXT_MAX
    return text if left_out <= 0 else f"{text[:half]} … {left_out:,} characters … {text[-half:]}"

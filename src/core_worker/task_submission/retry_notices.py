"""What a job's driver is told when a call failed and is run again: else a program whose calls fail half of
the time is slow and says nothing. The first time of each function at once, then each time that their number
has doubled.
"""

from __future__ import annotations

from ray_mono.common.task_error import load_packed
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.job_warnings import JobWarnings

FUNCTIONS_MAX = 1000
"""Functions that are counted at once; beyond it the one that was counted first is forgotten, and told anew.
"""

TEXT_MAX = 4000
"""Characters of an error: it goes through the GCS, and onto a screen."""


class RetryNotices:
    """Of one process, about the calls that it made. Lock held."""

    def __init__(self, warnings: JobWarnings) -> None:
        self._warnings = warnings
        # By name and code.
        self._times: dict[tuple[str, bytes], int] = {}

    def tell(self, template: CallTemplate, retries_left: int, why: str | bytes) -> None:
        """A call of this template is run again. retries_left: after that; -1: without end. why: a text, or a
        serialized error."""
        name, code = template.title, template.spec.function.python.function_hash
        times = self._times[name, code] = self._times.get((name, code), 0) + 1
        if times & (times - 1):
            return
        if len(self._times) > FUNCTIONS_MAX:
            del self._times[next(iter(self._times))]
        left = "retries without end" if retries_left < 0 else f"retries left: {retries_left}"
        so_far = f"; {times} such retries so far" if times > 1 else ""
        text = why if isinstance(why, str) else told(why)
        self._warnings.tell("task_retried", f"{name}() failed and is run again ({left}{so_far}): {text}")


def told(data: bytes) -> str:
    """For people: a serialized error, read without code of the user's."""
    error = load_packed(data)
    if error is None:
        return "its code raised an error"
    text, half = str(error), TEXT_MAX // 2
    left_out = len(text) - TEXT_MAX
    return text if left_out <= 0 else f"{text[:half]} … {left_out:,} characters … {text[-half:]}"

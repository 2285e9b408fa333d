"""Tracebacks of what `get`, `wait`, `put` and `next` raise end where the user called them: ten frames of how
we waited hide the one that matters. Modules where users enter also say `__tracebackhide__`, so that pytest
shows the user's line and not ours.
"""

from __future__ import annotations

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.ray_error import RayError, RpcError


def shortened(error: BaseException) -> BaseException:
    """The error, to be raised again. An interrupt, a task's error and the like lose the frames below the
    caller; an error of our own keeps them: there they say what went wrong."""
    is_ours = not isinstance(error, KeyboardInterrupt | RayError) or isinstance(
        error, RaySystemError | RpcError
    )
    return error if is_ours else error.with_traceback(None)

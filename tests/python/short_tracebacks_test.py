"""What `get` and `wait` raise shows the user's frames, not ours."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from ray_mono._private import short_tracebacks
from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, RayTaskError, WorkerCrashedError


def deep(error: BaseException, levels: int = 5) -> Any:
    if levels:
        return deep(error, levels - 1)
    raise error


def entered(error: BaseException) -> None:
    """Where the API is entered."""
    try:
        deep(error)
    except BaseException as caught:
        raise short_tracebacks.shortened(caught)  # noqa: B904


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (KeyboardInterrupt(), True),
        (RayTaskError("f", "there", ValueError("x")).as_instanceof_cause(), True),
        (GetTimeoutError("not yet"), True),
        (WorkerCrashedError(), True),
        (RaySystemError("ours"), False),
        (AssertionError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_frames_below_the_call_are_left_out_unless_they_say_what_went_wrong(
    error: BaseException, is_short: bool
) -> None:
    with pytest.raises(type(error)) as caught:
        entered(error)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == ("entered" if is_short else "deep"), names

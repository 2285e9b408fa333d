"""What `get`, `wait` and `next` raise shows the user's frames, not ours."""

from __future__ import annotations

import traceback
from types import SimpleNamespace
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.common import short_tracebacks
from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, RayTaskError, WorkerCrashedError
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator


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


class Interrupted:
    """A generator's items, of which the next does not come before a Ctrl-C."""

    is_ready = False

    def await_next(self, timeout_s: float | None) -> None:
        deep(KeyboardInterrupt())


def test_the_next_item_of_a_generator_as_well() -> None:
    end: Any = SimpleNamespace(_home=None)
    generator: Any = ObjectRefGenerator(Interrupted(), end, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt) as caught:
        next(generator)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "__next__"


def test_pytest_shows_the_line_that_called_us() -> None:
    with pytest.raises(TypeError) as caught:
        ray.wait("no list")  # type: ignore[arg-type]
    shown = caught.traceback.filter(caught)
    assert [entry.name for entry in shown] == ["test_pytest_shows_the_line_that_called_us"]

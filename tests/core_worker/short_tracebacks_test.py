"""What `get`, `wait` and `next` raise, and a Ctrl-C, show the user's frames, not ours."""

from __future__ import annotations

import contextlib
import signal
import traceback
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, RayTaskError, WorkerCrashedError
from ray_mono.core_worker import short_tracebacks
from ray_mono.core_worker.driver import InterruptHandler
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
    end: Any = SimpleNamespace(_core=None)
    generator: Any = ObjectRefGenerator(Interrupted(), end, None)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt) as caught:
        next(generator)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "__next__"


class FakeReactor:
    is_closed = False
    interrupted = False
    lock = contextlib.nullcontext()

    def __init__(self, raises: bool) -> None:
        self.raises = raises
        self.struck: list[str] = []
        self.timers: list[Any] = []

    def takes_interrupt(self, frame: FrameType | None) -> bool:
        assert frame is not None
        self.struck.append(frame.f_code.co_name)
        self.interrupted = not self.raises
        return self.raises

    def call_later(self, delay_s: float, callback: Any) -> None:
        self.timers.append(callback)


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def strike() -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_in_the_users_code_has_no_frame_of_ours(sigint: None) -> None:
    reactor: Any = FakeReactor(raises=True)
    signal.signal(signal.SIGINT, InterruptHandler(reactor))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt) as caught:
        strike()
    assert reactor.struck == ["strike"]
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "strike"


def test_a_ctrl_c_in_our_code_is_noted_and_comes_again_unless_a_wait_has_raised_it(sigint: None) -> None:
    reactor: Any = FakeReactor(raises=False)
    signal.signal(signal.SIGINT, InterruptHandler(reactor))  # type: ignore[arg-type]
    strike()
    reactor.timers.pop()()
    assert reactor.struck == ["strike", reactor.struck[1]], "the timer struck again"
    (again,) = reactor.timers
    reactor.interrupted = False
    again()
    assert len(reactor.struck) == 2, "a wait has raised it"


def test_pytest_shows_the_line_that_called_us() -> None:
    with pytest.raises(TypeError) as caught:
        ray.wait("no list")  # type: ignore[arg-type]
    shown = caught.traceback.filter(caught)
    assert [entry.name for entry in shown] == ["test_pytest_shows_the_line_that_called_us"]

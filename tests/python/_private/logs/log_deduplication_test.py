"""Lines that several workers write are shown once, and counted."""

from __future__ import annotations

import io
import threading
import tracemalloc

import pytest

from ray_mono._private.logs import log_deduplication, log_printing
from ray_mono._private.logs.log_deduplication import WINDOW_S, LogDeduplicator, Origin
from ray_mono._private.logs.log_printing import STATE_PREFIX, LogPrinter
from ray_mono.protobuf import common_pb2


def worker(pid: int, host: str = "h") -> Origin:
    return Origin("f", pid, host, False)


def shown(taken: list[tuple[Origin, list[str]]]) -> list[tuple[int, str]]:
    return [(origin.pid, line) for origin, lines in taken for line in lines]


def test_the_first_line_is_shown_at_once_and_the_others_as_a_number_after_the_window() -> None:
    logs = LogDeduplicator()
    assert shown(logs.take(worker(1), ["loaded in 3.1 s"], 0.0)) == [(1, "loaded in 3.1 s")]
    assert logs.due_s is None
    assert shown(logs.take(worker(2), ["loaded in 2.9 s"], 1.0)) == []
    assert shown(logs.take(worker(3, "other"), ["loaded in 3.0 s"], 2.0)) == []
    assert logs.due_s == WINDOW_S
    assert logs.take_due(WINDOW_S - 0.1) == []
    ((pid, line),) = shown(logs.take_due(WINDOW_S))
    assert pid == 3 and line.startswith("loaded in 3.0 s [repeated 2x across cluster] (")
    assert logs.due_s is None


def test_counting_goes_on_while_the_line_comes_again_and_the_hint_is_given_once() -> None:
    logs = LogDeduplicator()
    for pid in (1, 2, 3):
        logs.take(worker(pid), ["same"], 0.0)
    logs.take_due(WINDOW_S)
    # Also from the worker that was first.
    assert shown(logs.take(worker(1), ["same"], WINDOW_S + 1)) == []
    assert shown(logs.take(worker(2), ["same"], WINDOW_S + 1)) == []
    assert shown(logs.take_due(2 * WINDOW_S)) == [(2, "same [repeated 2x across cluster]")]
    logs.take_due(3 * WINDOW_S)
    assert shown(logs.take(worker(2), ["same"], 3 * WINDOW_S)) == [(2, "same")]


def test_a_single_withheld_line_is_shown_as_it_is() -> None:
    logs = LogDeduplicator()
    logs.take(worker(1), ["same"], 0.0)
    logs.take(worker(2), ["same"], 1.0)
    assert shown(logs.take_due(WINDOW_S)) == [(2, "same")]


def test_what_one_worker_repeats_and_lines_of_numbers_only_are_all_shown() -> None:
    logs = LogDeduplicator()
    for _ in range(3):
        assert shown(logs.take(worker(1), ["step 1", "", "17"], 0.0)) == [(1, "step 1"), (1, ""), (1, "17")]
    assert shown(logs.take(worker(2), ["18", "epoch 1"], 0.0)) == [(2, "18"), (2, "epoch 1")]


def test_what_is_withheld_comes_before_new_lines_and_at_the_end() -> None:
    logs = LogDeduplicator()
    for pid in (1, 2, 3):
        logs.take(worker(pid), ["same"], 0.0)
    assert [line.split(" (")[0] for _, line in shown(logs.take(worker(1), ["new"], WINDOW_S + 1))] == [
        "same [repeated 2x across cluster]",
        "new",
    ]
    logs.take(worker(2), ["same"], WINDOW_S + 2)
    assert shown(logs.take_all()) == [(2, "same")]
    assert logs.take_all() == []


def test_patterns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_deduplication, "PATTERNS_MAX", 2)
    logs = LogDeduplicator()
    logs.take(worker(1), ["a"], 0.0)
    logs.take(worker(2), ["a"], 0.0)
    assert shown(logs.take(worker(1), ["b", "c"], 0.0)) == [(2, "a"), (1, "b"), (1, "c")]


def test_long_lines_are_not_kept_once_they_are_shown_and_what_is_withheld_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_deduplication, "WITHHELD_MAX", 1_500_000)
    logs = LogDeduplicator()
    tracemalloc.start()
    try:
        for letter in "abcdefghij":
            logs.take(worker(1), [letter * 1_000_000], 0.0)
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert shown(logs.take(worker(2), ["a" * 1_000_000], 1.0)) == []
    assert shown(logs.take(worker(2), ["b" * 1_000_000], 1.0)) == [(2, "a" * 1_000_000)]
    assert shown(logs.take_all()) == [(2, "b" * 1_000_000)]


def test_the_environment_turns_it_off_and_says_what_is_always_or_never_shown() -> None:
    prefix = log_deduplication.VARIABLE
    off = LogDeduplicator.from_environment({prefix: "0"})
    assert [shown(off.take(worker(pid), ["same"], 0.0)) for pid in (1, 2)] == [[(1, "same")], [(2, "same")]]
    logs = LogDeduplicator.from_environment(
        {
            f"{prefix}_ALLOW_REGEX": "ALWAYS",
            f"{prefix}_SKIP_REGEX": "noise|ALWAYS",
            f"{prefix}_AGG_WINDOW_S": "1",
        }
    )
    assert shown(logs.take(worker(1), ["noise", "ALWAYS"], 0.0)) == [(1, "ALWAYS")]
    assert shown(logs.take(worker(2), ["noise", "ALWAYS", "x"], 0.0)) == [(2, "ALWAYS"), (2, "x")]
    logs.take(worker(1), ["x"], 0.0)
    assert logs.due_s == 1.0
    with pytest.raises(ValueError, match="_AGG_WINDOW_S='soon'"):
        LogDeduplicator.from_environment({f"{prefix}_AGG_WINDOW_S": "soon"})


def test_a_printer_shows_the_number_when_the_window_is_over() -> None:
    class Lines(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.has_number = threading.Event()

        def write(self, text: str) -> int:
            if "repeated 2x" in text:
                self.has_number.set()
            return super().write(text)

    out = Lines()
    printer = LogPrinter("h", LogDeduplicator(window_s=1.0), out, out)
    for pid in (1, 2, 3):
        printer(common_pb2.LogBatch(name="f", pid=pid, host="h", lines=["hello"]))
    assert out.has_number.wait(30.0)
    printer.close()


def test_a_printer_shows_what_is_withheld_at_its_end() -> None:
    out = io.StringIO()
    printer = LogPrinter("h", LogDeduplicator(window_s=60.0), out, out)
    for pid in (1, 2, 3):
        printer(common_pb2.LogBatch(name="f", pid=pid, host="h", lines=["hello"]))
    printer(common_pb2.LogBatch(name="f", pid=4, host="h", lines=["hello", "bye"]))
    assert out.getvalue() == "(f pid=1) hello\n(f pid=4) bye\n"
    printer.close()
    assert out.getvalue().splitlines()[-1].startswith("(f pid=4) hello [repeated 3x across cluster]")


def test_a_printer_ends_though_its_output_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, released = threading.Event(), threading.Event()

    class Stopped(io.StringIO):
        def write(self, text: str) -> int:
            hangs.set()
            released.wait(30.0)
            return super().write(text)

    monkeypatch.setattr(log_printing, "CLOSE_TIMEOUT_S", 0.0)
    printer = LogPrinter("h", LogDeduplicator(), Stopped())
    batch = common_pb2.LogBatch(name="f", pid=1, host="h", lines=["hello"])
    thread = threading.Thread(target=printer, args=(batch,))
    thread.start()
    hangs.wait()
    printer.close()
    still_hangs = thread.is_alive()
    released.set()
    thread.join()
    assert still_hangs


def test_states_of_progress_bars_are_never_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        log_printing, "_draw", lambda batch, states: drawn.extend(state["pid"] for state in states)
    )
    printer = LogPrinter("h", LogDeduplicator(), io.StringIO(), io.StringIO())
    for pid in (1, 2, 3):
        state = (
            '{"uuid": "u", "x": 0, "total": 1, "desc": "", "unit": "", "pos": 0,'
            f' "pid": {pid}, "ip": "", "closed": false}}'
        )
        printer(common_pb2.LogBatch(name="f", pid=pid, lines=[STATE_PREFIX + state]))
    assert drawn == [1, 2, 3]
    printer.close()

"""Progress bars on a terminal and off it, and the lines that carry them there."""

from __future__ import annotations

import builtins
import io
import json
import math
import os
from typing import Any

import pytest

from ray_mono._private.logs import progress_bars
from ray_mono._private.logs.log_printing import STATE_PREFIX, LogPrinter
from ray_mono._private.logs.progress_bars import LINE_PERIOD_S, BarManager, describe_bar
from ray_mono.experimental import tqdm_ray
from ray_mono.protobuf import common_pb2
from tests.python._private.logs.terminal import Terminal
from tests.tee import Tee

COLUMNS = 60


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def state(number: int = 0, done: int = 1, **given: Any) -> dict[str, Any]:
    common = {"total": 4, "desc": f"bar {number}", "unit": "it", "pos": number, "pid": os.getpid(), "ip": ""}
    return {"uuid": str(number), "x": done, "closed": False, **common, **given}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def bars(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> BarManager:
    """The bars of this process, on the terminal."""
    manager = BarManager(terminal, clock, lambda: os.terminal_size((COLUMNS, 6)))
    monkeypatch.setattr(progress_bars, "_manager", manager)
    monkeypatch.setattr(progress_bars, "DRAW_PERIOD_S", 0.0)
    return manager


def test_a_bar_moves_in_its_line(bars: BarManager, terminal: Terminal, clock: Clock) -> None:
    bars.process_state_update(state(done=1))
    clock.now_s = 10
    bars.process_state_update(state(done=2))
    (line,) = terminal.screen()
    assert line.startswith("bar 0:  50%|███████████████ ") and len(line) == COLUMNS - 1


def test_several_bars_stand_below_each_other_by_position(bars: BarManager, terminal: Terminal) -> None:
    for number in (2, 0, 1):
        bars.process_state_update(state(number))
    assert [line[:5] for line in terminal.screen()] == ["bar 0", "bar 1", "bar 2"]


def test_bars_that_do_not_fit_are_counted(bars: BarManager, terminal: Terminal) -> None:
    for number in range(10):
        bars.process_state_update(state(number))
    assert len(terminal.screen()) == 5 and terminal.screen()[-1] == "… and 6 more"


def test_a_closed_bar_stays_above_those_that_move(bars: BarManager, terminal: Terminal) -> None:
    bars.process_state_update(state(0))
    bars.process_state_update(state(1))
    bars.process_state_update(state(0, done=4, closed=True))
    assert [line[:12] for line in terminal.screen()] == ["bar 0: 100%|", "bar 1:  25%|"]
    bars.process_state_update(state(1, done=4, closed=True))
    assert [line[:12] for line in terminal.screen()] == ["bar 0: 100%|", "bar 1: 100%|"]
    assert terminal.lines[terminal.row] == ""  # what is printed next has its own line


def test_what_is_printed_stands_above_the_bars(
    bars: BarManager, terminal: Terminal, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sys.stdout", terminal)
    bars.process_state_update(state(0))
    bars.process_state_update(state(1))
    print("printed")
    tqdm_ray.safe_print("safe", "too")
    batch = common_pb2.LogBatch(name="f", pid=7, host="h", lines=["from a worker"])
    LogPrinter("h", out=terminal)(batch)
    assert [line[:20] for line in terminal.screen()][:3] == ["printed", "safe too", "(f pid=7) from a wor"]
    assert [line[:5] for line in terminal.screen()][3:] == ["bar 0", "bar 1"]


def test_print_is_safe_in_a_program_with_bars_unless_it_is_to_be_left_alone(
    bars: BarManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "print", progress_bars._print)
    monkeypatch.setenv(progress_bars.PATCH_PRINT_VARIABLE, "0")
    bars.process_state_update(state())
    assert builtins.print is progress_bars._print
    monkeypatch.setenv(progress_bars.PATCH_PRINT_VARIABLE, "1")
    bars.process_state_update(state())
    assert builtins.print is tqdm_ray.safe_print


def test_hidden_bars_come_back_as_they_are_by_then(bars: BarManager, terminal: Terminal) -> None:
    bars.process_state_update(state())
    with bars.hidden():
        assert terminal.screen() == []
        bars.process_state_update(state(done=2))
        assert terminal.screen() == []
    assert "50%" in terminal.screen()[0]


def test_the_end_of_the_program_leaves_the_cursor_below(bars: BarManager, terminal: Terminal) -> None:
    bars.process_state_update(state())
    bars.finish()
    assert len(terminal.screen()) == 1 and terminal.lines[terminal.row] == ""


def test_where_there_is_no_terminal_bars_are_lines_now_and_then(clock: Clock) -> None:
    out = io.StringIO()
    bars = BarManager(out, clock)
    for clock.now_s in range(25):
        bars.process_state_update(state(done=int(clock.now_s), total=25))
    bars.process_state_update(state(done=25, total=25, closed=True))
    lines = out.getvalue().splitlines()
    assert [line.partition("| ")[2].partition(" ")[0] for line in lines] == ["10/25", "20/25", "25/25"]
    assert LINE_PERIOD_S == 10 and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_a_closed_stream_harms_nobody() -> None:
    out = io.StringIO()
    bars = BarManager(out)
    out.close()
    bars.process_state_update(state(closed=True))
    bars.hide_bars()
    bars.unhide_bars()
    bars.finish()


class Broken(io.StringIO):
    """A stand-in of the program's that fails in its own way."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise RuntimeError("no more")


class Sulking(Broken):
    def isatty(self) -> bool:
        raise RuntimeError("who asks?")


@pytest.mark.parametrize("stream", [Broken(), Sulking()])
def test_a_stream_that_fails_in_any_way_harms_nobody(stream: io.StringIO) -> None:
    bars = BarManager(stream)
    bars.process_state_update(state())
    bars.process_state_update(state(closed=True))
    with bars.hidden():
        pass
    bars.finish()


@pytest.mark.parametrize(
    ("given", "elapsed_s", "line"),
    [
        ({"done": 0}, 0, f"bar 0:   0%|{' ' * 30}| 0/4 [00:00<?, ?it/s]"),
        ({"done": 1}, 2, f"bar 0:  25%|{'█' * 7}▌{' ' * 22}| 1/4 [00:02<00:06, 0.50it/s]"),
        ({"done": 4}, 3661, f"bar 0: 100%|{'█' * 30}| 4/4 [1:01:01<00:00, 0.00it/s]"),
        ({"done": 5}, 1, f"bar 0: 100%|{'█' * 30}| 5/4 [00:01<?, 5.00it/s]"),
        ({"done": 3, "total": None, "desc": "", "unit": "B"}, 1, "3B [00:01, 3.00B/s]"),
        ({"done": 3, "total": math.inf}, 1, "bar 0: 3it [00:01, 3.00it/s]"),
    ],
)
def test_a_line_says_how_far_and_how_fast(given: dict[str, Any], elapsed_s: float, line: str) -> None:
    assert describe_bar(state(**given), elapsed_s) == line


def test_bars_of_other_processes_say_whose_they_are(bars: BarManager, terminal: Terminal) -> None:
    bars.process_state_update(state(pid=7, name="f"))
    bars.process_state_update(state(1, pid=8))
    assert [line.partition("bar")[0] for line in terminal.screen()] == ["(f pid=7) ", "(pid=8) "]


# ---------------------------------------------------------------- the protocol of lines


def test_states_among_lines_are_drawn_and_the_rest_is_printed(bars: BarManager, terminal: Terminal) -> None:
    out = io.StringIO()
    text = STATE_PREFIX + json.dumps(state())
    lines = ["before", text, "unfinished" + text, f"{STATE_PREFIX}{{cut", "", f"{STATE_PREFIX}{{}}", "after"]
    LogPrinter("", out=out)(common_pb2.LogBatch(name="f", pid=7, lines=lines))
    told = [line.removeprefix("(f pid=7) ") for line in out.getvalue().splitlines()]
    assert told == ["before", "unfinished", f"{STATE_PREFIX}{{cut", "", f"{STATE_PREFIX}{{}}", "after"]
    assert len(terminal.screen()) == 1


def test_bars_of_a_process_that_is_gone_stay_as_they_are_above_the_others(
    bars: BarManager, terminal: Terminal
) -> None:
    for pid in (7, 8):
        bars.process_state_update(state(pid=pid, uuid=f"bar of {pid}"))
    LogPrinter("", out=io.StringIO())(common_pb2.LogBatch(host=state()["ip"], pid=7, is_end=True))
    assert [line.partition(")")[0] for line in terminal.screen()] == ["(pid=7", "(pid=8"]
    bars.process_state_update(state(closed=True, pid=8, uuid="bar of 8"))
    assert len(terminal.screen()) == 2 and not bars._bars


def test_a_batch_of_states_alone_prints_nothing(bars: BarManager) -> None:
    out = io.StringIO()
    LogPrinter("", out=out)(common_pb2.LogBatch(lines=[STATE_PREFIX + json.dumps(state())]))
    assert out.getvalue() == ""


# ---------------------------------------------------------------- tqdm itself


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """States that bars of this process sent."""
    states: list[Any] = []
    monkeypatch.setattr(BarManager, "process_state_update", lambda self, state: states.append(state))
    return states


def test_an_iteration_counts_and_closes(sent: list[Any]) -> None:
    bar = tqdm_ray.tqdm([1, 2, 3], desc="work", flush_interval_s=0)
    assert list(bar) == [1, 2, 3] and (bar.n, bar.total) == (3, 3)
    assert [(each["x"], each["total"], each["desc"], each["closed"]) for each in sent] == [
        (1, 3, "work", False),
        (2, 3, "work", False),
        (3, 3, "work", False),
        (3, 3, "work", True),
    ]
    bar.close()
    assert len(sent) == 4


def test_a_bar_is_moved_by_hand(sent: list[Any]) -> None:
    bar = tqdm_ray.tqdm(total=5, unit="x", position=2, flush_interval_s=0)
    bar.update()
    bar.update(2)
    bar.set_description("new")
    bar.total, bar.n = 7, 6
    bar.refresh()
    last = sent[-1]
    assert (last["x"], last["total"], last["desc"], last["unit"], last["pos"]) == (6, 7, "new", "x", 2)
    with pytest.raises(ValueError, match="No iterable"):
        list(bar)


def test_states_are_sent_no_more_often_than_the_interval(sent: list[Any]) -> None:
    bar = tqdm_ray.tqdm(iter(range(1000)), flush_interval_s=3600)
    assert bar.total is None and len(list(bar)) == 1000
    assert [each["x"] for each in sent] == [1, 1000]
    assert tqdm_ray.tqdm.DEFAULT_FLUSH_INTERVAL_SECONDS == 1.0


def test_a_stand_in_of_the_programs_gets_lines(clock: Clock) -> None:
    tee = Tee()
    manager = BarManager(tee, clock)  # type: ignore[arg-type]
    manager.process_state_update(state(done=4, closed=True))
    manager.finish()
    assert len(tee.written) == 1 and tee.written[0].startswith("bar 0: 100%")
    assert not progress_bars.is_terminal(tee)  # type: ignore[arg-type]
    assert not progress_bars.is_terminal(None)

"""Progress bars of a whole cluster on one terminal, below everything else that is printed. Each bar is a
line, and none is ever torn.

On a terminal the bars are a block of lines that ends without a line break. Whoever prints takes the block
away first and puts it back afterwards (`hidden`). The log printing does so, and safe_print. In a program with
bars the built-in print is safe_print, unless RAY_MONO_TQDM_PATCH_PRINT is 0. A bar that is closed leaves its
last state above the block.

Anywhere else (a file, a pipe) nothing can be taken back. There a bar is printed as a line when it is closed,
and every LINE_PERIOD_S before.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from ray_mono.common.output import write_text
from ray_mono.core_worker.process import current

# Between two redraws of the block: the eye does not see more of them.
DRAW_PERIOD_S = 0.05
# Between two lines about the same bar, where there is no terminal.
LINE_PERIOD_S = 10.0
BAR_CELLS = 30
NAME_CHARACTERS_MAX = 1000
PATCH_PRINT_VARIABLE = "RAY_MONO_TQDM_PATCH_PRINT"

_ERASE_LINE = "\r\x1b[2K"
_UP = "\x1b[1A"
_PARTS_OF_A_CELL = " ▏▎▍▌▋▊▉"

_print = builtins.print


@dataclass
class _Bar:
    state: Mapping[str, Any]
    began_s: float
    shown_s: float
    """When it was last a line, where there is no terminal."""


class BarManager:
    """The bars that this process shows. Safe for use by several threads."""

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        terminal_size: Callable[[], os.terminal_size] = shutil.get_terminal_size,
    ) -> None:
        """stream: where the bars go; None: this process's standard error."""
        self._stream = stream
        self._clock = clock
        self._terminal_size = terminal_size
        self._lock = threading.RLock()
        self._bars: dict[str, _Bar] = {}
        self._num_drawn = 0
        """Lines of the block on the terminal."""
        self._num_hiders = 0
        self._drawn_s = float("-inf")
        self._late_draw: threading.Timer | None = None

    def process_state_update(self, state: Mapping[str, Any]) -> None:
        """Shows a bar's new state, as experimental/tqdm_ray.py sends it."""
        with self._lock:
            now_s = self._clock()
            bar = self._bars.get(state["uuid"])
            if bar is None:
                if state["closed"] and not state["x"]:
                    return  # it was closed before it was ever shown
                bar = self._bars[state["uuid"]] = _Bar(state, now_s, now_s)
            bar.state = state
            if state["closed"]:
                del self._bars[state["uuid"]]
            self._show(bar, now_s)

    def end_process(self, ip: str, pid: int) -> None:
        """A process is gone: the bars that it left open stay above the block as they are."""
        with self._lock:
            for bar in list(self._bars.values()):
                if (bar.state["ip"], bar.state["pid"]) == (ip, pid):
                    self.process_state_update({**bar.state, "closed": True})

    def _show(self, bar: _Bar, now_s: float) -> None:
        stream = self._out()
        if not is_terminal(stream):
            if bar.state["closed"] or now_s - bar.shown_s >= LINE_PERIOD_S:
                bar.shown_s = now_s
                write_text(stream, self._line(bar, now_s, None) + "\n")
            return
        if bar.state["closed"]:
            self._erase()
            write_text(stream, self._line(bar, now_s, self._terminal_size().columns) + "\n")
            self._draw()
        elif now_s - self._drawn_s >= DRAW_PERIOD_S:
            self._erase()
            self._draw()
        elif self._late_draw is None:
            # It may be the last state for long, so it is shown a little later.
            self._late_draw = threading.Timer(DRAW_PERIOD_S, self._draw_late)
            self._late_draw.daemon = True
            self._late_draw.start()

    def _draw_late(self) -> None:
        with self._lock:
            self._late_draw = None
            if self._bars:
                self._erase()
                self._draw()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Takes the bars away meanwhile, so that what is printed stands above them. Nobody else draws."""
        with self._lock:
            self.hide_bars()
            try:
                yield
            finally:
                self.unhide_bars()

    def hide_bars(self) -> None:
        """Takes the block of bars away, until as many calls of unhide_bars()."""
        with self._lock:
            self._num_hiders += 1
            self._erase()

    def unhide_bars(self) -> None:
        """Puts the block back."""
        with self._lock:
            self._num_hiders = max(0, self._num_hiders - 1)
            if self._bars and is_terminal(self._out()):
                self._draw()

    def finish(self) -> None:
        """The program ends: the cursor goes below the bars that are still there."""
        with self._lock:
            if self._num_drawn:
                write_text(self._out(), "\n")
            self._bars.clear()
            self._num_drawn = 0

    def _out(self) -> TextIO | None:
        return self._stream or sys.stderr

    def _erase(self) -> None:
        if self._num_drawn:
            write_text(self._out(), _ERASE_LINE + (_UP + _ERASE_LINE) * (self._num_drawn - 1))
            self._num_drawn = 0

    def _draw(self) -> None:
        if self._num_hiders:
            return
        now_s, size = self._clock(), self._terminal_size()
        bars = sorted(self._bars.values(), key=lambda bar: (_group(bar.state), bar.state["pos"]))
        lines = [self._line(bar, now_s, size.columns) for bar in bars]
        room = max(1, size.lines - 1)
        if len(lines) > room:
            lines[room - 1 :] = [f"… and {len(lines) - room + 1} more"]
        write_text(self._out(), "\n".join(lines))
        self._num_drawn = len(lines)
        self._drawn_s = now_s
        patch_print()

    def _line(self, bar: _Bar, now_s: float, columns: int | None) -> str:
        prefix = _prefix(bar.state)
        line = prefix + describe_bar(bar.state, now_s - bar.began_s)
        # The last column stays free: some terminals break the line when it is written.
        return line if columns is None else line[: columns - 1]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether it is a terminal. False for a stream that is closed, or a stand-in that cannot say."""
    with contextlib.suppress(Exception):
        return stream is not None and stream.isatty()
    return False


def _group(state: Mapping[str, Any]) -> tuple[str, int]:
    return str(state["ip"]), int(state["pid"])


def _prefix(state: Mapping[str, Any]) -> str:
    """Whose bar it is, like the prefix of printed lines; nothing for this process's own."""
    core = current.core
    own_ip = core.node_host if core is not None else state["ip"]
    if state["ip"] == own_ip and state["pid"] == os.getpid():
        return ""
    who = f"{state.get('name') or ''} pid={state['pid']}".lstrip()
    return f"({who}) " if state["ip"] == own_ip else f"({who}, ip={state['ip']}) "


def describe_bar(state: Mapping[str, Any], elapsed_s: float) -> str:
    """One line: description, share done, the bar, counts, time taken and left, speed."""
    done, total, unit = state["x"], state["total"], state["unit"] or "it"
    name = f"{state['desc']}: " if state["desc"] else ""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    speed = f"{rate:.2f}{unit}/s" if rate else f"?{unit}/s"
    if not total or not math.isfinite(total):
        return f"{name}{done}{unit} [{_clock_time(elapsed_s)}, {speed}]"
    share = min(1.0, max(0.0, done / total))
    left = _clock_time((total - done) / rate) if rate and done <= total else "?"
    return f"{name}{share:4.0%}|{_cells(share)}| {done}/{total} [{_clock_time(elapsed_s)}<{left}, {speed}]"


def _cells(share: float) -> str:
    eighths = round(share * BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_PARTS_OF_A_CELL[rest] if rest else "")).ljust(BAR_CELLS)


def _clock_time(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


_manager: BarManager | None = None
_manager_lock = threading.Lock()


def manager() -> BarManager:
    """The bars of this process."""
    global _manager
    with _manager_lock:
        if _manager is None:
            _manager = BarManager()
            atexit.register(_manager.finish)
        return _manager


def hidden() -> contextlib.AbstractContextManager[None]:
    """For printing: the bars, if there are any, step aside."""
    return contextlib.nullcontext() if _manager is None else _manager.hidden()


def safe_print(*values: Any, **options: Any) -> None:
    """The built-in print, with the bars out of its way."""
    if _manager is None or options.get("file") not in (None, sys.stdout, sys.stderr):
        _print(*values, **options)
        return
    with _manager.hidden():
        _print(*values, **{**options, "flush": True})


def patch_print() -> None:
    """Makes safe_print the built-in print, so that a program's own output does not tear its bars."""
    if os.environ.get(PATCH_PRINT_VARIABLE, "1") != "0" and builtins.print is _print:
        builtins.print = safe_print

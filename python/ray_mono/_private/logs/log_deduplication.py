"""Which lines a driver shows if many workers write the same: the first at once, the others as a number.

Lines are the same when they differ only in words that contain digits. A line from a second worker begins the
counting; what one worker repeats by itself is shown as it is. After the window the number of withheld lines
stands behind the latest of them:

    (f pid=4711) model loaded in 3.1 s
    (f pid=4714) model loaded in 2.9 s [repeated 3x across cluster]

Counting goes on while the line comes again within a window. A single withheld line is shown plainly. This is
a machine without a clock: times come with the calls, in seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WINDOW_S = 5.0
PATTERNS_MAX = 10_000
"""How many are kept. Beyond that the oldest are shown early."""
WITHHELD_MAX = 16 << 20
"""How many characters of withheld lines are kept. Beyond that the oldest are shown early."""
VARIABLE = "RAY_MONO_DEDUP_LOGS"
_has_digit = re.compile(r"\d").search
_HINT = f" (lines that several workers write are shown once; {VARIABLE}=0 shows all of them)"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a line."""

    name: str
    pid: int
    host: str
    is_error: bool


@dataclass(slots=True)
class _Pattern:
    began_s: float
    origin: Origin
    writers: set[tuple[str, int]] = field(default_factory=set)
    # How many lines were withheld since one was shown, and the latest of them.
    num_withheld: int = 0
    line: str = ""


class LogDeduplicator:
    """Decides for one driver.

    Args:
        window_s: how long the same line is counted before the number is shown, in seconds; 0 shows every
            line.
        always: a regular expression; lines in which it is found are always shown.
        never: a regular expression; lines in which it is found are never shown, unless `always` is found in
            them too.
    """

    def __init__(
        self, window_s: float = WINDOW_S, always: str | None = None, never: str | None = None
    ) -> None:
        self._window_s = window_s
        self._always = re.compile(always) if always else None
        self._never = re.compile(never) if never else None
        # By the hash of what its lines have in common (lines may be long), in the order of the windows.
        self._patterns: dict[int, _Pattern] = {}
        self._withheld = 0
        self._has_hinted = False

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> LogDeduplicator:
        """RAY_MONO_DEDUP_LOGS (0: every line is shown), _AGG_WINDOW_S, _ALLOW_REGEX, _SKIP_REGEX. Raises
        ValueError naming the variable."""
        name, text = f"{VARIABLE}_AGG_WINDOW_S", environment.get(f"{VARIABLE}_AGG_WINDOW_S") or str(WINDOW_S)
        try:
            window_s = float(text)
        except ValueError:
            raise ValueError(f"{name}={text!r} is no number of seconds") from None
        if environment.get(VARIABLE, "1").lower() in ("0", "false"):
            window_s = 0.0
        return LogDeduplicator(
            window_s, environment.get(f"{VARIABLE}_ALLOW_REGEX"), environment.get(f"{VARIABLE}_SKIP_REGEX")
        )

    @property
    def due_s(self) -> float | None:
        """When take_due has something to show; None while nothing is withheld."""
        return next((p.began_s + self._window_s for p in self._patterns.values() if p.num_withheld), None)

    def take(self, origin: Origin, lines: Sequence[str], now_s: float) -> list[tuple[Origin, list[str]]]:
        """What to show now, in order: of these lines, and of earlier ones whose window is over."""
        due = self.take_due(now_s)
        shown = [line for line in lines if self._is_shown(origin, line, now_s)]
        while len(self._patterns) > PATTERNS_MAX or self._withheld > WITHHELD_MAX:
            due += self._settle(next(iter(self._patterns)))
        return [*due, (origin, shown)] if shown else due

    def take_due(self, now_s: float) -> list[tuple[Origin, list[str]]]:
        """What was withheld in windows that are over."""
        due: list[tuple[Origin, list[str]]] = []
        while self._patterns:
            key, pattern = next(iter(self._patterns.items()))
            if now_s < pattern.began_s + self._window_s:
                break
            due += self._settle(key)
            if pattern.num_withheld > 1:
                # It may go on.
                self._patterns[key] = _Pattern(now_s, pattern.origin, pattern.writers)
        return due

    def take_all(self) -> list[tuple[Origin, list[str]]]:
        """Everything that is withheld."""
        return [item for key in list(self._patterns) for item in self._settle(key)]

    def _is_shown(self, origin: Origin, line: str, now_s: float) -> bool:
        if self._always is not None and self._always.search(line):
            return True
        if self._never is not None and self._never.search(line):
            return False
        common = " ".join([word for word in line.split() if not _has_digit(word)])
        if not common or self._window_s <= 0:
            return True
        key = hash(common)
        pattern = self._patterns.get(key)
        if pattern is None:
            pattern = self._patterns[key] = _Pattern(now_s, origin)
        pattern.writers.add((origin.host, origin.pid))
        if len(pattern.writers) == 1:
            return True
        pattern.num_withheld += 1
        self._withheld += len(line) - len(pattern.line)
        pattern.origin, pattern.line = origin, line
        return False

    def _settle(self, key: int) -> list[tuple[Origin, list[str]]]:
        pattern = self._patterns.pop(key)
        self._withheld -= len(pattern.line)
        if not pattern.num_withheld:
            return []
        line = pattern.line
        if pattern.num_withheld > 1:
            line += f" [repeated {pattern.num_withheld}x across cluster]"
            if not self._has_hinted:
                self._has_hinted = True
                line += _HINT
        return [(pattern.origin, [line])]

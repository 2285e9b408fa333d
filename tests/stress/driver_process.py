"""A stress driver as its supervisor has it: a process that talks by lines, and that must not fall silent."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

SILENCE_S = 60.0
"""A driver speaks every second; on a machine that is busy starting many workers it takes longer."""
OVER_S = 150.0
"""From "stop" to the end of the scenes under way and of letting go: longer than any wait of theirs."""
STACKS_S = 2.0


class Stuck(Exception):
    """A driver said nothing for too long. The message has its stacks."""


class DriverProcess:
    """One driver.py."""

    def __init__(self, address: str, seed: str, actors: int, threads: int, only: str, scratch: Path) -> None:
        self.seed = seed
        self.progress: dict[str, Any] = {}
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.stress.driver", f"--address={address}", f"--seed={seed}"),
                *(f"--actors={actors}", f"--threads={threads}", f"--only={only}", f"--scratch={scratch}"),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        self._heard_s = time.monotonic()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    @property
    def playing(self) -> list[str]:
        """The scenes of its threads, when it spoke last."""
        return list(self.progress.get("playing", {}).values())

    def check(self) -> None:
        """Reads what it said. Raises AssertionError where it failed, Stuck where it fell silent."""
        while self._next(0.0):
            pass

    def wait_for(self, kind: str) -> dict[str, Any]:
        """What it says under this head. Raises as `check` does, and where it takes longer than OVER_S."""
        deadline_s = time.monotonic() + OVER_S
        while True:
            said = self._next(1.0)
            if kind in said:
                found: dict[str, Any] = said[kind]
                return found
            if time.monotonic() > deadline_s:
                raise Stuck(
                    f"driver {self.seed} did not say {kind!r} in {OVER_S:g} s;"
                    f" it plays {self.playing}; {self._stacks()}"
                )

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout_s) if timeout_s else self._lines.get_nowait()
        except queue.Empty:
            if time.monotonic() - self._heard_s > SILENCE_S:
                raise Stuck(
                    f"driver {self.seed} said nothing for {SILENCE_S:g} s; {self._stacks()}"
                ) from None
            return {}
        self._heard_s = time.monotonic()
        assert line, f"driver {self.seed} ended with {self._process.wait()}; {self._read_errors()}"
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            error, state = said["failed"]["error"], json.dumps(said["failed"]["state"])
            raise AssertionError(f"driver {self.seed} failed: {error}\n{state}\n{self._read_errors()}")
        self.progress = said.get("progress") or said.get("idle") or self.progress
        return said

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Raises AssertionError unless it ended well."""
        status = self._process.wait(OVER_S)
        assert status == 0, f"driver {self.seed} ended with {status}; {self._read_errors()}"

    def kill(self) -> None:
        """Without a chance to say good-bye."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _stacks(self) -> str:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGUSR2)
            time.sleep(STACKS_S)
        return self._read_errors()

    def _read_errors(self) -> str:
        self._errors.seek(0)
        return f"it wrote:\n{self._errors.read()[-8000:]}"

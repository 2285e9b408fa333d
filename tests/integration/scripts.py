"""Programs that tests write, run as a user would, and talk to while they run."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

OUTPUT_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
FOOTER = (
    "from tests.integration.nothing_left import wait_for_nothing_left\n"
    "wait_for_nothing_left()\n"
    "ray.shutdown()\n"
)


class Script:
    """A running script: its lines as they come, and its end."""

    def __init__(self, path: Path, *arguments: str, cwd: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own, as a shell would give it: Ctrl-C goes to all of the group.
            process_group=0,
        )
        self.pid = self._process.pid
        self.output = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for_line(self, part: str) -> str:
        """The next line with `part` in it. Fails with all output if there is none in time."""
        while True:
            try:
                line = self._lines.get(timeout=OUTPUT_TIMEOUT_S)
            except queue.Empty:
                line = None
            assert line is not None, f"no line with {part!r}; the script said:\n{self.output}"
            self.output += line
            if part in line:
                return line

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Its exit code, after all of its output."""
        self._process.wait(END_TIMEOUT_S)
        with contextlib.suppress(queue.Empty):
            while (line := self._lines.get(timeout=OUTPUT_TIMEOUT_S)) is not None:
                self.output += line
        return self._process.returncode

    def check_ended_well(self) -> str:
        assert self.wait() == 0, f"the script said:\n{self.output}"
        return self.output

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

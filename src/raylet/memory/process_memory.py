"""Which processes there are, and how much memory each uses by itself: what it would give back if it ended.
That is its resident memory less what files and shared memory have of it. Pages that a fork shares with its
parent count for both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple

from ray_mono.common.process import all_living, living

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessMemory(NamedTuple):
    pid: int
    start_ticks: int
    """With the pid, it names the process for as long as the machine runs."""
    parent_pid: int
    used_bytes: int
    name: str
    """As people know it, without arguments, which may be secret."""


class Processes:
    """Those of about one moment."""

    def __init__(self, processes: Iterable[ProcessMemory]) -> None:
        self._by_pid = {process.pid: process for process in processes}
        self._below: dict[int, list[ProcessMemory]] = {}
        for process in self._by_pid.values():
            self._below.setdefault(process.parent_pid, []).append(process)

    def __iter__(self) -> Iterator[ProcessMemory]:
        return iter(self._by_pid.values())

    def among(self, pids: Set[int]) -> Processes:
        """Only those."""
        return Processes(process for process in self if process.pid in pids)

    def family(self, pid: int) -> list[ProcessMemory]:
        """The process, and all below it: whatever it has started."""
        family = {pid: self._by_pid[pid]} if pid in self._by_pid else {}
        todo = list(family)
        for parent in todo:
            for child in self._below.get(parent, ()):
                # They are not quite of one moment, so a pid may have come to a child of its child.
                if child.pid not in family:
                    family[child.pid] = child
                    todo.append(child.pid)
        return list(family.values())

    def used_by(self, pid: int) -> int:
        """By all of its family, in bytes."""
        return sum(process.used_bytes for process in self.family(pid))


def all_processes() -> Processes:
    """Those that end meanwhile are left out."""
    return Processes(_read())


def _read() -> Iterator[ProcessMemory]:
    for process in all_living():
        with contextlib.suppress(OSError, ValueError):
            folder = f"/proc/{process.pid}"
            with open(f"{folder}/statm", "rb") as file:
                _, resident, shared = file.read().split(maxsplit=3)[:3]
            with open(f"{folder}/cmdline", errors="replace") as cmdline:
                name = name_of(cmdline.read())
            used = max(0, int(resident) - int(shared)) * _PAGE_BYTES
            yield ProcessMemory(process.pid, process.start_ticks, process.parent_pid, used, name)


def name_of(command_line: str) -> str:
    """Of a process with this command line, which may be a title: its module, its program and script, or its
    program."""
    words = command_line.replace("\0", " ").split() or ["?"]
    program = os.path.basename(words[0]) or words[0]
    options = list(itertools.takewhile(lambda word: word.startswith("-"), words[1:]))
    following = words[len(options) + 1 :][:1]
    if options[-1:] == ["-m"] and following:
        return following[0]
    is_script = following and following[0].endswith(".py")
    return f"{program} {os.path.basename(following[0])}" if is_script else program


def has_memory(process: ProcessMemory) -> bool:
    """Whether it still has what it used: until it has ended, also while it ends."""
    now = living(process.pid)
    return now is not None and now.start_ticks == process.start_ticks


def kill(process: ProcessMemory) -> None:
    """Nothing where it has ended, or is another user's."""
    if has_memory(process):
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)

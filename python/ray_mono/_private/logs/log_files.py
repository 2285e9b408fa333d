"""What workers wrote to their log files, as batches of lines that know whose they are.

It reads files, and knows no clock and no network.

A worker's output goes to logs/worker-<worker id>-…-<pid>.out and .err. Between the user's lines the worker
writes some of its own. They say what the following lines belong to, and are not shown:

    :job_id:<hex>      :task_name:<name>      :actor_name:<name>

The files are the buffer: what cannot be passed on yet is not read yet. A begun line is passed on when all is
quiet, when its job ends, or when its process is gone. If a process showed progress bars, its end is passed
on, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ray_mono.common.our_bug import known
from ray_mono.common.process import is_alive

# So much is read from one file before the others have their turn.
READ_BYTES_MAX = 1 << 20
# What a worker writes before the state of a progress bar.
STATE_PREFIX = "::ray_mono_progress::"
# The largest message to the drivers.
BATCH_LINES_MAX = 1000
BATCH_BYTES_MAX = 256 << 10
# Longer lines are cut: somebody printed data by mistake. All others fit into a message.
LINE_BYTES_MAX = BATCH_BYTES_MAX

_NAME = re.compile(r"worker-[0-9a-f]+-(?:.*-)?(\d+)\.(out|err)")
_LABEL = re.compile(rb":(job_id|task_name|actor_name):(.*)")


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of one process."""

    job_id: bytes
    pid: int
    name: str
    """Of the task or actor; may be empty."""
    is_error: bool
    lines: tuple[str, ...]
    is_end: bool = False
    """The process is gone, and it has shown progress bars."""
    file_name: str = field(default="", compare=False)
    end_offset: int = field(default=0, compare=False)
    """Up to here the file is passed on with these lines."""


@dataclass
class _LogFile:
    """One file and how far it was read."""

    path: Path
    pid: int
    is_error: bool
    offset: int = 0
    partial: bytes = b""
    """The begun line at the end of what was read; at most LINE_BYTES_MAX of it."""
    cut_bytes: int = 0
    """How much of the begun line was thrown away."""
    is_redrawn: bool = False
    """Whether the begun line has had a carriage return: a progress bar."""
    job_id: bytes = b""
    name: str = ""
    has_bars: bool = False
    is_labelled: bool = False
    """Whether this file has had a label of its own; without one it goes by its sibling's."""


@dataclass
class LogDirectory:
    """All workers' files in a logs directory."""

    path: Path
    is_alive: Callable[[int], bool] = is_alive
    """Whether a process of this machine lives."""
    on_removed: Callable[[str], None] = lambda name: None
    """A file that was passed on is deleted."""
    has_more: bool = False
    """Whether read_new left something that is not held back."""
    _files: dict[str, _LogFile] = field(default_factory=dict)
    # Names of files whose workers have ended, and which have been read to their end: nobody reads them again.
    _ended: set[str] = field(default_factory=set)
    # Of the directory, at the last listing. Two files may be made in one tick: a change is listed twice.
    _listed_at_ns: int = -1
    _lists_again: bool = False

    def skip(self, passed_on: dict[str, int]) -> None:
        """read_new leaves out what another log monitor has passed on: of each file, by name, up to this
        offset. It is read all the same: it says whose the following lines are.
        """
        for file in self._list_files():
            end = passed_on.get(file.path.name, 0)
            while file.offset < min(end, _size(file.path)):
                for _ in self._read_file(file, False, end):
                    pass
            # It ends with a line, or its begun line was passed on as it was.
            file.partial, file.cut_bytes, file.is_redrawn = b"", 0, False

    def read_new(self, with_begun: bool = False, held_jobs: Collection[bytes] = ()) -> Iterator[Lines]:
        """What was written since the last time, of each file at most READ_BYTES_MAX.

        Args:
            with_begun: also yield begun lines of files that have nothing new (a prompt, say), except those of
                a progress bar that draws itself.
            held_jobs: jobs of which nothing is read. They may become more while this runs.

        Lines of no job are left out. A batch counts as passed on when the next one is asked for.
        """
        self.has_more = False
        for file in self._list_files():
            if not held_jobs or self._labels(file).job_id not in held_jobs:
                yield from self._read_file(file, with_begun)

    def sizes_of(self, job_id: bytes) -> dict[str, int]:
        """The sizes of the files that may have unread lines of the job, that is, of those that are no other
        job's."""
        return {
            file.path.name: size
            for file in self._list_files()
            if self._labels(file).job_id in (job_id, b"") and (size := _size(file.path)) > file.offset
        }

    def unread_bytes(self, job_id: bytes, sizes: dict[str, int]) -> int:
        """How much of what sizes_of told was not read yet."""
        files = [(self._files[name], size) for name, size in sizes.items() if name in self._files]
        return sum(
            max(0, min(size, _size(file.path)) - file.offset)
            for file, size in files
            if self._labels(file).job_id in (job_id, b"")
        )

    def read_begun(self, job_id: bytes) -> Iterator[Lines]:
        """The begun lines of a job, which is about to end."""
        for file in list(self._files.values()):
            if file.partial and self._labels(file).job_id == job_id:
                yield from self._break_line(file, is_over=False)

    def drop_ended(self) -> list[Path]:
        """Forgets the files of processes that are gone, once all of them was passed on.

        Returns them, the oldest first.
        """
        followed: dict[int, list[_LogFile]] = {}
        for file in self._files.values():
            followed.setdefault(file.pid, []).append(file)
        # This is asked first. So all that a process wrote before its end is in the files by now.
        gone = [files for pid, files in followed.items() if not self.is_alive(pid)]
        ended = [
            file.path
            for files in gone
            if all(
                not file.partial and not file.has_bars and _size(file.path) == file.offset for file in files
            )
            for file in files
        ]
        for path in ended:
            del self._files[path.name]
            self._ended.add(path.name)
        return sorted(ended, key=_changed_at_ns)

    def remove(self, path: Path) -> None:
        """Deletes a file that drop_ended returned."""
        path.unlink(missing_ok=True)
        self.on_removed(path.name)
        self._ended.discard(path.name)

    def _list_files(self) -> list[_LogFile]:
        changed_at_ns = self.path.stat().st_mtime_ns
        has_changed, self._listed_at_ns = changed_at_ns != self._listed_at_ns, changed_at_ns
        entries = os.listdir(self.path) if has_changed or self._lists_again else []
        self._lists_again = has_changed
        # Labels are in the .out files, so these come first.
        for entry in sorted(entries, key=lambda name: (name.endswith(".err"), name)):
            is_known = entry in self._files or entry in self._ended
            match = None if is_known else _NAME.fullmatch(entry)
            if match:
                pid, kind = match.groups()
                self._files[entry] = _LogFile(self.path / entry, int(pid), kind == "err")
        return list(self._files.values())

    def _read_file(self, file: _LogFile, with_begun: bool, end: int | None = None) -> Iterator[Lines]:
        """end: nothing behind this offset."""
        # This is asked first. So all that the process wrote before its end is in the file by now.
        is_over = (file.partial or file.has_bars) and not self.is_alive(file.pid)
        size = _size(file.path)
        if size == file.offset:
            if is_over or (with_begun and file.partial and not file.is_redrawn):
                yield from self._break_line(file, is_over)
            return
        if size < file.offset:
            # Truncated from outside: what is there is new.
            file.offset, file.partial, file.cut_bytes = 0, b"", 0
        try:
            with open(file.path, "rb") as stream:
                stream.seek(file.offset)
                most = READ_BYTES_MAX if end is None else min(READ_BYTES_MAX, end - file.offset)
                data = stream.read(most)
        except FileNotFoundError:
            return
        told = file.offset
        file.offset += len(data)
        self.has_more |= file.offset < size
        *lines, rest = data.split(b"\n")
        gathered: list[str] = []
        gathered_bytes = 0
        for line in lines:
            text, is_label = self._finish_line(file, line)
            if gathered and (
                is_label or len(gathered) == BATCH_LINES_MAX or gathered_bytes + len(text) > BATCH_BYTES_MAX
            ):
                yield from self._batch(file, gathered, told)
                gathered, gathered_bytes = [], 0
            told += len(line) + 1
            if is_label:
                self._set_label(file, text)
            else:
                gathered.append(text.decode(errors="replace").removesuffix("\r"))
                file.has_bars |= STATE_PREFIX in gathered[-1]
                gathered_bytes += len(text)
        yield from self._batch(file, gathered, told)
        self._begin_line(file, rest)

    def _break_line(self, file: _LogFile, is_over: bool) -> Iterator[Lines]:
        is_end = is_over and file.has_bars
        lines = [self._finish_line(file, b"")[0].decode(errors="replace")] if file.partial else []
        file.has_bars &= not is_over
        yield from self._batch(file, lines, file.offset, is_end)

    def _finish_line(self, file: _LogFile, data: bytes) -> tuple[bytes, bool]:
        """(the line, whether it is a label)"""
        self._begin_line(file, data)
        line, cut_bytes = file.partial, file.cut_bytes
        file.partial, file.cut_bytes, file.is_redrawn = b"", 0, False
        if cut_bytes:
            return line + f" … [{cut_bytes} more bytes]".encode(), False
        return line, _LABEL.fullmatch(line) is not None

    @staticmethod
    def _begin_line(file: _LogFile, data: bytes) -> None:
        line = file.partial + data
        # What follows a carriage return overwrites what a bar drew. One at the end may be a line break's.
        start = line.rstrip(b"\r").rfind(b"\r") + 1
        if start:
            line, file.cut_bytes, file.is_redrawn = line[start:], 0, True
        file.partial = line[:LINE_BYTES_MAX]
        file.cut_bytes += len(line) - len(file.partial)

    @staticmethod
    def _set_label(file: _LogFile, line: bytes) -> None:
        match = known(_LABEL.fullmatch(line), "the label in the line")
        kind, value = match[1], match[2].decode(errors="replace").strip()
        file.is_labelled = True
        if kind == b"job_id":
            try:
                file.job_id = bytes.fromhex(value)
            except ValueError:
                file.job_id = b""
            file.name = ""
        else:
            file.name = value

    def _labels(self, file: _LogFile) -> _LogFile:
        """The file that says whose the lines are: itself, or its sibling."""
        if file.is_labelled:
            return file
        sibling = self._files.get(file.path.with_suffix(".out" if file.is_error else ".err").name)
        return sibling if sibling is not None and sibling.is_labelled else file

    def _batch(
        self, file: _LogFile, lines: list[str], end_offset: int, is_end: bool = False
    ) -> Iterator[Lines]:
        labels = self._labels(file)
        if (lines or is_end) and labels.job_id:
            yield Lines(
                labels.job_id,
                file.pid,
                labels.name,
                file.is_error,
                tuple(lines),
                is_end,
                file.path.name,
                end_offset,
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _changed_at_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0

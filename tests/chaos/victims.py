"""The processes of this process's cluster, and what can happen to them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.integration.titles import processes_below
from tests.waiting import wait_until


class Victims:
    """Of one cluster, which `init` made."""

    def __init__(self, session_dir: str = "") -> None:
        self._session_dir = session_dir

    def one(self, title: str) -> psutil.Process:
        """The process with this in its title. Waits for one that is about to start."""
        found: list[psutil.Process] = []

        def is_one() -> bool:
            found[:] = processes_below(title)
            return len(found) == 1

        wait_until(is_one, f"one process {title}")
        return found[0]

    @property
    def head(self) -> psutil.Process:
        return self.one("ray_mono.gcs.gcs_server")

    @property
    def log_monitor(self) -> psutil.Process:
        return self.one("ray_mono._private.logs.log_monitor")

    @property
    def object_manager(self) -> psutil.Process:
        return self.one("ray_mono.object_manager.object_manager")

    @property
    def raylet(self) -> psutil.Process:
        return self.one("ray_mono.raylet.raylet")

    @property
    def reaper(self) -> psutil.Process:
        return self.one("ray_mono._private.node.reaper")

    def workers(self) -> list[psutil.Process]:
        return [process for process in processes_below("ray_mono::") if process.pid != self.template.pid]

    @property
    def template(self) -> psutil.Process:
        """Whose forks the workers are."""
        return self.one("ray_mono::TEMPLATE")

    def kill_head(self) -> None:
        """Its reaper starts another one."""
        self.end_of(self.head)

    def end_of(self, process: psutil.Process) -> None:
        """Kills it, and waits until it is gone. Whoever takes its place may come later."""
        process.kill()
        wait_until(lambda: not process.is_running(), f"the end of process {process.pid}")

    @contextlib.contextmanager
    def without_head(self) -> Iterator[None]:
        """There is none, and none is started, until the end of the block."""
        reaper = self.reaper.pid
        os.kill(reaper, signal.SIGSTOP)
        try:
            head = self.head
            head.kill()
            wait_until(lambda: head.status() == psutil.STATUS_ZOMBIE, "the end of the head")
            yield
        finally:
            os.kill(reaper, signal.SIGCONT)

    def lose_head_and_store(self) -> None:
        """The head that the reaper starts begins on an empty store."""
        with self.without_head():
            for path in Path(self._session_dir).glob("gcs.sqlite*"):
                path.unlink()

    def damage_store(self) -> None:
        """The head that the reaper starts refuses its file."""
        with self.without_head():
            for path in Path(self._session_dir).glob("gcs.sqlite-wal"):
                path.write_bytes(b"")

    @contextlib.contextmanager
    def stopped_head(self) -> Iterator[None]:
        """It holds its connections and says nothing."""
        head = self.head.pid
        os.kill(head, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(head, signal.SIGCONT)


def lines_of(path: Path) -> list[str]:
    """What processes have written there so far."""
    return path.read_text().splitlines() if path.exists() else []

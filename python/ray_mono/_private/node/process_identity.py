"""Which process a pid means.

A pid alone says little: the kernel gives it to another process once its owner is gone. A pid together with
the tick at which the process started names one process for as long as the machine runs. Nothing here is found
by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_mono.common.process import living


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, for good: what a session file records of a reaper."""

    pid: int
    start_ticks: int
    """Clock ticks between the machine's start and the process's."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The process that has this pid now; None where there is none, or only its remains (a zombie)."""
        process = living(pid)
        return None if process is None else cls(pid, process.start_ticks)

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

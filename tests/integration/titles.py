"""Processes by their titles. Any of them may end while it is looked at."""

from __future__ import annotations

import contextlib

import psutil


def title_of(process: psutil.Process) -> str:
    """Its command line, or the title that lies over it; empty where it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def processes_below(part: str) -> list[psutil.Process]:
    """Those below this process that have `part` in their titles."""
    return [process for process in psutil.Process().children(recursive=True) if part in title_of(process)]

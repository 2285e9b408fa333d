"""Another user of the machine, for tests that root runs: what is his, and what he does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OTHER_UID = 65534


def _can_be_another() -> bool:
    """Only root can, and not in a sandbox that has one user."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.getuid() == 0 and any(
        int(first) <= OTHER_UID < int(first) + int(count) for first, _, count in ranges
    )


needs_another_user = pytest.mark.skipif(not _can_be_another(), reason="only root can act as another user")


def give_away(path: Path) -> None:
    """Makes it the other user's; a link itself, not what it leads to."""
    os.chown(path, OTHER_UID, OTHER_UID, follow_symlinks=False)


# He cannot read our library: what he needs of it is imported before.
BECOME = f"import os, socket, sys; os.setgroups([]); os.setgid({OTHER_UID}); os.setuid({OTHER_UID})\n"


def run_as_other(program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
    """Runs a Python program as the other user, to its end. (He may not be able to start our interpreter: so
    he takes over a process.)"""
    subprocess.run(
        [sys.executable, "-I", "-c", BECOME + program, *arguments],
        cwd="/",
        check=True,
        timeout=60,
        pass_fds=pass_fds,
    )

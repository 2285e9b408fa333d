"""Workers whose template has died. They go on; the reaper of the node is their parent now, and waits for
them. So the raylet watches them by pidfd, and does for them what the template did: it signals them, hears of
their end, and kills what is left of their process groups.

How one ended its parent alone is told. Newer kernels (6.15) tell whoever has a pidfd as well, when the
parent has waited for it; elsewhere that stays unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

# struct pidfd_info, as it was first: mask, cgroup, pid to fsgid, and the status as wait() has it.
_INFO = Struct("<QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3
_STATUS_POLL_S = 0.02
_STATUS_POLLS_MAX = 25
"""The reaper waits for what has ended within milliseconds."""
END_POLL_S = 0.01


@dataclass(frozen=True)
class _Orphan:
    pid: int
    pidfd: int


class Orphans:
    """Of one raylet."""

    def __init__(self, on_end: Callable[[int, int, int | None], None]) -> None:
        """on_end(startup_token, pid, returncode) once for each, in the loop; the returncode is as subprocess
        has it, or None where it is not known."""
        self._on_end = on_end
        self._orphans: dict[int, _Orphan] = {}

    def __len__(self) -> int:
        return len(self._orphans)

    def adopt(self, startup_token: int, pid: int) -> bool:
        """Its template has just died. False where the worker is gone, too."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        # Each worker leads a group. Whoever else has its number by now does not.
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == pid:
                self._orphans[startup_token] = _Orphan(pid, pidfd)
                asyncio.get_running_loop().add_reader(pidfd, self._ended, startup_token)
                return True
        os.close(pidfd)
        return False

    def signal(self, startup_token: int, signum: int) -> bool:
        """False where it is none of these."""
        orphan = self._orphans.get(startup_token)
        if orphan is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(orphan.pidfd, signum)
        return True

    def pid_of(self, startup_token: int) -> int | None:
        orphan = self._orphans.get(startup_token)
        return None if orphan is None else orphan.pid

    async def end(self, grace_s: float) -> None:
        """Ends all of them: by SIGTERM, and after the grace period by SIGKILL."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for token in list(self._orphans):
                self.signal(token, signum)
            for _ in range(int(grace_s / END_POLL_S)):
                if not self._orphans:
                    return
                await asyncio.sleep(END_POLL_S)

    def _ended(self, startup_token: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._orphans[startup_token].pidfd)
        with contextlib.suppress(OSError):
            os.killpg(self._orphans[startup_token].pid, signal.SIGKILL)
        self._learn_status(startup_token, _STATUS_POLLS_MAX)

    def _learn_status(self, startup_token: int, polls_left: int) -> None:
        orphan = self._orphans[startup_token]
        try:
            returncode = _returncode(orphan.pidfd)
        except OSError:  # this kernel does not tell
            polls_left, returncode = 0, None
        if returncode is None and polls_left:
            loop = asyncio.get_running_loop()
            loop.call_later(_STATUS_POLL_S, self._learn_status, startup_token, polls_left - 1)
            return
        del self._orphans[startup_token]
        os.close(orphan.pidfd)
        self._on_end(startup_token, orphan.pid, returncode)


def _returncode(pidfd: int) -> int | None:
    """None where nobody has waited for the process yet. Raises OSError where the kernel does not tell."""
    asked = _INFO.pack(_PIDFD_INFO_EXIT, *12 * [0], 0)
    mask, *_, status = _INFO.unpack(fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asked))
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None

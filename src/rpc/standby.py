"""The sleep of the reactor's background thread, which other threads can lengthen: a timer in the kernel.

With a plain timed wait the thread comes back every few milliseconds, to find that callers still lead. For
that look it needs the interpreter's lock. While it waits, the thread that has the lock lets it go with each
system call, and so wakes it in vain: a burst of short calls took half as long again. So a caller that ceases
to lead moves the end of the sleep on instead. Nobody wakes while callers come again and again.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import partial

STANDBY_S = 0.0015
"""How long the background thread leaves the sockets to callers: the last of them ceased to lead so long ago
at least."""
PUT_OFF_S = 0.0005
"""How often the end of the sleep is moved on at most, since that costs a system call."""

_MONOTONIC = 1  # Linux's number of the clock
# Made at the import, and so once for a template and its workers: see common/process.py. The calls take less
# time than to let go of the interpreter's lock would.
_system = ctypes.PyDLL(None, use_errno=True)
_create = _system.timerfd_create
_set_time = _system.timerfd_settime


class _Times(ctypes.Structure):
    """Linux's itimerspec: when the timer fires again, and when it fires."""

    _fields_ = [(name, ctypes.c_long) for name in ("again_s", "again_ns", "after_s", "after_ns")]


class Standby:
    """A timerfd. All but `wait` is called under the reactor's lock, and only sets the timer."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._fd: int = _create(_MONOTONIC, os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create() failed")
        self.close = weakref.finalize(self, os.close, self._fd)
        self.close.atexit = False

        def setter(after_s: float) -> Callable[[], object]:
            times = _Times(0, 0, 0, int(after_s * 1e9))
            return partial(_set_time, self._fd, 0, ctypes.byref(times), None)

        self.stand_by = setter(STANDBY_S)
        """The next `wait` ends after STANDBY_S."""
        self.put_off = setter(STANDBY_S + PUT_OFF_S)
        """The present wait ends STANDBY_S after the last call of this at the earliest."""
        self.sleep_long = setter(0)
        """The next one ends when it is put off or woken."""
        self.wake = setter(1e-9)
        """It ends now."""

    def wait(self) -> None:
        os.read(self._fd, 8)

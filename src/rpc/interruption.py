"""Where a signal handler may raise KeyboardInterrupt:
in the user's code, and nowhere in ours but at rest in a wait.

A handler runs between any two steps of the main thread. In our code it would leave things half done: a pin
without a view, a count without its reference. So an interrupt that comes while our code runs is noted, to be
raised by the next wait, or as soon as the user's code runs again. What our code calls of the standard library
counts as ours, what the user's code calls of it as the user's, but for the calls of finalizers: what these
raise is shown and dropped, so the interrupt would be lost, and what the finalizer was to do. Pickling runs
code of the user's, and other libraries'.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

_OURS = ("ray_mono.core_worker.", "ray_mono.rpc.", "ray_mono.common.", "ray_mono.protobuf.")
_FINALIZING = ("weakref", "_weakrefset")


def is_in_runtime(frame: FrameType | None) -> bool:
    """Whether the code that a signal interrupted is the runtime's."""
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name.startswith(_OURS) or name in _FINALIZING:
            return True
        if name.partition(".")[0] not in sys.stdlib_module_names:
            return False
        frame = frame.f_back
    return False


def strike_main_thread(signum: int) -> None:
    """Sends this process the signal so that its main thread takes it, whose system call ends."""
    signal.pthread_kill(threading.main_thread().ident or 0, signum)

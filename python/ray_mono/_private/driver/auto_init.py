"""The core worker that the API speaks to. As with Ray, a program that never called `init` gets a cluster when
it first uses the API.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono.core_worker.interface import CoreInterface

AUTO_CONNECT_VARIABLE = "RAY_MONO_ENABLE_AUTO_CONNECT"
""""0": only `init` connects."""

_first_use = threading.Lock()


def connected_core() -> CoreInterface:
    """This process's core worker, after `init()` if there is none yet. Raises what `init` raises."""
    core = current.core
    if core is None and (current.is_fork() or sys.is_finalizing()):
        return current.require()  # raises
    if core is None:
        if os.environ.get(AUTO_CONNECT_VARIABLE) == "0":
            return current.require()  # raises
        # Imported here: a worker, which is connected, never needs it.
        from ray_mono._private.driver.init import init

        # Several threads may come here at once, and one that says `init` itself may come between.
        with _first_use:
            if current.core is None:
                init(ignore_reinit_error=True)
        core = current.require()
    return core

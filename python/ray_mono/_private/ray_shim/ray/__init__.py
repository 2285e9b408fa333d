"""What `import ray` finds first in a process that a program under `ray_mono.compat` has started. It installs
compat there, and gives way to it. An interpreter that has no ray_mono (another virtual environment's) imports
what it would have imported."""

import importlib
import os
import sys

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _give_way() -> None:
    del sys.modules["ray"]
    try:
        from ray_mono import compat
    except ImportError:
        sys.path[:] = [path for path in sys.path if os.path.abspath(path) != _FOLDER]
    else:
        compat.install()
    importlib.import_module("ray")


_give_way()

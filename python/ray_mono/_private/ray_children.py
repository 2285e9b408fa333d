"""`import ray` in Python processes that a program under `ray_mono.compat`, or a worker of it, starts.

These are subprocesses with its environment, and those that multiprocessing spawns, which take their parent's
sys.path.
"""

from __future__ import annotations

import os
import sys

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ray_shim")
"""Has a package `ray` that installs compat. Not for a cluster's processes, which serve other programs too."""
_SITES = ("site-packages", "dist-packages")


def put_on_python_path() -> None:
    """Before every installed `ray`."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if FOLDER not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, *(path for path in paths if path)])
    if FOLDER not in sys.path:
        sites = [index for index, path in enumerate(sys.path) if os.path.basename(path) in _SITES]
        sys.path.insert(sites[0] if sites else len(sys.path), FOLDER)

"""What the template's children run in its tests, instead of a worker."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import setproctitle

from ray_mono.core_worker.process.worker_config import WorkerConfig


def report(config: WorkerConfig) -> None:
    """Says who it is in SESSION_DIR/<token>.json, prints a line to each stream, and waits for a signal."""
    print("to stdout")
    print("to stderr", file=sys.stderr)
    facts = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "title": setproctitle.getproctitle(),
        "worker_id": config.worker_id.hex(),
        "raylet_socket": config.raylet_socket,
        "node_host": config.node_host,
        "stdin": os.readlink("/proc/self/fd/0"),
        "group": os.getpgid(0),
        "draws": [random.random(), float(np.random.random())],
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{name}") for name in _open_descriptors()),
        "collects": gc.isenabled(),
        "threads": len(os.listdir("/proc/self/task")),
    }
    _write(config, facts)
    signal.pause()


def deaf(config: WorkerConfig) -> None:
    """Does not listen to SIGTERM, and has a child in its group and one that left it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
    near = subprocess.Popen(sleep)
    far = subprocess.Popen(sleep, start_new_session=True)
    _write(config, {"pid": os.getpid(), "near": near.pid, "far": far.pid})
    while True:
        time.sleep(1000)


def exit_with_token(config: WorkerConfig) -> None:
    """Ends in a way that depends on its token."""
    if config.startup_token == 1:
        return
    if config.startup_token == 2:
        raise RuntimeError("a worker that raises")
    if config.startup_token == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    sys.exit(config.startup_token)


def _open_descriptors() -> list[str]:
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.stat(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that lists
        names.append(name)
    return names


def _write(config: WorkerConfig, facts: dict[str, object]) -> None:
    path = Path(config.session_dir) / f"{config.startup_token}.json"
    path.with_suffix(".new").write_text(json.dumps(facts))
    path.with_suffix(".new").rename(path)

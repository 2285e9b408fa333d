"""What the processes that a failure names wrote last, and the services of the first node."""

from __future__ import annotations

import re
from pathlib import Path

PID = re.compile(r"\bpid\W+(\d+)")
PIDS_MAX = 10
TAIL_BYTES = 2000
SERVICES = ("gcs_server.err", "raylet.err", "reaper.err")


def log_tails(folder: Path, failure: str) -> str:
    """folder: of the session's logs. failure: a text with "pid=123" and the like."""
    pids = list(dict.fromkeys(PID.findall(failure)))[:PIDS_MAX]
    paths = [path for pid in pids for path in sorted(folder.glob(f"*-{pid}.*"))]
    paths += [folder / name for name in SERVICES]
    told = ((path.name, _tail(path)) for path in paths)
    return "\n".join(f"---- {name}\n{text}" for name, text in told if text)


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    return path.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()

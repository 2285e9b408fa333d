"""How a driver shows what its workers wrote: each line with who wrote it.

(f pid=4711) line                  (Counter pid=4711, ip=10.0.0.2) line, from another node
"""

from __future__ import annotations

import sys
from typing import TextIO

from ray_mono.protobuf import common_pb2

# Prefixes stand out from the program's own output; errors' a little more.
_COLOUR = "\033[36m"
_ERROR_COLOUR = "\033[33m"
_RESET = "\033[0m"


def print_log_batch(
    batch: common_pb2.LogBatch, own_host: str, out: TextIO | None = None, error: TextIO | None = None
) -> None:
    """Prints the lines to `out`, or to `error` where they came from a standard error (None: this process's). In one write each, so
    that other threads' output does not fall between them. A stream that is closed is ignored: the program is ending."""
    stream = (error or sys.stderr) if batch.is_error else (out or sys.stdout)
    who = f"{batch.name} pid={batch.pid}".lstrip()
    if batch.host and batch.host != own_host:
        who += f", ip={batch.host}"
    prefix = f"({who})"
    try:
        if stream.isatty():
            prefix = f"{_ERROR_COLOUR if batch.is_error else _COLOUR}{prefix}{_RESET}"
        stream.write("".join(f"{prefix} {line}\n" for line in batch.lines))
        stream.flush()
    except ValueError:
        pass

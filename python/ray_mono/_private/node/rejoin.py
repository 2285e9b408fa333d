"""What the reaper of a node becomes that has lost its place in the cluster: it was cut off for too long, or
was held to be dead. It starts the node again, as a new one, as soon as the head answers.

    rejoin RECORD COMMAND...

COMMAND is the `start` that began the node. RECORD is the old node's, by which `stop` finds this process; it
goes when this is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from ray_mono.common import process
from ray_mono.common.backoff import Backoff

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 10.0
REJOIN_FOR_S = 3600.0
"""A cluster that is away for longer is not waited for."""


def rejoin(record: str, command: Sequence[str], for_s: float = REJOIN_FOR_S) -> int:
    """Runs the command until it succeeds, or the time is over. Returns its last exit status. The command ends
    with this process, or `stop` would leave one that joins later."""
    rejoin_pid = os.getpid()
    pauses = Backoff(PAUSE_FIRST_S, PAUSE_MAX_S)
    give_up_s = time.monotonic() + for_s
    try:
        while True:
            try:
                status = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    check=False,
                    preexec_fn=lambda: process.set_pdeathsig(signal.SIGKILL, rejoin_pid),
                ).returncode
            except OSError as error:  # out of processes or descriptors
                print(f"the node was not started again: {error}", file=sys.stderr, flush=True)
                status = 1
            if status == 0 or time.monotonic() >= give_up_s:
                return status
            time.sleep(pauses.next_s())
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(record)


if __name__ == "__main__":
    sys.exit(rejoin(sys.argv[1], sys.argv[2:]))

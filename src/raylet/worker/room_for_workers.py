"""How many workers a raylet can have, by what it may open. Without a descriptor left it would hear of nobody:
its workers, drivers and the GCS would wait without a word. So it starts no more workers before that, and says
why. And what helps, where the machine lets no more be made.
"""

from __future__ import annotations

import errno
import os
import resource

from ray_mono.common.threads import NO_THREAD

DESCRIPTORS_EACH = 2
"""A worker's connection, and the page on which it says what it runs."""
DESCRIPTORS_KEPT = 40
"""For itself, its store, the GCS, and drivers."""
NO_PROCESS = (os.strerror(errno.EAGAIN), NO_THREAD)
"""In what the system and Python say where no more processes and threads may be made."""


def why_no_more(num_workers: int) -> str:
    """Why no worker may be started beside so many; empty where one may."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return ""
    num_max = max(1, (limit - DESCRIPTORS_KEPT) // DESCRIPTORS_EACH)
    if num_workers < num_max:
        return ""
    return (
        f"the raylet may open only {limit} files, which is enough for {num_max} workers, and there are"
        f" {num_workers}; have 'ulimit -n' say more, or make fewer actors"
    )


def why_and_what_helps(trouble: str) -> str:
    """trouble: why a worker did not start."""
    if not any(words in trouble for words in NO_PROCESS):
        return trouble
    return (
        f"{trouble}; no more processes and threads may run here, so have 'ulimit -u' or the pids limit of the"
        " container or cgroup say more, or make fewer actors"
    )

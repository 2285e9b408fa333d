"""Whom a worker belongs to."""

from __future__ import annotations

from typing import NamedTuple


class Binding(NamedTuple):
    """Whom a worker belongs to from its first lease on. A tuple, since idle workers are looked up by it
    several times for each lease.

    Code, sys.path and environment of a job stay in its process. So does what a library decided when it
    looked for GPUs: a process has some, or never had any.
    """

    job_id: bytes
    runtime_env: str
    outlives_job: bool = False
    """A detached actor's, or of somebody below one: it is needed until the job is over, not only until it is
    finished."""
    has_gpus: bool = False

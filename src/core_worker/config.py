"""What the core worker goes by: one value, the same for all parts of a process. Tests and the simulator give
other values, which reach the limits sooner.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CoreWorkerConfig:
    """Limits and times. Defaults are the product's; each says why it is what it is, where that is not plain."""

    gcs_timeout_s: float = 60.0
    """For the GCS's answer: beyond it, it is as good as gone."""

    # ---- leases and tasks (normal_task_submitter.py, stalls.py, lost_worker.py)
    lease_requests_max: int = 16
    """Per scheduling key. More would only queue at the raylet, in front of other clients."""
    linger_s: float = 0.005
    """How long an idle lease is kept: longer than a caller takes from one answer to its next call, shorter
    than anybody notices."""
    rejected_retry_s: float = 0.05
    ahead_us: float = 2000.0
    """How much work a worker is given ahead: a few round trips of a busy machine."""
    ahead_max: int = 64
    task_overhead_us: float = 30.0
    """What a task costs its worker besides the function itself."""
    force_s: float = 1.0
    """After a cancel by force a worker that still has the task is ended by its raylet."""
    stall_look_s: float = 0.01
    stall_asked_looks: int = 3
    stall_alone_looks: int = 10
    lost_worker_answer_s: float = 10.0
    """For a raylet to say how a worker ended. One that takes longer is in trouble itself."""

    # ---- calls of actors (called_actor.py, actor_task_submitter.py)
    calls_in_flight_max: int = 1000
    """Calls sent to one actor and not answered. It bounds what its process must hold; the rest waits here. An
    actor that runs several at once gets more, since they may wait for each other, and how many run is its own
    decision: there excess_bytes_max is the bound, and as much again each time that nothing was answered for
    no_answer_s."""
    calls_waiting_warned: int = 5000
    """When so many calls have no answer the driver is told, and again each time that they have doubled."""
    excess_bytes_max: int = 256 << 20
    excess_bytes_each: int = 2 << 10
    """What a waiting call takes there besides its message."""
    no_answer_s: float = 1.0
    watch_retry_s: float = 0.2
    probe_s: float = 1.0
    """How long a lost actor's death may take to become known before its last address is tried again."""

    # ---- objects (getter.py, plasma_store_provider.py)
    fetch_attempts_max: int = 5
    """How often owners are asked anew where an object is, before it counts as lost."""
    owners_answer_s: float = 0.01
    """How long owners may take to say that a value is there, without the task counting as one that waits."""
    idle_pin_s: float = 0.25
    """How long an object that is still referenced stays pinned after its last view: it is probably read
    again."""

    # ---- generators (item_sender.py)
    items_in_flight_max: int = 4096
    items_in_flight_bytes_max: int = 16 << 20
    part_items_max: int = 256
    part_bytes_max: int = 256 << 10
    part_flush_s: float = 0.001
    """How long a generator that is busy may keep what it made: far below what a user notices, and some
    hundred small items."""

    # ---- answers (task_reply.py)
    error_bytes_max: int = 16 << 20
    unflushed_answers_max: int = 16
    """Answers that may share one send, while only calls are queued whose method ran short the last time:
    another may hold the GIL for long, when no thread of this process can send what waits, or end it."""
    unsettled_s: float = 0.05
    """So long a reply may wait without its task's CPUs being lent."""
    answered_alone_us: int = 200
    """The answer of a call that ran so long goes out by itself: it cost more than a send, and the next call
    may end the process."""

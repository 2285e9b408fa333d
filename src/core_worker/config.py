"""The core worker's limits and times: one value, the same for all parts of a process. Tests and the
simulation give other values, so that limits are reached sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

LINEAGE_VARIABLE = "RAY_MONO_MAX_LINEAGE_BYTES"
WAIT_WARNING_VARIABLE = "RAY_MONO_WAIT_WARNING_S"


@dataclass(frozen=True)
class CoreWorkerConfig:
    """Limits and times, with the product's defaults."""

    wait_warning_s: float = 30.0
    """How long a get, a wait or an `await` lasts before its driver is told why, if nothing that runs will end
    it."""
    gcs_timeout_s: float = 60.0
    """How long a call to the GCS may take. Beyond that the GCS is as good as gone."""

    # ---- leases and tasks (normal_task_submitter.py, stalls.py, lost_worker.py)
    lease_requests_max: int = 16
    """Lease requests under way, per scheduling key. More would only queue at the raylet before others."""
    linger_s: float = 0.005
    """How long an idle lease is kept. A caller takes less from one answer to its next call, and nobody
    notices so short a time."""
    rejected_retry_s: float = 0.05
    """How long after a request was rejected or failed the local raylet is asked again."""
    ahead_us: float = 2000.0
    """How much work a worker is given ahead: it takes as long as a few round trips of a busy machine."""
    ahead_max: int = 64
    """How many tasks a worker is given ahead, however short they are."""
    task_overhead_us: float = 30.0
    """What a task costs its worker besides the function itself."""
    wake_us: float = 200.0
    """How long a task may wait behind others while another worker idles. To wake a worker for one very short
    task, and to read its answer alone, costs driver and worker more than the task itself."""
    keep_up_us: float = 1000.0
    """How long very short tasks may have to wait for the workers that are held before more are asked for. The
    raylet would be asked, and asked no more, each time that they wait for a moment."""
    spread_us: float = 10_000.0
    """How much work may stay behind tasks that were longer than was thought; more of it goes to others, too.
    """
    turn_calls: int = 32
    """After so many calls their caller reads the answers that have come. So it keeps up with the workers, and
    reads many at a time."""
    chunk_ahead_us: float = 5000.0
    """As ahead_us, of the tasks of a `map`: two frames, so that one runs while the next is on its way."""
    chunk_max: int = 512
    """Calls of one `map` that travel in one frame, where it was not told how many."""
    chunk_bytes_max: int = 64 << 10
    """Of their arguments and ids, in any case: what a socket takes at once. If a frame takes longer to arrive
    than stalls.py waits, its tasks are taken back and sent again, for ever if each frame is as large."""
    chunk_task_overhead_us: float = 2.0
    """What one of them costs its worker besides the function itself."""
    force_s: float = 1.0
    """How long after a cancel by force the raylet ends a worker that still has the task."""
    stall_look_s: float = 0.01
    """How often leases are looked at for a first task that is long."""
    stall_asked_looks: int = 3
    """After so many looks the raylet is asked to take back what waits behind a long task."""
    stall_alone_looks: int = 10
    """After so many looks it is asked also where nothing waits behind the task."""
    order_look_s: float = 1.0
    """How often a queue is looked at, while tasks wait in it that came back (overtaking.py): so long that a
    worker that computes has had some of its CPU meanwhile."""
    standstill_looks: int = 20
    """After so many looks in a row that found the same tasks running, CPUs of those that began too early are
    lent."""
    lost_worker_answer_s: float = 10.0
    """How long a raylet may take to say how a worker ended. One that takes longer is in trouble itself."""

    # ---- calls of actors (called_actor.py, actor_task_submitter.py)
    calls_in_flight_max: int = 2000
    """How many calls are sent to one actor before they are answered. It bounds what the actor's process has
    to hold; the other calls wait here. An actor that runs several calls at once gets more, since they may
    wait for each other. There the bound is excess_bytes_max, and as much again each time that nothing was
    answered for no_answer_s."""
    calls_waiting_warned: int = 5000
    """When so many calls have no answer, the driver is told; and again each time that they have doubled."""
    excess_bytes_max: int = 256 << 20
    excess_bytes_each: int = 2 << 10
    """What a waiting call takes in the actor's process besides its message."""
    no_answer_s: float = 1.0
    watch_retry_s: float = 0.2
    """How long after an error the GCS is asked again where an actor lives."""
    probe_s: float = 1.0
    """How long the news of a lost actor may take. After that its last address is tried again."""

    last_answers_s: float = 2.0
    """How long it may take to learn what an actor's process had answered when it died: last_answers.py."""

    # ---- objects (getter.py, plasma_store_provider.py)
    fetch_attempts_max: int = 5
    """How often owners are asked again where an object is, before it counts as lost."""
    owners_answer_s: float = 0.01
    """How long owners may take to say that a value is there. Then the raylet is told that the task waits."""
    idle_pin_s: float = 0.25
    """How long an object stays pinned after its last view if it is still referenced: probably it is read
    again."""

    owner_death_s: float = 1.0
    """How long it may take to learn why the owner of an object is gone. Then the error says only that."""
    owner_death_look_s: float = 0.05
    """How often the GCS is asked meanwhile."""

    # ---- lost objects (lineage.py, object_recovery.py)
    max_lineage_bytes: int = 1 << 30
    """Of finished tasks that are kept to make what they returned again, in all: as much as in Ray. Beyond
    that the oldest are evicted until half of it is left."""
    nodes_answer_s: float = 2.0
    """How long the GCS may take to say which nodes are dead. Then lost objects are made again without."""

    lost_retry_s: float = 0.1
    lost_retry_factor: int = 3
    """When an object that cannot be made again is asked for once more from a node that is said to live: after
    a time that grows each time. fetch_attempts_max times take 4 s, within which the GCS has noticed the death
    of a node that did not just fall silent."""

    late_run_s: float = 5.0
    """How long a generator may go on that has passed an item which is lost: most end by themselves."""

    # ---- generators (item_sender.py)
    items_in_flight_max: int = 4096
    items_in_flight_bytes_max: int = 16 << 20
    part_items_max: int = 256
    part_bytes_max: int = 256 << 10
    part_flush_s: float = 0.001
    """How long a busy generator may collect items before they are sent: far less than a user notices, and
    enough for some hundred small items."""

    # ---- answers (task_reply.py)
    error_bytes_max: int = 16 << 20
    unflushed_answers_max: int = 64
    """How many answers may share one send: half a millisecond of them. An answer waits for others only if its
    call ran short, and another answer is about to follow. A long call may hold the GIL; then no thread could
    send the answers that wait."""
    shared_answers_max: int = 256
    """How many answers of tasks that came in one frame go in one."""
    shared_answers_s: float = 0.002
    """How long they may wait for others: below what a user notices, and some hundred short calls."""
    held_look_s: float = 0.02
    """How often frames are looked at, whether their answers are held at the worker: shared_tasks.py."""
    unsettled_s: float = 0.05
    """How long a reply may wait for owners before the CPUs of its task are lent."""
    unread_answer_s: float = 0.5
    """How long a worker waits for a caller that does not read, or an owner that does not answer, before it
    goes on with what may end it."""
    unread_again_s: float = 10.0
    """After so long it waits for such a one again."""
    answered_alone_us: int = 200
    """A call that ran so long was not short, and its answer does not wait for others. The call cost more than
    a send, and the next one may end the process."""


def config_of(variables: Mapping[str, str], max_lineage_bytes: int = 0) -> CoreWorkerConfig:
    """The product's, with what the environment says. The cluster's word (not 0) wins. Raises ValueError."""
    given = variables.get(LINEAGE_VARIABLE, "")
    if given and (not given.isascii() or not given.isdigit()):
        raise ValueError(f"{LINEAGE_VARIABLE} must be a number of bytes, like 1073741824; it is {given!r}")
    kept_bytes = max_lineage_bytes or int(given or 0) or CoreWorkerConfig.max_lineage_bytes
    return CoreWorkerConfig(max_lineage_bytes=kept_bytes, wait_warning_s=_wait_warning_s(variables))


def _wait_warning_s(variables: Mapping[str, str]) -> float:
    given = variables.get(WAIT_WARNING_VARIABLE, "")
    try:
        warning_s = float(given or CoreWorkerConfig.wait_warning_s)
    except ValueError:
        warning_s = -1.0
    if not warning_s >= 0:
        raise ValueError(
            f"{WAIT_WARNING_VARIABLE} must be a number of seconds, 0 for no warning; it is {given!r}"
        )
    return warning_s or math.inf

"""`timeline()`: what the cluster's workers ran, as Chrome trace events.

ui.perfetto.dev and chrome://tracing show them.

Each node is a process of the trace and each worker a thread of it. The calls that an actor runs beside each
other are on further threads of their own, "worker 4711 (2)" and so on: viewers throw away what overlaps on
one thread. A call appears when it is over; what workers still hold is collected first.
core_worker/task_execution/task_events.py and gcs/task_event_log.py say how many are kept.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.ids import TaskID
from ray_mono.core_worker.process import current

_MICROSECONDS = 1e6


def timeline(filename: str | os.PathLike[str] | None = None) -> list[dict[str, Any]] | None:
    """The tasks and actor calls of every job that have ended, as trace events.

    Args:
        filename: where to write them as JSON; None returns them. Times in them are microseconds since the
            epoch.

    Returns the events, or None if they were written to a file.

    Raises TypeError for a filename that is no path, RuntimeError where this process is not connected, and
    OSError where the file cannot be written.
    """
    if filename is not None and not isinstance(filename, str | os.PathLike):
        raise TypeError(
            f"filename must be a path or None, got {filename!r} of type {type(filename).__name__}"
        )
    try:
        core = current.require()
    except RaySystemError:
        raise RuntimeError("timeline() needs a cluster: call init() first") from None
    core.send_events()
    events = trace_events(core.global_state.task_events())
    if filename is None:
        return events
    with open(filename, "w", encoding="utf-8") as file:
        json.dump(events, file)
    return None


def trace_events(batches: Any) -> list[dict[str, Any]]:
    """The batches (TaskEvents) as trace events: names of nodes and workers, then calls by their starts."""
    names: dict[int, dict[str, Any]] = {}
    calls: dict[tuple[str, bytes], list[dict[str, Any]]] = {}
    for batch in batches:
        # By ids: two nodes of one machine have the same address, and workers of two machines may have the
        # same pid.
        pid = _number(batch.node_id)
        names[pid] = _named("process_name", f"Node {batch.host}", pid, 0)
        of_worker = calls.setdefault((f"worker {batch.pid}", batch.worker_id), [])
        for index, (start_s, end_s) in enumerate(zip(batch.start_time_s, batch.end_time_s, strict=True)):
            task_id = batch.task_ids[index * TaskID.SIZE : (index + 1) * TaskID.SIZE]
            name = batch.names[batch.name_indices[index]]
            event: dict[str, Any] = {
                "cat": "task",
                "name": name,
                "ph": "X",
                "pid": pid,
                "tid": 0,
                "ts": start_s * _MICROSECONDS,
                "dur": (end_s - start_s) * _MICROSECONDS,
                "args": {},
            }
            if index in batch.spans:
                _describe_span(event, json.loads(batch.spans[index]))
            event["args"] |= {
                "task_id": task_id.hex(),
                "job_id": batch.job_id.hex(),
                "node_id": batch.node_id.hex(),
                "worker_id": batch.worker_id.hex(),
            }
            of_worker.append(event)
    threads = []
    for (worker, worker_id), of_worker in calls.items():
        for number, lane in enumerate(_lanes(of_worker), 1):
            tid = _number(hashlib.blake2b(worker_id + number.to_bytes(4, "little"), digest_size=4).digest())
            name = worker if number == 1 else f"{worker} ({number})"
            threads.append(_named("thread_name", name, lane[0]["pid"], tid))
            for call in lane:
                call["tid"] = tid
    everything = [call for of_worker in calls.values() for call in of_worker]
    return [*names.values(), *threads, *sorted(everything, key=lambda call: call["ts"])]


def _describe_span(event: dict[str, Any], extra_data: dict[str, Any]) -> None:
    """Puts what the program said of a span into its event. As in Ray two keys change how it is shown."""
    event.update(cat=event["name"], args=extra_data)
    if "name" in extra_data:
        event["name"] = str(extra_data["name"])
    if "cname" in extra_data:
        event["cname"] = str(extra_data["cname"])


def _lanes(calls: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The calls of one worker, in as few lists as possible, so that none of a list overlap."""
    lanes: list[list[dict[str, Any]]] = []
    free: list[tuple[float, int]] = []
    """(when its last call ended, lane): a heap."""
    for call in sorted(calls, key=lambda call: call["ts"]):
        if free and free[0][0] <= call["ts"]:
            number = heapq.heappop(free)[1]
        else:
            number = len(lanes)
            lanes.append([])
        lanes[number].append(call)
        heapq.heappush(free, (call["ts"] + call["dur"], number))
    return lanes


def _named(kind: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _number(unique: bytes) -> int:
    """For an id, a number that viewers take: they show 32 bits."""
    return int.from_bytes(unique[:4], "little") & 0x7FFFFFFF

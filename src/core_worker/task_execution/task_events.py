"""What this worker ran, for `timeline()`: a tuple appended for each call, sent to the GCS in one message a second while there are calls,
when the worker becomes idle, when somebody asks for the timeline, and before the worker ends or is killed by its cluster. Between two
sends the latest EVENTS_MAX are kept and the others counted. One that crashes takes those of its last second with it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from ray_mono.protobuf import gcs_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.context import TaskContext
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_execution.actor_runtime import ActorRuntime

EVENTS_MAX = 1000
"""In one message. A worker that makes more calls a second makes short ones, of which a timeline shows a sample: packing them all would slow
it down."""
SEND_PERIOD_S = 1.0


class TaskEvents:
    """The events of one worker that were not sent yet."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._events: deque[tuple[ActorRuntime | None, str, bytes, float, float]] = deque(maxlen=EVENTS_MAX)
        self._spans: deque[tuple[str, str, bytes, float, float]] = deque(maxlen=EVENTS_MAX)
        self._num_added = 0
        self._is_armed = False
        # What perf_counter() has to be given to be a time of the day.
        self._epoch_s = time.time() - time.perf_counter()

    def add(self, task: TaskContext, started_s: float) -> None:
        """A call is over. started_s is perf_counter()'s. Any thread. What it is called is put together when it is sent."""
        given = task.given_name
        self._events.append(
            (None if given else task.actor, given or task.name, task.task_id, started_s, time.perf_counter())
        )
        self._added()

    def add_span(self, name: str, extra_data: str, task_id: bytes, started_s: float) -> None:
        """A span that the user marked is over; otherwise as add. extra_data: a JSON object."""
        self._spans.append((name, extra_data, task_id, started_s, time.perf_counter()))
        self._added()

    def _added(self) -> None:
        self._num_added += 1
        if not self._is_armed:
            self._is_armed = True
            with self._core.lock:
                self._core.reactor.call_later(SEND_PERIOD_S, self.send)

    def send(self, collection: bytes = b"") -> None:
        """collection: somebody asked and waits for an answer, even an empty one. Lock held."""
        if not collection:
            self._is_armed = False
        if not (self._events or self._spans or collection) or self._core.reactor.is_closed:
            return
        events = [self._events.popleft() for _ in range(len(self._events))]
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        num_calls = len(events)
        events += [
            (None, name, task_id, started_s, ended_s) for name, _, task_id, started_s, ended_s in spans
        ]
        dropped, self._num_added = max(0, self._num_added - len(events)), 0
        core = self._core
        indices: dict[str, int] = {}
        message = gcs_pb2.TaskEvents(
            job_id=core.job_id,
            worker_id=core.worker_id,
            node_id=core.node_id,
            host=core.node.host,
            pid=core.pid,
            name_indices=[
                indices.setdefault(name if actor is None else f"{actor.class_name}.{name}", len(indices))
                for actor, name, _, _, _ in events
            ],
            names=list(indices),
            start_time_s=[self._epoch_s + started_s for _, _, _, started_s, _ in events],
            end_time_s=[self._epoch_s + ended_s for _, _, _, _, ended_s in events],
            task_ids=b"".join(task_id for _, _, task_id, _, _ in events),
            dropped=dropped,
            collection=collection,
            spans={num_calls + number: extra_data for number, (_, extra_data, *_) in enumerate(spans)},
        )
        core.gcs.AddTaskEvents.notify(message)

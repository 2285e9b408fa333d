"""What this process ran, for `timeline()`. A tuple is appended for each call.

They are sent to the GCS in one message a second while there are calls. They are also sent when the worker
becomes idle, when somebody asks for the timeline, and before the worker ends or its cluster has it end.
Between two messages the latest EVENTS_MAX are kept, and the others only counted. A process that crashes takes
the events of its last second with it.
"""

from __future__ import annotations

import time
from collections import deque

from ray_mono.core_worker.context import TaskContext, TaskKind, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import gcs_pb2

EVENTS_MAX = 1000
"""Events in one message. A worker that runs more calls a second runs short ones, and to pack them all would
slow it down. So the timeline shows a sample of them."""
SEND_PERIOD_S = 1.0


class TaskEvents:
    """The events of one process that were not sent yet. A driver has only spans that its program marks."""

    def __init__(self, env: Environment, context: WorkerContext) -> None:
        self._env = env
        self._context = context
        self._events: deque[tuple[TaskKind, bytes, float, float]] = deque(maxlen=EVENTS_MAX)
        self._spans: deque[tuple[str, str, bytes, float, float]] = deque(maxlen=EVENTS_MAX)
        self._num_added = 0
        self._is_armed = False
        # Added to perf_counter(), it gives the time of day.
        self._epoch_s = time.time() - time.perf_counter()

    def add(self, task: TaskContext, started_s: float, ended_s: float) -> None:
        """A call is over. Any thread calls this; its name is put together only when it is sent.

        started_s, ended_s: by perf_counter().
        """
        self._events.append((task.kind, task.task_id, started_s, ended_s))
        self._num_added += 1
        if not self._is_armed:
            self._arm()

    def add_span(self, name: str, extra_data: str, task_id: bytes, started_s: float) -> None:
        """A span that the user marked is over. As `add`; extra_data is a JSON object."""
        self._spans.append((name, extra_data, task_id, started_s, time.perf_counter()))
        self._num_added += 1
        if not self._is_armed:
            self._arm()

    def _arm(self) -> None:
        self._is_armed = True
        with self._env.lock:
            self._env.reactor.call_later(SEND_PERIOD_S, self.send)

    def send(self, collection: bytes = b"") -> None:
        """Sends the events. Lock held.

        collection: names the request of somebody who waits for the events, even if there are none.
        """
        if not collection:
            self._is_armed = False
        if not (self._events or self._spans or collection) or self._env.reactor.is_closed:
            return
        events = [self._events.popleft() for _ in range(len(self._events))]
        spans = [self._spans.popleft() for _ in range(len(self._spans))]
        dropped, self._num_added = max(0, self._num_added - len(events) - len(spans)), 0
        env = self._env
        indices: dict[str, int] = {}
        kinds = {id(kind): kind for kind, *_ in events}
        of_kinds = {each: indices.setdefault(kind.shown_name, len(indices)) for each, kind in kinds.items()}
        name_indices = [of_kinds[id(kind)] for kind, *_ in events]
        name_indices += [indices.setdefault(name, len(indices)) for name, *_ in spans]
        times = [each[1:] for each in events] + [each[2:] for each in spans]
        message = gcs_pb2.TaskEvents(
            job_id=self._context.job.job_id,
            worker_id=env.worker_id,
            node_id=env.node_id,
            host=env.node.host,
            pid=env.pid,
            name_indices=name_indices,
            names=list(indices),
            start_time_s=[self._epoch_s + started_s for _, started_s, _ in times],
            end_time_s=[self._epoch_s + ended_s for _, _, ended_s in times],
            task_ids=b"".join(task_id for task_id, _, _ in times),
            dropped=dropped,
            collection=collection,
            spans={number: extra_data for number, (_, extra_data, *_) in enumerate(spans, len(events))},
        )
        env.gcs.AddTaskEvents.notify(message)

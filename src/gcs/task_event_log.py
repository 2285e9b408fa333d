"""What the cluster's workers ran lately, for the timeline.

In memory only: a GCS that starts again begins anew.
"""

from __future__ import annotations

from collections import deque

from ray_mono.protobuf import gcs_pb2

EVENTS_MAX = 100_000
"""Some 5 MB: half a minute of a busy machine, and as much as viewers take."""


class TaskEventLog:
    """The latest EVENTS_MAX events, in batches as workers sent them; the oldest batches go first."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self._events_max = events_max
        self._batches: deque[gcs_pb2.TaskEvents] = deque()
        self._num_events = 0
        self.dropped = 0

    def add(self, batch: gcs_pb2.TaskEvents) -> None:
        if batch.name_indices:
            self._batches.append(batch)
        self._num_events += len(batch.name_indices)
        self.dropped += batch.dropped
        while self._num_events > self._events_max and len(self._batches) > 1:
            oldest = self._batches.popleft()
            self._num_events -= len(oldest.name_indices)
            self.dropped += len(oldest.name_indices)

    def of_job(self, job_id: bytes) -> list[gcs_pb2.TaskEvents]:
        """In the order of arrival. Empty: of every job."""
        return [batch for batch in self._batches if not job_id or batch.job_id == job_id]

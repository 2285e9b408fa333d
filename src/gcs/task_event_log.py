"""What the cluster's workers ran lately, for the timeline.

In memory only: a GCS that starts again begins anew.
"""

from __future__ import annotations

from collections import deque

from ray_mono.protobuf import gcs_pb2


class TaskEventLog:
    """The latest events_max events, in batches as workers sent them; the oldest batches go first."""

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        # With the times of their arrivals.
        self._batches: deque[tuple[float, gcs_pb2.TaskEvents]] = deque()
        self._num_events = 0
        self.dropped = 0

    def add(self, batch: gcs_pb2.TaskEvents, now_s: float) -> None:
        if batch.name_indices:
            self._batches.append((now_s, batch))
        self._num_events += len(batch.name_indices)
        self.dropped += batch.dropped
        while self._num_events > self._events_max and len(self._batches) > 1:
            self._drop_oldest()

    def forget_oldest(self, before_s: float) -> None:
        """Drops the batches that arrived before a time."""
        while self._batches and self._batches[0][0] < before_s:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, oldest = self._batches.popleft()
        self._num_events -= len(oldest.name_indices)
        self.dropped += len(oldest.name_indices)

    def of_job(self, job_id: bytes) -> list[gcs_pb2.TaskEvents]:
        """In the order of arrival. Empty: of every job."""
        return [batch for _, batch in self._batches if not job_id or batch.job_id == job_id]

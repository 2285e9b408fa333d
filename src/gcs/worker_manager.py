"""The machine that keeps the rows of workers and drivers: who lives where, and the latest deaths."""

from __future__ import annotations

from collections.abc import Iterable

from ray_mono.common.ids import NodeID, WorkerID
from ray_mono.gcs.forgetting import oldest
from ray_mono.protobuf import common_pb2


class WorkerManager:
    """All living workers and drivers, and the latest dead ones.

    Rows are WorkerInfo messages. Times are seconds since the epoch.
    """

    def __init__(self, dead_workers_max: int) -> None:
        self._dead_workers_max = dead_workers_max
        # In the order of their starts.
        self._living: dict[WorkerID, common_pb2.WorkerInfo] = {}
        # In the order of their deaths.
        self._dead: dict[WorkerID, common_pb2.WorkerInfo] = {}

    def restore(self, rows: Iterable[common_pb2.WorkerInfo]) -> None:
        """Takes over the rows of an earlier GCS."""
        for row in sorted(rows, key=lambda row: (row.end_time_s, row.start_time_s, row.worker_id)):
            workers = self._living if row.is_alive else self._dead
            workers[WorkerID(row.worker_id)] = row

    def add(self, info: common_pb2.WorkerInfo, now_s: float) -> common_pb2.WorkerInfo | None:
        """A worker started; returns its row, or None where its death was reported before."""
        worker_id = WorkerID(info.worker_id)
        if worker_id in self._dead:
            return None
        row = common_pb2.WorkerInfo()
        row.CopyFrom(info)
        row.is_alive = True
        row.start_time_s = info.start_time_s or now_s
        self._living[worker_id] = row
        return row

    def died(self, info: common_pb2.WorkerInfo, now_s: float) -> common_pb2.WorkerInfo | None:
        """A worker ended. Returns its last row: what was known of it, and what the report adds.

        None where its death is known.
        """
        worker_id = WorkerID(info.worker_id)
        if worker_id in self._dead:
            return None
        row = common_pb2.WorkerInfo()
        known = self._living.pop(worker_id, None)
        if known is not None:
            row.CopyFrom(known)
        row.MergeFrom(info)
        row.is_alive = False
        row.end_time_s = info.end_time_s or now_s
        self._dead[worker_id] = row
        return row

    def forget_oldest(self, ended_before_s: float) -> list[WorkerID]:
        """Drops dead workers beyond the limit, and those that died before a time.

        Returns their ids, the oldest first.
        """
        forgotten = oldest(self._dead, self._dead_workers_max, lambda row: row.end_time_s < ended_before_s)
        for worker_id in forgotten:
            del self._dead[worker_id]
        return forgotten

    # ---- questions

    def is_dead(self, worker_id: WorkerID) -> bool:
        """Whether the death is known; of one long ago it is not."""
        return worker_id in self._dead

    def death_of(self, worker_id: WorkerID) -> common_pb2.DeathCause | None:
        """None where it was not reported, or that was long ago."""
        row = self._dead.get(worker_id)
        return None if row is None else row.death_cause

    def is_living(self, worker_id: WorkerID) -> bool:
        return worker_id in self._living

    def of_node(self, node_id: NodeID) -> list[common_pb2.WorkerInfo]:
        """The living workers of a node."""
        return [row for row in self._living.values() if row.node_id == node_id.binary()]

    def rows(self) -> list[common_pb2.WorkerInfo]:
        """The living in the order of their starts, then the dead in the order of their deaths."""
        return [*self._living.values(), *self._dead.values()]

    def count_living(self) -> int:
        return len(self._living)

"""The machine that counts jobs.

A job is a driver's time in the cluster. It begins with AddJob. It is finished when the driver says so, or
when its process or its node is gone. It is over when its last actor is gone too: a detached actor, and what
runs below it, live on in the job that they came from. A job's row and code are kept until it is over.

    running ──driver gone──► outlived (finished) ──no actor left──► over ──more than the limit──► forgotten

Job numbers are never used twice, not even after a restart: the next one is stored with each job.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ray_mono.common.ids import JobID, NodeID, WorkerID
from ray_mono.gcs.forgetting import oldest
from ray_mono.protobuf import common_pb2


class JobManager:
    """All jobs.

    Their rows are JobInfo messages, kept and handed on as they are. Times are seconds since the epoch.
    """

    def __init__(self, finished_jobs_max: int) -> None:
        self._finished_jobs_max = finished_jobs_max
        # In the order of their numbers.
        self._running: dict[JobID, common_pb2.JobInfo] = {}
        # Finished and not over, in the order of their ends: at most as many as there are detached actors.
        self._outlived: dict[JobID, common_pb2.JobInfo] = {}
        # Over, the oldest first.
        self._over: dict[JobID, common_pb2.JobInfo] = {}
        self.next_number = 1

    def restore(self, rows: Iterable[common_pb2.JobInfo], next_number: int) -> None:
        """Takes over the rows and the counter of an earlier GCS."""
        for info in sorted(rows, key=lambda info: (info.end_time_s, JobID(info.job_id).int())):
            jobs = self._over if info.is_over else self._outlived if info.is_finished else self._running
            jobs[JobID(info.job_id)] = info
        self.next_number = next_number

    def add(self, job: common_pb2.JobInfo, now_s: float) -> common_pb2.JobInfo:
        """Begins a job with the next number; returns its row. `next_number` has to be stored with it."""
        row = common_pb2.JobInfo()
        row.CopyFrom(job)
        row.job_id = JobID.from_int(self.next_number).binary()
        row.start_time_s = job.start_time_s or now_s
        row.is_finished = False
        self.next_number += 1
        self._running[JobID(row.job_id)] = row
        return row

    def heard_of(self, number: int) -> None:
        """An earlier GCS has given out this number."""
        self.next_number = max(self.next_number, number + 1)

    def adopt(self, job: common_pb2.JobInfo) -> common_pb2.JobInfo | None:
        """A job of an earlier GCS: what its driver, that one's raylet, or a worker of the job knows of it.
        Returns its row, None where that says nothing new."""
        job_id = JobID(job.job_id)
        if self.is_finished(job_id):
            return None
        known = self._running.get(job_id)
        row = common_pb2.JobInfo()
        if known is not None:
            row.CopyFrom(known)
        row.MergeFrom(job)
        if row == known:
            return None
        self.heard_of(job_id.int())
        self._running[job_id] = row
        return row

    def driver_joined(self, worker_id: WorkerID, node_id: NodeID) -> list[common_pb2.JobInfo]:
        """A driver's raylet says where it is, which the driver did not know yet when its job began.

        Returns the rows that changed.
        """
        changed = []
        for job_id in self.of_driver(worker_id):
            if self._running[job_id].driver.node_id != node_id.binary():
                row = common_pb2.JobInfo()
                row.CopyFrom(self._running[job_id])
                row.driver.MergeFrom(common_pb2.Address(node_id=node_id.binary()))
                self._running[job_id] = row
                changed.append(row)
        return changed

    def finish(self, job_id: JobID, now_s: float) -> common_pb2.JobInfo | None:
        """Its driver is gone. Returns the job's row; None where it is not running."""
        return _moved(job_id, self._running, self._outlived, is_finished=True, end_time_s=now_s)

    def over(self, job_id: JobID) -> common_pb2.JobInfo | None:
        """No actor of the job is left. Returns its last row where it is finished, and was not over before."""
        return _moved(job_id, self._outlived, self._over, is_over=True)

    def outlived(self) -> list[JobID]:
        """The finished jobs that are not over."""
        return list(self._outlived)

    def forget_oldest(self, ended_before_s: float) -> list[JobID]:
        """Drops jobs that are over beyond the limit, and those that ended before a time.

        Returns their ids, the oldest first.
        """
        forgotten = oldest(self._over, self._finished_jobs_max, lambda row: row.end_time_s < ended_before_s)
        for job_id in forgotten:
            del self._over[job_id]
        return forgotten

    # ---- questions

    def of_driver(self, worker_id: WorkerID) -> list[JobID]:
        """The running jobs of a driver's process."""
        return [job_id for job_id, row in self._running.items() if row.driver.worker_id == worker_id.binary()]

    def of_node(self, node_id: NodeID) -> list[JobID]:
        """The running jobs whose driver is on the node."""
        wanted = node_id.binary()
        return [job_id for job_id, row in self._running.items() if row.driver.node_id == wanted]

    def without_driver(self) -> list[JobID]:
        """The running jobs of whose driver no node has told."""
        return [job_id for job_id, row in self._running.items() if not row.driver.node_id]

    def is_known(self, job_id: JobID) -> bool:
        return self.row(job_id) is not None

    def row(self, job_id: JobID) -> common_pb2.JobInfo | None:
        """One job, None for an id that was never given out or was forgotten since."""
        return self._running.get(job_id) or self._outlived.get(job_id) or self._over.get(job_id)

    def is_running(self, job_id: JobID) -> bool:
        return job_id in self._running

    def is_finished(self, job_id: JobID) -> bool:
        return job_id in self._outlived or job_id in self._over

    def is_over(self, job_id: JobID) -> bool:
        return job_id in self._over

    def rows(self) -> list[common_pb2.JobInfo]:
        """Every row, in the order of the numbers."""
        rows = [*self._running.values(), *self._outlived.values(), *self._over.values()]
        return sorted(rows, key=lambda row: row.job_id)


def _moved(
    job_id: JobID,
    source: dict[JobID, common_pb2.JobInfo],
    target: dict[JobID, common_pb2.JobInfo],
    **changed: Any,
) -> common_pb2.JobInfo | None:
    """The job's row with these fields, in its new place; None where it is not in the old one.

    It is a new message: others may hold the old one.
    """
    row = source.pop(job_id, None)
    if row is not None:
        row = target[job_id] = copy.copy(row)
        for name, value in changed.items():
            setattr(row, name, value)
    return row

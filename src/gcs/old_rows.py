"""Rows of nodes, jobs and workers that are over: what is more than is kept, or too old, goes."""

from __future__ import annotations

from ray_mono.gcs.environment import Environment
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.node_fences import NodeFences
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.gcs.worker_manager import WorkerManager


class OldRows:
    """Of one GCS."""

    def __init__(
        self,
        environment: Environment,
        nodes: NodeManager,
        fences: NodeFences,
        jobs: JobManager,
        workers: WorkerManager,
    ) -> None:
        self._environment = environment
        self._writes = environment.writes
        self._nodes = nodes
        self._fences = fences
        self._jobs = jobs
        self._workers = workers

    @property
    def forgotten_before_s(self) -> float:
        """What ended before that is forgotten."""
        return self._environment.clock.wall_s() - self._environment.config.dead_age_max_s

    def forget_nodes(self) -> None:
        for node_id in self._nodes.forget_oldest(self.forgotten_before_s):
            self._fences.forget(node_id)
            self._writes.delete(Table.NODE, node_id.binary())

    def forget_jobs(self) -> None:
        for job_id in self._jobs.forget_oldest(self.forgotten_before_s):
            self._writes.delete(Table.JOB, job_id.binary())

    def forget_workers(self) -> None:
        for worker_id in self._workers.forget_oldest(self.forgotten_before_s):
            self._writes.delete(Table.WORKER, worker_id.binary())

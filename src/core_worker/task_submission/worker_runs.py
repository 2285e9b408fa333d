"""Functions that every worker of a job runs once: `run_function_on_all_workers`.

What was exported before a task was submitted has run in the task's worker before the task. A worker learns of
an export in three ways, and the first counts: it reads the KV namespace "run" when it becomes its job's; the
GCS publishes it; and whoever exported it, or learned of it, names it to each worker ahead of its next task
there (`Peer.push`), since a publication may come later than that.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ray_mono.common import code_pickler
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import gcs_pb2

logger = logging.getLogger(__name__)

NAMESPACE = b"run"


class WorkerRuns:
    """Those that one process knows of."""

    def __init__(self, env: Environment, context: WorkerContext, worker: Any) -> None:
        """worker: what functions are given as worker_info["worker"]."""
        self._env = env
        self._context = context
        self._worker = worker
        self.known: list[bytes] = []
        """Their keys, in the order in which this process learned of them. Only appended to."""
        self._num_seen = 0
        self._ran: set[bytes] = set()
        # An export may come while tasks run in several threads: each waits until it has run.
        self._running = threading.RLock()

    def export(self, function: Callable[[dict[str, Any]], object]) -> None:
        """Runs `function(worker_info)` here and then once on every worker of this job, present and future.

        `worker_info` is a dict with "worker": the core worker (Ray's old API passed its Worker). Only the
        first exporter of a function exports it.
        """
        env, job_id = self._env, self._context.job.job_id
        function({"worker": self._worker})
        code = code_pickler.dumps(function, protocol=5)
        key = job_id + hashlib.blake2b(code, digest_size=28).digest()
        request = gcs_pb2.KvPutRequest(namespace=NAMESPACE, key=key, value=code, overwrite=False)
        added = env.gcs.KvPut(request, timeout_s=self._env.config.gcs_timeout_s).added
        with env.lock:
            self._ran.add(key)
            self.learn([key])
        if added:
            message = gcs_pb2.PubMessage(channel=gcs_pb2.RUN_ON_WORKERS, key=job_id, payload=key)
            env.gcs.Publish(gcs_pb2.PublishRequest(message=message), timeout_s=self._env.config.gcs_timeout_s)

    def read(self, job_id: bytes) -> None:
        """A worker's, when it becomes the job's and has subscribed to its publications: what was exported
        before."""
        request = gcs_pb2.KvKeysRequest(namespace=NAMESPACE, prefix=job_id)
        keys = self._env.gcs.KvKeys(request, timeout_s=self._env.config.gcs_timeout_s).keys
        with self._env.lock:
            self.learn(keys)

    def learn(self, keys: Iterable[bytes]) -> None:
        """Lock held."""
        self.known += [key for key in keys if key not in self.known]

    def run_pending(self) -> None:
        """Before each task. Returns when all that were known have run."""
        if self._num_seen < len(self.known):
            with self._running:
                while self._num_seen < len(self.known):
                    key = self.known[self._num_seen]
                    if key not in self._ran:
                        self._ran.add(key)
                        self._run(key)
                    self._num_seen += 1

    def _run(self, key: bytes) -> None:
        try:
            reply = self._env.gcs.KvGet(
                gcs_pb2.KvGetRequest(namespace=NAMESPACE, key=key), timeout_s=self._env.config.gcs_timeout_s
            )
            pickle.loads(reply.value)({"worker": self._worker})
        except Exception:
            logger.exception("a function given to run_function_on_all_workers failed on this worker")

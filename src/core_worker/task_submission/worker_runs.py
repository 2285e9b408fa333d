"""Functions that every worker of a job runs once: `run_function_on_all_workers`.

A function that was exported before a task was submitted runs in the task's worker before the task. A worker
learns of a function in three ways, and runs it once:

- It reads the KV namespace "run" when it becomes its job's, and when the GCS is back.
- The GCS publishes the function's key.
- Each process that knows the function names it to a worker ahead of its next task there (`Peer.push`), since
  the publication may come later than the task.
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
from ray_mono.core_worker.task_submission.job_code import RUNS, JobCode
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)


class WorkerRuns:
    """The functions that one process knows of."""

    def __init__(
        self, env: Environment, context: WorkerContext, worker: Any, job_code: JobCode, known: list[bytes]
    ) -> None:
        """worker: given to functions as worker_info["worker"]. known: an empty list, for the keys of the
        functions, in the order in which this process learns of them. It only grows."""
        self._env = env
        self._context = context
        self._worker = worker
        self._job_code = job_code
        self.known = known
        """The functions' keys, in the order in which this process learned of them. The list only grows."""
        self.has_pending = False
        """Whether some of them may not have run here."""
        self._num_seen = 0
        self._ran: set[bytes] = set()
        # An export may come while tasks run in several threads. Each thread waits until the function has run.
        self._running = threading.RLock()

    def export(self, function: Callable[[dict[str, Any]], object]) -> None:
        """Runs `function(worker_info)` here, and then once on every worker of this job, present and future.

        `worker_info` is a dict with "worker": the core worker. (Ray's old API passed its Worker.) Only the
        first process that exports a function publishes it.
        """
        env, job_id = self._env, self._context.job.job_id
        function({"worker": self._worker})
        code = code_pickler.dumps(function, protocol=5)
        key = job_id + hashlib.blake2b(code, digest_size=28).digest()
        self._job_code.keep(RUNS, key, code)
        request = gcs_pb2.KvPutRequest(namespace=RUNS, key=key, value=code, overwrite=False)
        added = env.gcs.KvPut(request, timeout_s=env.config.gcs_timeout_s).added
        with env.lock:
            self._ran.add(key)
            self.learn([key])
        if added:
            message = gcs_pb2.PubMessage(channel=gcs_pb2.RUN_ON_WORKERS, key=job_id, payload=key)
            env.gcs.Publish(gcs_pb2.PublishRequest(message=message), timeout_s=self._env.config.gcs_timeout_s)

    def read_again(self, job_id: bytes) -> None:
        """The GCS was away. Learns what was exported meanwhile. Lock held."""

        def answered(reply: Any, error: RpcError | None) -> None:
            if error is None:
                self.learn(reply.keys)

        self._env.gcs.KvKeys.start(gcs_pb2.KvKeysRequest(namespace=RUNS, prefix=job_id), answered)

    def learn(self, keys: Iterable[bytes]) -> None:
        """These keys are known from now on. Lock held."""
        new = [key for key in keys if key not in self.known]
        if new:
            self.known += new
            self.has_pending = True

    def run_pending(self, caller: common_pb2.Address) -> None:
        """Called before each task of `caller`, if there are any. Returns when all functions that are known
        have run."""
        with self._running:
            while self._num_seen < len(self.known):
                key = self.known[self._num_seen]
                if key not in self._ran:
                    self._ran.add(key)
                    self._run(key, caller)
                self._num_seen += 1
            with self._env.lock:
                self.has_pending = self._num_seen < len(self.known)

    def _run(self, key: bytes, caller: common_pb2.Address) -> None:
        try:
            code = self._job_code.fetch(RUNS, key, caller)
            if code is not None:  # else the job is over
                pickle.loads(code)({"worker": self._worker})
        except Exception:
            logger.exception("a function given to run_function_on_all_workers failed on this worker")

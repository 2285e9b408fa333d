"""Functions that every worker of a job runs once: `run_function_on_all_workers`.

What was exported before a task was submitted has run in the task's worker before the task. A worker learns of an export in three
ways, and the first counts: it reads the KV namespace "run" when it becomes its job's; the GCS publishes it; and whoever exported it,
or learned of it, names it to each worker ahead of its next task there (`Peer.push`), since a publication may come later than that.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray_mono.common import code_pickler
from ray_mono.protobuf import gcs_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

logger = logging.getLogger(__name__)

NAMESPACE = b"run"
TIMEOUT_S = 60.0


class WorkerRuns:
    """Those that one process knows of."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self.known: list[bytes] = []
        """Their keys, in the order in which this process learned of them. Only appended to."""
        self._num_seen = 0
        self._ran: set[bytes] = set()
        # An export may come while tasks run in several threads: each waits until it has run.
        self._running = threading.RLock()

    def export(self, function: Callable[[dict[str, Any]], object]) -> None:
        """Runs `function(worker_info)` here and then once on every worker of this job, present and future.

        `worker_info` is a dict with "worker": the core worker (Ray's old API passed its Worker). Only the first
        exporter of a function exports it.
        """
        core = self._core
        function({"worker": core})
        code = code_pickler.dumps(function, protocol=5)
        key = core.job_id + hashlib.blake2b(code, digest_size=28).digest()
        request = gcs_pb2.KvPutRequest(namespace=NAMESPACE, key=key, value=code, overwrite=False)
        added = core.gcs.KvPut(request, timeout_s=TIMEOUT_S).added
        with core.lock:
            self._ran.add(key)
            self.learn([key])
        if added:
            message = gcs_pb2.PubMessage(channel=gcs_pb2.RUN_ON_WORKERS, key=core.job_id, payload=key)
            core.gcs.Publish(gcs_pb2.PublishRequest(message=message), timeout_s=TIMEOUT_S)

    def read(self, job_id: bytes) -> None:
        """A worker's, when it becomes the job's and has subscribed to its publications: what was exported before."""
        request = gcs_pb2.KvKeysRequest(namespace=NAMESPACE, prefix=job_id)
        keys = self._core.gcs.KvKeys(request, timeout_s=TIMEOUT_S).keys
        with self._core.lock:
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
        core = self._core
        try:
            reply = core.gcs.KvGet(gcs_pb2.KvGetRequest(namespace=NAMESPACE, key=key), timeout_s=TIMEOUT_S)
            pickle.loads(reply.value)({"worker": core})
        except Exception:
            logger.exception("a function given to run_function_on_all_workers failed on this worker")

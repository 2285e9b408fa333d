"""What a head on an empty store has to be told of this process: AdoptRequest, and code that it exported."""

from __future__ import annotations

from collections.abc import Sequence

from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_submission.actor_creator import ActorCreator
from ray_mono.core_worker.task_submission.actor_handles import ActorHandles
from ray_mono.core_worker.task_submission.job_code import JobCode
from ray_mono.protobuf import common_pb2, gcs_pb2


class AdoptionTeller:
    """Of one process."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        job_code: JobCode,
        creator: ActorCreator,
        handles: ActorHandles,
    ) -> None:
        self._env = env
        self._context = context
        self._job_code = job_code
        self._creator = creator
        self._handles = handles

    def tell(self, job: common_pb2.JobInfo | None = None, held: Sequence[common_pb2.ActorInfo] = ()) -> None:
        """job: a driver's own. held: the actor of this worker. Lock held."""
        self._job_code.export_again()
        mine = self._context.job
        if job is None and mine.job_id:
            job = common_pb2.JobInfo(
                job_id=mine.job_id, namespace=mine.namespace, config_json=mine.config_json
            )
        actors = [*held, *self._creator.told_again()]
        owned = self._handles.owned()
        request = gcs_pb2.AdoptRequest(
            worker_id=self._env.worker_id, job=job, actors=actors, owned_actor_ids=owned
        )
        self._env.gcs.Adopt.start(request, lambda reply, error: None)

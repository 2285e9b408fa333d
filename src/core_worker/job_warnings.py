"""Messages to the driver of this process's job, about what a program does not notice by itself."""

from __future__ import annotations

from ray_mono.common.output import utf8
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.protobuf import common_pb2, gcs_pb2


class JobWarnings:
    """The warnings of one process."""

    def __init__(self, env: Environment, context: WorkerContext) -> None:
        self._env = env
        self._context = context

    def tell(self, kind: str, message: str) -> None:
        """Has the driver show a message. kind: the type of message, by Ray's name or ours."""
        job_id = self._context.job.job_id
        error = common_pb2.ErrorInfo(
            job_id=job_id, type=kind, message=utf8(message), time_s=self._env.clock.wall_s()
        )
        told = gcs_pb2.PubMessage(channel=gcs_pb2.ERROR, key=job_id, payload=error.SerializeToString())
        self._env.gcs.Publish.notify(gcs_pb2.PublishRequest(message=told))

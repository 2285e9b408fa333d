"""Tells the GCS how an actor ended by its own code, so that the end is not taken for a crash."""

from __future__ import annotations

import logging

from ray_mono.common.raw_error import exit_code_of
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.running import cause_of_exit
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)


def report_exit(env: Environment, error: BaseException) -> None:
    """error: ActorExit or SystemExit. A SystemExit with another status than 0 counts as a crash."""
    if isinstance(error, SystemExit):
        code = exit_code_of(error)
        is_orderly = isinstance(code, int) and code == 0
        kind = common_pb2.DeathCause.EXITED if is_orderly else common_pb2.DeathCause.WORKER_DIED
        message = cause_of_exit(error)
        if not is_orderly:
            message = f"worker pid {env.pid} on node {env.node.host} ended: {message}"
        cause = common_pb2.DeathCause(kind=kind, message=message)
    else:
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.EXITED, message="exit_actor() was called")
    info = common_pb2.WorkerInfo(worker_id=env.worker_id, node_id=env.node_id, pid=env.pid, death_cause=cause)
    try:
        env.gcs.ReportWorkerDeath(info, timeout_s=env.config.gcs_timeout_s)
    except RpcError as failure:
        logger.error("the GCS was not told of the actor's exit: %s", failure)

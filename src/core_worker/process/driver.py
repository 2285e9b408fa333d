"""A driver joins the cluster, with a new job. What it shows of the cluster's messages is in
driver_messages.py."""

from __future__ import annotations

import functools
import json
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray_mono.common import ids
from ray_mono.common.exceptions import LocalRayletDiedError, RaySystemError
from ray_mono.common.output import utf8
from ray_mono.core_worker.context import JobContext
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process.driver_messages import DriverMessages
from ray_mono.core_worker.process.gcs_channel import GcsChannel
from ray_mono.core_worker.process.registration import Registration
from ray_mono.core_worker.process.termination import DriverExit
from ray_mono.core_worker.task_submission.function_manager import script_name
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc import signal_handlers
from ray_mono.rpc.surface import RpcError

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class DriverConfig:
    """What a driver needs to join."""

    raylet_socket: str
    """Unix socket path of the node's raylet."""
    gcs_address: str
    """"unix:/path" or "host:port"."""
    session_dir: str
    secret: str = field(repr=False)
    namespace: str = ""
    default_actor_lifetime: str = ""
    """ "detached", or empty."""
    runtime_env: str = "{}"
    """The job's, as JSON."""
    job_config: dict[str, Any] = field(default_factory=dict)
    """What workers get as JSON: {"sys_path": [...], ...}."""
    entrypoint: str = ""
    on_error: Callable[[common_pb2.ErrorInfo], None] | None = None
    on_log: Callable[[common_pb2.LogBatch], None] | None = None
    log_level: str = "info"
    node_host: str = "127.0.0.1"
    why_node_ended: Callable[[], str] | None = None
    """Asked when the raylet has gone. Empty where nobody knows."""


def connect_driver(config: DriverConfig) -> CoreWorker:
    """Joins as a driver with a new job. Raises RaySystemError, which says who did not answer."""
    worker_id = ids.WorkerID.from_random(random.SystemRandom()).binary()
    with Registration(
        common_pb2.DRIVER,
        worker_id,
        config.session_dir,
        config.secret,
        config.node_host,
        config.raylet_socket,
        config.gcs_address,
    ) as registration:
        job = _job(config, registration)
        job_id = _add_job(config, registration, job)
        core = registration.join(
            job=JobContext(
                job_id,
                config.namespace,
                default_actor_lifetime=config.default_actor_lifetime,
                runtime_env=config.runtime_env,
                script=script_name(),
                config_json=_config_json(config),
            ),
            on_node_lost=functools.partial(_on_raylet_lost, config.why_node_ended, registration.gcs_channel),
        )
    messages = DriverMessages(core.env, job_id, config.on_error, config.on_log)
    messages.subscribe()
    registration.gcs_channel.on_return(messages.gcs_is_back)
    job.MergeFrom(common_pb2.JobInfo(job_id=job_id, driver=core.env.address))
    with core.env.lock:
        registration.gcs_channel.on_other_cluster(lambda: core.adoption.tell(job))
    for step in (
        registration.leave_gcs,
        core.send_events,
        messages.flush,
        lambda: _finish_job(core),
        messages.stop,
    ):
        core.at_shutdown(step)
    DriverExit(core.env, core.first_at_shutdown)
    core.at_shutdown(signal_handlers.install(registration.reactor, interrupts=True))
    return core


def _config_json(config: DriverConfig) -> str:
    return json.dumps({**config.job_config, "script": script_name()})


def _job(config: DriverConfig, registration: Registration) -> common_pb2.JobInfo:
    return common_pb2.JobInfo(
        entrypoint=utf8(config.entrypoint),
        driver=registration.address,
        driver_pid=os.getpid(),
        namespace=config.namespace,
        config_json=_config_json(config),
    )


def _add_job(config: DriverConfig, registration: Registration, job: common_pb2.JobInfo) -> bytes:
    try:
        return registration.gcs.AddJob(gcs_pb2.AddJobRequest(job=job), timeout_s=JOIN_TIMEOUT_S).job_id
    except RpcError as error:
        raise RaySystemError(
            f"the cluster at {config.gcs_address} did not take this driver: {error}"
        ) from None


def _finish_job(core: CoreWorker) -> None:
    """Tells the GCS that the job is finished. If this fails, the end of the connection tells it."""
    try:
        core.env.gcs.MarkJobFinished(
            gcs_pb2.MarkJobFinishedRequest(job_id=core.job_id), timeout_s=FINISH_TIMEOUT_S
        )
    except RpcError as error:
        logger.debug("the GCS was not told of the job's end: %s", error)


def _on_raylet_lost(
    why_node_ended: Callable[[], str] | None, gcs_channel: GcsChannel, core: CoreWorker, reason: str
) -> None:
    """The raylet of this driver's node is gone. Everything that waits fails. Lock held."""
    if core.env.reactor.is_closed:
        return
    why = (why_node_ended() if why_node_ended is not None else "") or reason
    logs = f"Its log is in {core.session_dir}/logs."
    logger.error("The node's raylet is gone (%s): nothing can run any more. %s", why, logs)
    message = f"The raylet of this driver's node is gone ({why}): nothing can run any more. {logs}"
    core.fail_all_tasks(lambda: LocalRayletDiedError(message))
    gcs_channel.raylet_lost(f"this driver's node has ended: {why}")

"""What drivers are told of the cluster's troubles, beside their results.

A worker that died by itself, a node that is gone, a detached actor that nobody will find. This decides what
is told, and words it; it knows no clock and no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ray_mono.common.ids import JobID
from ray_mono.gcs.actor.actor_state import Actor, ActorRegistration, Death, DeathKind
from ray_mono.protobuf import common_pb2

DEATHS_TOLD_MAX = 20
"""Of one job. A program whose every task crashes would fill the screen."""
# What a driver that was given no namespace calls its own.
_ANONYMOUS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class DriverWarnings:
    """One cluster's. Each method returns the message that is due, or None."""

    def __init__(self, is_running: Callable[[JobID], bool]) -> None:
        """is_running(job_id): whether the job's driver is there to be told."""
        self._is_running = is_running
        # How many deaths each job was told of. Only jobs that run are keys.
        self._deaths: dict[JobID, int] = {}

    def worker_died(
        self, info: common_pb2.WorkerInfo, death: Death, actor: Actor | None
    ) -> common_pb2.ErrorInfo | None:
        """actor: whose worker it was. One that was told to end, or said itself that it would, is no news."""
        if death.kind is not DeathKind.WORKER_DIED or (actor is not None and actor.ending is not None):
            return None
        if actor is not None:
            job_id, ran = actor.registration.job_id, f"actor {actor.registration.class_name}"
        elif info.ran and info.job_id:
            job_id, ran = JobID(info.job_id), info.ran
        else:
            return None
        if not self._is_running(job_id):
            return None
        told = self._deaths[job_id] = self._deaths.get(job_id, 0) + 1
        if told > DEATHS_TOLD_MAX:
            return None
        more = "" if told < DEATHS_TOLD_MAX else " Further deaths of workers of this job are not told."
        # What it wrote last stands on further lines, and has come to the driver as output.
        how = death.message.partition("\n")[0]
        message = f"A worker died while it ran {ran}: {how}.{more}"
        return common_pb2.ErrorInfo(job_id=job_id.binary(), type="worker_died", message=message)

    def node_died(self, node: common_pb2.NodeInfo) -> common_pb2.ErrorInfo | None:
        """For every driver. A node that was stopped is no news."""
        if node.death_cause.kind == common_pb2.DeathCause.KILLED:
            return None
        how = "has ended" if node.HasField("drain") else "is gone, with its workers and objects"
        message = f"Node {node.node_id.hex()} at {node.host} {how}: {node.death_cause.message}."
        return common_pb2.ErrorInfo(type="node_removed", message=message)

    def actor_registered(self, actor: ActorRegistration) -> common_pb2.ErrorInfo | None:
        if not actor.is_detached or not _ANONYMOUS.fullmatch(actor.namespace):
            return None
        message = (
            f"The detached actor {actor.name or actor.class_name} is in a namespace that has no name: "
            f"other drivers find it with init(namespace={actor.namespace!r}) only. "
            "Give init() or the actor a namespace."
        )
        return common_pb2.ErrorInfo(
            job_id=actor.job_id.binary(), type="detached_actor_anonymous_namespace", message=message
        )

    def job_finished(self, job_id: JobID) -> None:
        self._deaths.pop(job_id, None)

"""Between the actor manager's rows and the wire: how what a decision needs is read and written."""

from __future__ import annotations

from typing import cast

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, WorkerID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.gcs.actor.actor_placement import Demand
from ray_mono.gcs.actor.actor_state import Actor, ActorLife, ActorRegistration, Death, DeathKind
from ray_mono.protobuf import common_pb2


def registration_of(spec: common_pb2.TaskSpec, class_name: str) -> ActorRegistration:
    """What the manager has to know of a creation task.

    Raises ValueError naming the kind of id that is malformed.
    """
    creation = spec.actor_creation
    return ActorRegistration(
        actor_id=ActorID(creation.actor_id),
        job_id=JobID(spec.job_id),
        owner_worker_id=WorkerID(spec.caller.worker_id),
        owner_node_id=NodeID(spec.caller.node_id),
        class_name=class_name,
        name=creation.name,
        namespace=creation.namespace,
        is_detached=creation.is_detached,
        max_restarts=creation.max_restarts,
        outlives_job=spec.outlives_job,
        group_id=group_of(spec),
    )


def group_of(spec: common_pb2.TaskSpec) -> PlacementGroupID | None:
    """The placement group that it is to run in. Raises ValueError."""
    if not spec.strategy.HasField("placement_group"):
        return None
    return PlacementGroupID(spec.strategy.placement_group.placement_group_id)


def demand_of(spec: common_pb2.TaskSpec) -> Demand:
    """What the creation task wants of a node."""
    needed = spec.placement_resources if spec.HasField("placement_resources") else spec.resources
    strategy = Strategy.from_proto(spec.strategy)
    takes_turns = strategy.kind is StrategyKind.DEFAULT and not ResourceSet.from_proto(spec.resources)
    return Demand(ResourceSet.from_proto(needed), strategy, spec.caller.node_id, takes_turns)


def without_arguments(spec: common_pb2.TaskSpec) -> common_pb2.TaskSpec:
    """The creation task as others may see it: what it is and needs, not what it is called with."""
    bare = common_pb2.TaskSpec()
    bare.CopyFrom(spec)
    for field in ("flat_args", "args"):
        bare.ClearField(field)
    bare.actor_creation.ClearField("serialized_handle")
    return bare


def death_to_proto(death: Death) -> common_pb2.DeathCause:
    cause = common_pb2.DeathCause(
        kind=cast("common_pb2.DeathCause.Kind", int(death.kind)),
        message=death.message,
        exit_code=death.exit_code,
        signal=death.signal,
        is_preempted=death.is_preempted,
    )
    if death.error:
        cause.error.ParseFromString(death.error)
    return cause


def death_from_proto(cause: common_pb2.DeathCause) -> Death:
    error = cause.error.SerializeToString() if cause.HasField("error") else b""
    kind = DeathKind(cause.kind)
    return Death(
        kind,
        cause.message,
        cause.exit_code,
        cause.signal,
        error,
        cause.is_preempted,
        cause.oom_retries.pause_s,
    )


def write_fields(actor: Actor, info: common_pb2.ActorInfo) -> None:
    """Writes the manager's fields into the message."""
    info.state = cast("common_pb2.ActorState", int(actor.state))
    info.version = actor.version
    info.num_restarts = actor.num_restarts
    info.num_restarts_due_to_node_preemption = actor.num_restarts_preempted
    info.is_moving = actor.is_moving
    info.pending_reason = actor.pending_reason
    info.lost_on_node_id = b"" if actor.lost_on is None else actor.lost_on.binary()
    info.lost_because = actor.lost_because
    info.start_time_s = actor.start_time_s
    info.end_time_s = actor.end_time_s
    if actor.worker_id is None:
        info.ClearField("address")
        # Whoever asks why an actor is dead is told which process it was.
        if actor.state is not ActorLife.DEAD:
            info.ClearField("pid")
            info.ClearField("host")
    if actor.death is not None:
        info.death_cause.CopyFrom(death_to_proto(actor.death))


def read_fields(info: common_pb2.ActorInfo) -> Actor:
    """The manager's row out of a stored message."""
    has_place, has_cause = info.HasField("address"), info.HasField("death_cause")
    is_dead = info.state == common_pb2.DEAD
    return Actor(
        registration_of(info.creation_spec, info.class_name),
        ActorLife(info.state),
        version=info.version,
        start_time_s=info.start_time_s,
        end_time_s=info.end_time_s,
        num_restarts=info.num_restarts,
        num_restarts_preempted=info.num_restarts_due_to_node_preemption,
        node_id=NodeID(info.address.node_id) if has_place else None,
        worker_id=WorkerID(info.address.worker_id) if has_place else None,
        ending=death_from_proto(info.death_cause) if has_cause and not is_dead else None,
        killing=death_from_proto(info.kill_cause) if info.HasField("kill_cause") else None,
        death=death_from_proto(info.death_cause) if is_dead else None,
        is_moving=info.is_moving,
        lost_on=NodeID(info.lost_on_node_id) if info.lost_on_node_id else None,
        lost_because=info.lost_because,
        pending_reason=info.pending_reason,
        story=("restored",),
    )


def adopted_row(told: common_pb2.ActorInfo, now_s: float) -> Actor:
    """The manager's row of an actor that lived under an earlier GCS, as its worker or its owner tells it.

    Its version is above all that anybody has seen: microseconds grow faster than rows change. Raises
    ValueError.
    """
    state = ActorLife(told.state)
    is_placed = bool(told.address.worker_id) and (state is ActorLife.ALIVE or bool(told.creation_grant))
    if state is ActorLife.DEAD or (state is ActorLife.ALIVE and not is_placed):
        raise ValueError(f"an actor that is {state.name} cannot be adopted, or not without its address")
    return Actor(
        registration_of(told.creation_spec, told.class_name),
        state,
        version=max(told.version + 1, int(now_s * 1e6)),
        start_time_s=told.start_time_s or now_s,
        num_restarts=told.num_restarts,
        num_restarts_preempted=told.num_restarts_due_to_node_preemption,
        is_moving=told.is_moving and not is_placed,
        lost_on=NodeID(told.lost_on_node_id) if told.lost_on_node_id and not is_placed else None,
        lost_because=told.lost_because,
        node_id=NodeID(told.address.node_id) if is_placed else None,
        worker_id=WorkerID(told.address.worker_id) if is_placed else None,
        story=("adopted",),
    )

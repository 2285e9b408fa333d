"""Between the group manager's rows and PlacementGroupInfo."""

from __future__ import annotations

from typing import cast

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID
from ray_mono.common.scheduling.labels import selector_from_proto, selector_to_proto
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.placement_group.bundle_placement import Bundle, BundleStrategy
from ray_mono.gcs.placement_group.group_state import GroupRegistration, GroupState, PlacementGroup
from ray_mono.protobuf import common_pb2

Info = common_pb2.PlacementGroupInfo


def registration_of(info: Info) -> GroupRegistration:
    """What the creator says. Raises ValueError naming what is malformed."""
    bundles = tuple(
        Bundle(ResourceSet.from_proto(each.resources), selector_from_proto(each.selector))
        for each in info.bundles
    )
    if not bundles:
        raise ValueError("bundles must not be empty")
    for index, bundle in enumerate(bundles):
        if not bundle.resources or min(amount for _, amount in bundle.resources.items()) < 0:
            raise ValueError(
                f"bundle {index} must ask for something, and for nothing below 0: {bundle.resources}"
            )
    return GroupRegistration(
        group_id=PlacementGroupID(info.placement_group_id),
        job_id=JobID(info.job_id),
        strategy=BundleStrategy(Info.Strategy.Name(info.strategy)),
        bundles=bundles,
        name=info.name,
        namespace=info.namespace,
        is_detached=info.is_detached,
        creator_actor_id=ActorID(info.creator_actor_id) if info.creator_actor_id else None,
        outlives_job=info.outlives_job,
        target_node_id=info.soft_target_node_id,
        same_label=info.same_label,
        creator=info.creator if info.HasField("creator") else None,
        creator_task_id=info.creator_task_id,
    )


def row_to_proto(group: PlacementGroup, registration: Info | None = None) -> Info:
    """registration: what `registration_to_proto` made of it, which saves most of the work."""
    info = Info(
        state=cast("common_pb2.PlacementGroupState", int(group.state)),
        version=group.version,
        pending_reason=group.pending_reason,
        is_infeasible=group.is_infeasible,
        num_attempts=group.num_attempts,
        start_time_s=group.start_time_s,
        created_time_s=group.created_time_s,
        end_time_s=group.end_time_s,
        removed_because=group.removed_because,
    )
    info.MergeFrom(registration or registration_to_proto(group.registration))
    for message, place in zip(info.bundles, group.places, strict=True):
        if place is not None:
            message.node_id = place.binary()
    return info


def registration_to_proto(registration: GroupRegistration) -> Info:
    info = Info(
        placement_group_id=registration.group_id.binary(),
        job_id=registration.job_id.binary(),
        name=registration.name,
        namespace=registration.namespace,
        strategy=registration.strategy.value,
        is_detached=registration.is_detached,
        creator_actor_id=registration.creator_actor_id.binary() if registration.creator_actor_id else b"",
        outlives_job=registration.outlives_job,
        soft_target_node_id=registration.target_node_id,
        same_label=registration.same_label,
        creator=registration.creator,
        creator_task_id=registration.creator_task_id,
    )
    for bundle in registration.bundles:
        added = info.bundles.add(resources=bundle.resources.to_proto())
        if bundle.selector:
            added.selector.CopyFrom(selector_to_proto(bundle.selector))
    return info


def row_from_proto(info: Info) -> PlacementGroup:
    """As it was stored. Unless all are open, they are opened again, which harms none."""
    places = tuple(NodeID(each.node_id) if each.node_id else None for each in info.bundles)
    state = GroupState(info.state)
    return PlacementGroup(
        registration_of(info),
        state,
        version=info.version,
        start_time_s=info.start_time_s,
        places=places,
        is_open=(state is GroupState.CREATED,) * len(places),
        num_attempts=info.num_attempts,
        pending_reason=info.pending_reason,
        is_infeasible=info.is_infeasible,
        created_time_s=info.created_time_s,
        end_time_s=info.end_time_s,
        removed_because=info.removed_because,
        story=("restored",),
    )

"""What the GCS is told of a new actor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_mono.core_worker.options import ActorOptions
from ray_mono.protobuf import common_pb2, gcs_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_submission.task_manager import PendingTask


def creation_spec(
    core: CoreWorker, descriptor: common_pb2.FunctionDescriptor, options: ActorOptions, actor_id: bytes
) -> common_pb2.TaskSpec:
    """The creation task, but for its arguments."""
    creation = common_pb2.ActorCreationSpec(
        actor_id=actor_id,
        max_restarts=options.max_restarts,
        max_task_retries=options.max_task_retries,
        max_concurrency=options.max_concurrency,
        is_asyncio=options.is_asyncio,
        is_detached=options.is_detached,
        name=options.name,
        namespace=options.namespace or core.namespace,
        serialized_handle=options.handle_metadata,
        max_pending_calls=options.rules.max_pending_calls,
        allow_out_of_order_execution=options.rules.is_unordered,
        concurrency_groups=[
            common_pb2.ConcurrencyGroup(name=name, max_concurrency=limit, method_names=methods)
            for name, limit, methods in options.concurrency_groups
        ],
    )
    return common_pb2.TaskSpec(
        type=common_pb2.ACTOR_CREATION_TASK,
        name=f"{options.class_name}.__init__",
        function=descriptor,
        job_id=core.job_id,
        caller=core.address,
        num_returns=1,
        resources=options.resources.to_proto(),
        placement_resources=options.placement_resources.to_proto(),
        strategy=options.strategy,
        runtime_env=options.runtime_env,
        hides_events=options.hides_events,
        outlives_job=core.outlives_job or options.is_detached,
        actor_creation=creation,
    )


def registration(task: PendingTask, options: ActorOptions) -> gcs_pb2.RegisterActorRequest:
    """Its message to the GCS."""
    spec, request = task.template.spec, task.request
    spec.task_id, spec.flat_args, spec.depth = request.task_id, request.flat_args, request.depth
    spec.args.extend(request.args)
    return gcs_pb2.RegisterActorRequest(
        creation_spec=spec, class_name=options.class_name, get_if_exists=options.get_if_exists
    )

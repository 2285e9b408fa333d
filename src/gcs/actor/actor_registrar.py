"""What an owner says when it registers an actor: which one it is, its arguments, or that one of these is an
error. It may say so twice, also to the next head."""

from __future__ import annotations

from collections.abc import Callable

from ray_mono.common.ids import ActorID
from ray_mono.common.world import Clock
from ray_mono.gcs.actor.actor_effects import Effect
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_rows import death_from_proto, registration_of
from ray_mono.gcs.actor.actor_state import ActorRegistration
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.node_manager import NodeManager
from ray_mono.gcs.worker_manager import WorkerManager
from ray_mono.protobuf import gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode


class ActorRegistrar:
    """Of one GCS."""

    def __init__(
        self,
        clock: Clock,
        actors: ActorManager,
        table: ActorTable,
        jobs: JobManager,
        workers: WorkerManager,
        nodes: NodeManager,
        run: Callable[[list[Effect]], None],
        on_new: Callable[[ActorRegistration], None],
    ) -> None:
        """run(effects) carries out what the manager decides. on_new(registration) is told of each actor that
        was not known."""
        self._clock = clock
        self._actors = actors
        self._table = table
        self._jobs = jobs
        self._workers = workers
        self._nodes = nodes
        self._run = run
        self._on_new = on_new

    def register(self, request: gcs_pb2.RegisterActorRequest) -> ActorID:
        """Stores an actor. Starts to place it as soon as its arguments are there.

        Raises ValueError, ActorNameTaken, RpcError FAILED_PRECONDITION.
        """
        spec = request.creation_spec
        registration = registration_of(spec, request.class_name)
        actor_id = registration.actor_id
        awaits_arguments = request.awaits_arguments or request.HasField("failure")
        if self._actors.get(actor_id) is None:
            self._check_owner(registration)
            effects = self._actors.register(registration, self._clock.wall_s(), awaits_arguments)
            self._table.add(registration, spec)
            self._run(effects)
            self._on_new(registration)
        elif not awaits_arguments and (effects := self._actors.arguments_came(actor_id)):
            self._table.arguments_came(actor_id, spec)
            self._run(effects)
        if request.HasField("failure"):
            death = death_from_proto(request.failure)
            self._run(self._actors.argument_failed(actor_id, death, self._clock.wall_s()))
        return actor_id

    def _check_owner(self, registration: ActorRegistration) -> None:
        """Raises RpcError FAILED_PRECONDITION where the owner or its job has ended."""
        job_id, owner = registration.job_id, registration.owner_worker_id
        if self._jobs.is_finished(job_id) and (
            job_id not in self._jobs.outlived() or not registration.outlives_job
        ):
            raise RpcError(StatusCode.FAILED_PRECONDITION, f"job {job_id.hex()} has finished")
        if self._workers.is_dead(owner) or self._nodes.is_dead(registration.owner_node_id):
            raise RpcError(StatusCode.FAILED_PRECONDITION, f"worker {owner.hex()}, the owner, is dead")

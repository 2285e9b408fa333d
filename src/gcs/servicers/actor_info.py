"""ActorInfoGcsService: actors are registered, found, watched and ended."""

from __future__ import annotations

from ray_mono.common.ids import ActorID
from ray_mono.gcs.actor.actor_effects import ActorNameTaken
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_registrar import ActorRegistrar
from ray_mono.gcs.actor.actor_table import ActorTable, unknown_actor
from ray_mono.gcs.adoption import Adoption
from ray_mono.gcs.answers import Answers
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.servicers.parse_id import parse_id
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode


class ActorInfoServicer(gcs_rpc.GcsServiceServicer):
    """What owners and callers of actors ask for."""

    def __init__(
        self,
        cluster: Cluster,
        registrar: ActorRegistrar,
        actors: ActorManager,
        table: ActorTable,
        answers: Answers,
        adoption: Adoption,
        writes: WriteThrough,
    ) -> None:
        self._cluster = cluster
        self._registrar = registrar
        self._actors = actors
        self._table = table
        self._answers = answers
        self._adoption = adoption
        self._writes = writes

    async def RegisterActor(
        self, request: gcs_pb2.RegisterActorRequest, context: CallContext
    ) -> gcs_pb2.RegisterActorReply:
        spec = request.creation_spec
        if spec.type != common_pb2.ACTOR_CREATION_TASK:
            raise RpcError(
                StatusCode.INVALID_ARGUMENT,
                f"creation_spec.type must be ACTOR_CREATION_TASK, got {common_pb2.TaskType.Name(spec.type)}",
            )
        created = True
        await self._adoption.heard()
        try:
            actor_id = self._registrar.register(request)
        except ValueError as error:
            raise RpcError(StatusCode.INVALID_ARGUMENT, f"creation_spec: {error}") from error
        except ActorNameTaken as taken:
            if not request.get_if_exists:
                raise RpcError(StatusCode.ALREADY_EXISTS, str(taken)) from taken
            actor_id, created = taken.existing.actor_id, False
        await self._writes.flushed()
        return gcs_pb2.RegisterActorReply(actor=self._table.shown(actor_id), created=created)

    async def WatchActor(
        self, request: gcs_pb2.WatchActorRequest, context: CallContext
    ) -> common_pb2.ActorInfo:
        actor_id = await self._heard_of(request.actor_id)
        return await self._table.watch(actor_id, request.after_version)

    async def GetNamedActor(
        self, request: gcs_pb2.GetNamedActorRequest, context: CallContext
    ) -> common_pb2.ActorInfo:
        if self._actors.named(request.namespace, request.name) is None:
            await self._adoption.heard()
        await self._writes.flushed()
        actor = self._actors.named(request.namespace, request.name)
        if actor is None:
            raise RpcError(
                StatusCode.NOT_FOUND,
                f"no actor named {request.name!r} is alive in namespace {request.namespace!r}",
            )
        return self._table.shown(actor.actor_id)

    async def ListNamedActors(
        self, request: gcs_pb2.ListNamedActorsRequest, context: CallContext
    ) -> gcs_pb2.ListNamedActorsReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.ListNamedActorsReply(
            actors=[
                gcs_pb2.NamedActor(name=name, namespace=namespace)
                for namespace, name in self._actors.names()
                if request.all_namespaces or namespace == request.namespace
            ]
        )

    async def GetAllActors(
        self, request: common_pb2.Empty, context: CallContext
    ) -> gcs_pb2.GetAllActorsReply:
        await self._adoption.heard()
        await self._writes.flushed()
        return gcs_pb2.GetAllActorsReply(actors=self._table.all_shown())

    async def KillActor(self, request: gcs_pb2.KillActorRequest, context: CallContext) -> common_pb2.Empty:
        actor_id = await self._known_actor(request.actor_id)

        def kill() -> common_pb2.Empty:
            self._cluster.kill_actor(actor_id, request.force, request.no_restart)
            return common_pb2.Empty()

        reply = self._answers.once(request.request_id, kill, common_pb2.Empty)
        await self._writes.flushed()
        return reply

    async def ActorOutOfScope(
        self, request: gcs_pb2.ActorOutOfScopeRequest, context: CallContext
    ) -> common_pb2.Empty:
        self._cluster.actor_out_of_scope(await self._known_actor(request.actor_id))
        await self._writes.flushed()
        return common_pb2.Empty()

    async def _heard_of(self, value: bytes) -> ActorID:
        """The id. If it is not known yet, whoever knows the actor has told by now."""
        actor_id = parse_id(ActorID, "actor_id", value)
        if self._actors.get(actor_id) is None:
            await self._adoption.heard()
        return actor_id

    async def _known_actor(self, value: bytes) -> ActorID:
        actor_id = await self._heard_of(value)
        if self._actors.get(actor_id) is None:
            raise unknown_actor(actor_id)
        return actor_id

"""The rows of actors as others see them: ActorInfo messages, stored, published, and waited for by WatchActor.

The actor manager decides over `actor_state.Actor`. Here its fields are written into a message that also
carries what is only kept: addresses, the pickled handle, the creation task. The task's arguments are kept
apart. They are stored for restarts until the actor is dead, and leave the GCS only for the worker that
creates it.

What is shown is durable: a change is announced to watchers and subscribers after its commit, as it was then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ray_mono.common.ids import ActorID
from ray_mono.gcs.actor.actor_rows import death_to_proto, read_fields, without_arguments, write_fields
from ray_mono.gcs.actor.actor_state import Actor, ActorLife, ActorRegistration
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode


class ActorTable:
    """ActorInfo by actor id."""

    def __init__(self, writes: WriteThrough, publish: Callable[[common_pb2.ActorInfo], None]) -> None:
        """publish(info) runs for every announced change, when it is durable."""
        self._writes = writes
        self._publish = publish
        # As of the latest event, the creation task without its arguments.
        self._current: dict[ActorID, common_pb2.ActorInfo] = {}
        # The same as of the latest announcement.
        self._shown: dict[ActorID, common_pb2.ActorInfo] = {}
        # Whole creation tasks of the actors that are not dead.
        self._specs: dict[ActorID, common_pb2.TaskSpec] = {}
        # Of the workers that create actors: each one's Grant.
        self._grants: dict[ActorID, bytes] = {}
        self._watchers: dict[ActorID, list[asyncio.Future[common_pb2.ActorInfo]]] = {}

    # ---- what the rest of the GCS writes

    def add(self, registration: ActorRegistration, spec: common_pb2.TaskSpec) -> None:
        """Keeps the creation task of a new actor; its first `row_changed` follows."""
        kept = common_pb2.TaskSpec()
        kept.CopyFrom(spec)
        self._specs[registration.actor_id] = kept
        self._current[registration.actor_id] = common_pb2.ActorInfo(
            actor_id=registration.actor_id.binary(),
            job_id=registration.job_id.binary(),
            class_name=registration.class_name,
            name=registration.name,
            namespace=registration.namespace,
            is_detached=registration.is_detached,
            max_restarts=registration.max_restarts,
            owner=spec.caller,
            serialized_handle=spec.actor_creation.serialized_handle,
            creation_spec=without_arguments(spec),
        )

    def arguments_came(self, actor_id: ActorID, spec: common_pb2.TaskSpec) -> None:
        """The whole creation task of one that awaited its arguments; `row_changed` follows."""
        self._specs[actor_id].CopyFrom(spec)

    def adopt(self, registration: ActorRegistration, told: common_pb2.ActorInfo) -> None:
        """As `add`, of an actor that lived under an earlier GCS."""
        self.add(registration, told.creation_spec)
        info = self._current[registration.actor_id]
        info.address.CopyFrom(told.address)
        info.pid, info.host, info.repr_name = told.pid, told.address.host, told.repr_name
        self._grants[registration.actor_id] = told.creation_grant

    def set_place(self, actor_id: ActorID, grant: raylet_pb2.Grant) -> None:
        """Where the next change of this actor says that its worker is."""
        info = self._current[actor_id]
        info.address.CopyFrom(grant.worker)
        info.pid = grant.worker_pid
        info.host = info.address.host
        self._grants[actor_id] = grant.SerializeToString()

    def set_repr_name(self, actor_id: ActorID, repr_name: str) -> None:
        self._current[actor_id].repr_name = repr_name

    def row_changed(self, actor: Actor, announced: bool) -> None:
        """Writes the manager's row, and announces it when that is durable."""
        info = self._current[actor.actor_id]
        write_fields(actor, info)
        if actor.state is ActorLife.DEAD:
            self._specs.pop(actor.actor_id, None)
            # Nobody looks it up any more, and thousands of the dead are kept.
            info.ClearField("serialized_handle")
        stored = common_pb2.ActorInfo()
        stored.CopyFrom(info)
        if actor.actor_id in self._specs:
            stored.creation_spec.CopyFrom(self._specs[actor.actor_id])
        if actor.is_waiting_for_place and actor.worker_id is not None:
            stored.creation_grant = self._grants[actor.actor_id]
        else:
            self._grants.pop(actor.actor_id, None)
        if actor.ending is not None:
            # For the next GCS alone: to others it lives until it is dead.
            stored.death_cause.CopyFrom(death_to_proto(actor.ending))
        if actor.killing is not None:
            stored.kill_cause.CopyFrom(death_to_proto(actor.killing))
        self._writes.put(Table.ACTOR, actor.actor_id.binary(), stored.SerializeToString())
        if announced:
            shown = common_pb2.ActorInfo()
            shown.CopyFrom(info)
            self._writes.after_commit(lambda: self._announce(actor.actor_id, shown))

    def _announce(self, actor_id: ActorID, info: common_pb2.ActorInfo) -> None:
        if actor_id not in self._current:
            return
        self._shown[actor_id] = info
        if info.state == common_pb2.DEAD:
            # Nothing changes any more, and thousands of the dead are kept: one message for both.
            self._current[actor_id] = info
        for watcher in self._watchers.pop(actor_id, []):
            if not watcher.done():
                watcher.set_result(info)
        self._publish(info)

    def forget(self, actor_id: ActorID) -> None:
        """Drops the row of an actor that died long ago."""
        self._writes.delete(Table.ACTOR, actor_id.binary())
        self._current.pop(actor_id, None)
        self._shown.pop(actor_id, None)
        for watcher in self._watchers.pop(actor_id, []):
            if not watcher.done():
                watcher.set_exception(unknown_actor(actor_id))

    def restore(self, rows: Iterable[common_pb2.ActorInfo]) -> list[Actor]:
        """Takes over the rows of an earlier GCS; returns what the manager is to restore."""
        actors = []
        for stored in rows:
            actor = read_fields(stored)
            if actor.state is not ActorLife.DEAD:
                self._specs[actor.actor_id] = common_pb2.TaskSpec()
                self._specs[actor.actor_id].CopyFrom(stored.creation_spec)
                stored.ClearField("death_cause")
                if stored.creation_grant:
                    self._grants[actor.actor_id] = stored.creation_grant
            stored.ClearField("creation_grant")
            stored.ClearField("kill_cause")
            stored.creation_spec.CopyFrom(without_arguments(stored.creation_spec))
            self._current[actor.actor_id] = stored
            self._shown[actor.actor_id] = common_pb2.ActorInfo()
            self._shown[actor.actor_id].CopyFrom(stored)
            actors.append(actor)
        return actors

    # ---- what others read

    def spec(self, actor_id: ActorID) -> common_pb2.TaskSpec:
        """The whole creation task of an actor that is not dead."""
        return self._specs[actor_id]

    def grant(self, actor_id: ActorID) -> raylet_pb2.Grant:
        """Of the worker that creates the actor."""
        return raylet_pb2.Grant.FromString(self._grants[actor_id])

    def address(self, actor_id: ActorID) -> common_pb2.Address:
        """Where the worker of an actor that has one answers."""
        address = common_pb2.Address()
        address.CopyFrom(self._current[actor_id].address)
        return address

    def shown(self, actor_id: ActorID) -> common_pb2.ActorInfo:
        """The latest announced row. Raises RpcError NOT_FOUND."""
        info = self._shown.get(actor_id)
        if info is None:
            raise unknown_actor(actor_id)
        return info

    def all_shown(self) -> list[common_pb2.ActorInfo]:
        return list(self._shown.values())

    async def watch(self, actor_id: ActorID, after_version: int) -> common_pb2.ActorInfo:
        """The row, as soon as its version is above after_version: as long as that takes.

        Raises RpcError NOT_FOUND.
        """
        while True:
            info = self._shown.get(actor_id)
            if info is None and actor_id not in self._current:
                raise unknown_actor(actor_id)
            if info is not None and info.version > after_version:
                return info
            watcher: asyncio.Future[common_pb2.ActorInfo] = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(actor_id, []).append(watcher)
            try:
                await watcher
            finally:
                waiting = self._watchers.get(actor_id, [])
                if watcher in waiting:
                    waiting.remove(watcher)
                    if not waiting:
                        del self._watchers[actor_id]

    def count_watchers(self) -> int:
        return sum(len(watchers) for watchers in self._watchers.values())


def unknown_actor(actor_id: ActorID) -> RpcError:
    return RpcError(
        StatusCode.NOT_FOUND,
        f"actor {actor_id.hex()} is not known: it was never registered, or died long ago",
    )

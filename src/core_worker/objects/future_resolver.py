"""The values of objects, and where they lie: owners tell borrowers.

    borrower ──GetObjectStatus────► owner   The owner answers when the value is there: with the value, with
                                            the nodes that have it, or with "out of scope". The borrower may
                                            name nodes that did not give it (object_recovery.py).
    borrower ──AddObjectLocation──► owner   The borrower's node has a copy now. The owner has to know it to
                                            free it.

As a borrower this part sees to it that an answer gets into the memory store. As an owner it answers from
there. It runs under the core worker's lock, and never blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ray_mono.common.exceptions import OwnerDiedError, ReferenceCountingAssertionError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects.object_recovery import ObjectRecovery
from ray_mono.core_worker.objects.owner_deaths import OwnerDeaths
from ray_mono.core_worker.peers import PeerPool
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.reactor_server import ServerCall
from ray_mono.rpc.surface import RpcError

Status = core_worker_pb2.GetObjectStatusReply


class FutureResolver:
    """Both sides of this conversation, for one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        peers: PeerPool,
        borrowing: Borrowing,
        recovery: ObjectRecovery,
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._peers = peers
        self._borrowing = borrowing
        self._recovery = recovery
        self._owner_deaths = OwnerDeaths(env)
        # Borrowed objects whose owners were asked and have not answered.
        self._asked: set[bytes] = set()

    def location_of(self, ref: ObjectRef[Any]) -> tuple[Sequence[bytes], int | None] | None:
        """See CoreInterface.location_of."""
        with self._env.lock:
            row = self._references.get(ref._id)
            entry = self._memory_store.get(ref._id)
            if entry is None:
                return ([], None) if row is None or row.owner is None else None
            return list(entry.locations or ()), entry.size_bytes or len(entry.data or b"")

    # ---- as a borrower

    def ask_owner(
        self, object_id: bytes, lost_node_ids: Sequence[bytes] = (), gives_up: bool = False
    ) -> None:
        """Sees to it that the value of a borrowed object, or where it lies, will be in the memory store.
        Nothing has to be done for an object of ours.

        lost_node_ids: nodes that the owner named before, and that did not give it. gives_up: as in `lost`."""
        row = self._references.get(object_id)
        if row is None or row.owner is None:
            return
        if self._memory_store.get(object_id) is not None:
            return
        if object_id in self._asked:
            return
        self._asked.add(object_id)
        request = core_worker_pb2.GetObjectStatusRequest(
            object_id=object_id, lost_node_ids=lost_node_ids, gives_up=gives_up
        )
        self._peers.insist(
            common_pb2.Address.FromString(row.owner),
            lambda owner, answered: owner.GetObjectStatus.start(request, answered),
            partial(self._on_status, object_id),
        )

    def lost(
        self, object_id: bytes, node_ids: Sequence[bytes], gives_up: bool = False
    ) -> tuple[bytes, bytes] | None:
        """None of these nodes gave the object, as its owner had said. Its owner finds or makes it again, or
        says that it cannot. gives_up: they were asked often. Then the owner says why it cannot be made, also
        if one of them lives. Returned is that error, as metadata and data, if this process is the owner."""
        row = self._references.get(object_id)
        if row is None:
            return None
        if row.owner is None:
            if gives_up:
                return self._recovery.given_up(object_id, node_ids)
            self._recovery.lost(object_id, node_ids)
            return None
        self._memory_store.forget(object_id)
        self._asked.discard(object_id)
        self.ask_owner(object_id, node_ids, gives_up)
        return None

    def _on_status(self, object_id: bytes, reply: Any, error: RpcError | None) -> None:
        row = self._references.get(object_id)
        if error is not None and row is not None and row.owner is not None:
            # It counts as asked until it is known why nobody answers.
            self._owner_deaths.why(row.owner, partial(self._owner_died, object_id))
            return
        self._asked.discard(object_id)
        if row is None:
            return
        if reply.status == Status.OUT_OF_SCOPE:
            self._put_error(object_id, ReferenceCountingAssertionError(object_id.hex()))
        elif reply.in_plasma:
            self._memory_store.put_in_store(object_id, list(reply.location_node_ids), reply.size_bytes)
        else:
            self._memory_store.put_value(object_id, reply.value)

    def _owner_died(self, object_id: bytes, why: str) -> None:
        self._asked.discard(object_id)
        row = self._references.get(object_id)
        if row is not None:
            owner = common_pb2.Address.FromString(row.owner or b"")
            where = f"worker {owner.worker_id.hex()} on node {owner.node_id.hex()}"
            detail = f"{OwnerDiedError.sentence.removesuffix('.')}: {why}." if why else ""
            self._put_error(object_id, OwnerDiedError(object_id.hex(), where, detail=detail))

    def _put_error(self, object_id: bytes, error: BaseException) -> None:
        serialized = serialization.serialize_error(error)
        self._memory_store.put_inline(object_id, serialized.metadata, serialized.to_bytes())

    def pulled_here(self, object_id: bytes) -> None:
        """This node's store has a copy now. The owner has to know it to free it. Where nobody here references
        the object any more, the copy is freed at once."""
        row = self._references.get(object_id)
        if row is None:
            self._plasma.free(object_id, [self._env.node_id])
            return
        self._memory_store.add_location(object_id, self._env.node_id)
        if row.owner is not None:
            self._peers.stub_of(row.owner).AddObjectLocation.notify(
                core_worker_pb2.ObjectLocationRequest(object_id=object_id, node_id=self._env.node_id)
            )

    # ---- served to borrowers (core_worker.proto)

    def GetObjectStatus(self, request: Any, call: ServerCall) -> None:
        object_id = request.object_id
        if request.gives_up:
            error = self._recovery.given_up(object_id, request.lost_node_ids)
            if error is not None:
                metadata, data = error
                call.reply(Status(value=common_pb2.SerializedObject(metadata=metadata, data=data)))
                return
        elif request.lost_node_ids:
            self._recovery.lost(object_id, request.lost_node_ids)
        if self._memory_store.when_ready(object_id, lambda: self._answer_status(object_id, call)):
            self._answer_status(object_id, call)

    def _answer_status(self, object_id: bytes, call: ServerCall) -> None:
        entry = self._memory_store.get(object_id)
        if entry is None:
            call.reply(Status(status=Status.OUT_OF_SCOPE))
        elif entry.data is None:
            call.reply(Status(in_plasma=True, location_node_ids=entry.locations, size_bytes=entry.size_bytes))
        else:
            self._memory_store.mark_seen(object_id)
            nested = self._borrowing.references_inside(object_id)
            value = common_pb2.SerializedObject(metadata=entry.metadata, data=entry.data, nested=nested)
            call.reply(Status(value=value))

    def AddObjectLocation(self, request: Any, call: ServerCall) -> None:
        if request.object_id not in self._references:
            # The object was freed while the copy was made.
            self._plasma.free(request.object_id, [request.node_id])
        elif not self._memory_store.add_location(request.object_id, request.node_id):
            self._recovery.found(request.object_id, request.node_id)
        call.reply(common_pb2.Empty())

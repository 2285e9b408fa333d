"""The conversation between owners and borrowers of objects: ARCHITECTURE "Ownership and references", rules 1 to 4.

As an owner it answers GetObjectStatus, AddBorrower and location messages, and keeps one WaitForRefRemoved open per
borrower. As a borrower it asks owners for values, registers references that it keeps, and answers WaitForRefRemoved.
Under the core worker's lock; never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ray_mono.common.exceptions import OwnerDiedError, ReferenceCountingAssertionError
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.rpc.reactor_server import ServerCall

Status = core_worker_pb2.GetObjectStatusReply


class Borrowing:
    """Both sides of the protocol for one process."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        # Borrowed values that an owner was asked for.
        self._asked: set[bytes] = set()
        # Registrations that their owner has not acknowledged: what waits for that.
        self._registering: dict[bytes, list[Callable[[], None]]] = {}

    def parse_owner(self, owner: bytes) -> common_pb2.Address:
        return common_pb2.Address.FromString(owner)

    # ---- as a borrower

    def ask_owner(self, object_id: bytes) -> None:
        """Sees to it that a borrowed object's value or whereabouts will be in the memory store. Nothing to do for our own."""
        core = self._core
        row = core.references.get(object_id)
        if row is None or row.owner is None:
            return
        entry = core.memory_store.get(object_id)
        if entry is None:
            # Also while it is asked for: the reference may have come again since.
            core.memory_store.expect(object_id)
        elif entry.ready:
            return
        if row.owner == core.owner_address:
            # Ours, and freed before this reference came back.
            self._put_error(object_id, ReferenceCountingAssertionError(object_id.hex()))
            return
        if object_id in self._asked:
            return
        self._asked.add(object_id)
        request = core_worker_pb2.GetObjectStatusRequest(
            object_id=object_id, requester_worker_id=core.worker_id
        )
        stub = core.stub_for(self.parse_owner(row.owner))
        stub.GetObjectStatus.start(request, lambda reply, error: self._on_status(object_id, reply, error))

    def ask_again(self, object_id: bytes) -> None:
        """The places that the owner named did not have it."""
        self._core.memory_store.expect(object_id)
        self._asked.discard(object_id)
        self.ask_owner(object_id)

    def _on_status(self, object_id: bytes, reply: Any, error: RpcError | None) -> None:
        core = self._core
        self._asked.discard(object_id)
        if object_id not in core.references:
            return
        if error is not None:
            self._put_error(object_id, OwnerDiedError(object_id.hex()))
        elif reply.status == Status.OUT_OF_SCOPE:
            self._put_error(object_id, ReferenceCountingAssertionError(object_id.hex()))
        elif reply.in_plasma:
            core.memory_store.put_in_store(object_id, list(reply.location_node_ids), reply.size_bytes)
        else:
            core.memory_store.put_inline(object_id, reply.value.metadata, reply.value.data)

    def _put_error(self, object_id: bytes, error: BaseException) -> None:
        serialized = serialization.serialize_error(error)
        self._core.memory_store.put_inline(object_id, serialized.metadata, serialized.to_bytes())

    def register(self, object_id: bytes, hold: bytes | None, then: Callable[[], None] | None = None) -> None:
        """Tells the owner that this process keeps a reference (rules 1 and 3).

        hold: the object that it came out of, kept until the owner has acknowledged.
        """
        core = self._core
        row = core.references.get(object_id)
        if row is None or row.registered:
            if then is not None:
                self._once_acknowledged(object_id, then)
            return
        row.registered = True
        assert row.owner is not None
        # Of one that went and came back meanwhile, the earlier registration has its own.
        waiting = self._registering[object_id] = [then] if then is not None else []
        if hold is not None and hold in core.references:
            core.references.add_submitted([hold])
        else:
            hold = None

        def acknowledged(reply: Any, error: RpcError | None) -> None:
            if hold is not None:
                core.references.remove_submitted([hold])
            if self._registering.get(object_id) is waiting:
                del self._registering[object_id]
            for callback in waiting:
                callback()

        request = core_worker_pb2.AddBorrowerRequest(object_id=object_id, borrower=core.address)
        core.stub_for(self.parse_owner(row.owner)).AddBorrower.start(request, acknowledged)

    def _once_acknowledged(self, object_id: bytes, then: Callable[[], None]) -> None:
        waiting = self._registering.get(object_id)
        if waiting is None:
            then()
        else:
            waiting.append(then)

    def settle_arrived(
        self,
        arrived: dict[bytes, bytes],
        kept: list[bytes],
        caller_worker_id: bytes,
        then: Callable[[list[common_pb2.ObjectReference]], None],
    ) -> None:
        """The end of a task (rule 1): what is still held is named in the reply if the caller owns it, else registered first. The reply
        travels on another connection than a registration that is under way already (rule 3), and waits for it.

        kept: as `hand_over` gave it; no reason of its own.
        """
        core = self._core
        named: list[common_pb2.ObjectReference] = []
        waiting = 1

        def one() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                then(named)

        for object_id, owner in arrived.items():
            row = core.references.get(object_id)
            if row is None:
                continue
            if row.registered:
                waiting += 1
                self._once_acknowledged(object_id, one)
                continue
            if not row.local and not row.contained and row.submitted == kept.count(object_id):
                continue
            address = self.parse_owner(owner)
            if address.worker_id == caller_worker_id:
                row.registered = True
                named.append(common_pb2.ObjectReference(object_id=object_id))
            else:
                waiting += 1
                self.register(object_id, None, one)
        one()

    def hand_over(
        self,
        nested: Iterable[bytes],
        return_id: bytes,
        receiver: common_pb2.Address,
        then: Callable[[], None],
    ) -> list[bytes]:
        """Rule 2: has `receiver`, who gets these inside a return, registered with each owner; then().

        Returns those that the receiver itself owns. They are counted as `submitted` here, and the caller ends that once
        the reply is written: if this process's borrow ended before, the receiver would free what it is about to get.
        """
        core = self._core
        kept: list[bytes] = []
        waiting = 1

        def one(reply: Any = None, error: RpcError | None = None) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                then()

        for object_id in nested:
            row = core.references.get(object_id)
            if row is None:
                continue
            if row.owner is None:
                if receiver.worker_id == core.worker_id:
                    self._hold_until_ready(object_id, return_id)
                else:
                    self.watch_borrower(object_id, receiver, return_id)
                continue
            owner = self.parse_owner(row.owner)
            if owner.worker_id != receiver.worker_id:
                waiting += 1
                request = core_worker_pb2.AddBorrowerRequest(
                    object_id=object_id, borrower=receiver, contained_in=return_id
                )
                core.stub_for(owner).AddBorrower.start(request, one)
            else:
                kept.append(object_id)
        core.references.add_submitted(kept)
        one()
        return kept

    def _hold_until_ready(self, object_id: bytes, return_id: bytes) -> None:
        """An actor called itself and returns a reference to an object of its own."""
        references = self._core.references
        references.add_submitted([object_id])
        self._core.streams.expect(return_id)

        def release() -> None:
            references.remove_submitted([object_id])

        if self._core.memory_store.when_ready(return_id, release):
            release()

    def adopt_returned(self, nested: Iterable[common_pb2.ObjectReference]) -> tuple[bytes, ...]:
        """References inside a return of a task of ours: rows for them, registered by the executor."""
        ids = []
        for reference in nested:
            row = self._core.references.get(reference.object_id)
            if row is None:
                if reference.owner.worker_id == self._core.worker_id:
                    continue  # ours, and out of scope already: whoever reads it learns so
                row = self._core.references.borrow(
                    reference.object_id, reference.owner.SerializeToString(deterministic=True)
                )
            if not row.registered:
                row.registered = True
            ids.append(reference.object_id)
        return tuple(ids)

    def references_inside(self, object_id: bytes) -> list[common_pb2.ObjectReference]:
        """What an object of ours has inside, for the wire."""
        row = self._core.references.get(object_id)
        return [self._core.reference_message(inner) for inner in row.nested] if row is not None else []

    # ---- as an owner

    def watch_borrower(self, object_id: bytes, borrower: common_pb2.Address, contained_in: bytes) -> None:
        """Counts `borrower` until its WaitForRefRemoved is answered or its connection ends (rule 4)."""
        core = self._core
        if object_id not in core.references or borrower.worker_id == core.worker_id:
            return
        if not core.references.add_borrower(object_id, borrower.worker_id, contained_in):
            return
        request = core_worker_pb2.WaitForRefRemovedRequest(object_id=object_id, contained_in=contained_in)
        address = common_pb2.Address()
        address.CopyFrom(borrower)

        def ended(reply: Any, error: RpcError | None) -> None:
            later = core.references.remove_borrower(object_id, address.worker_id, error is not None)
            if later is not None:
                again = core_worker_pb2.WaitForRefRemovedRequest(object_id=object_id, contained_in=later)
                core.stub_for(address).WaitForRefRemoved.start(again, ended)

        core.stub_for(address).WaitForRefRemoved.start(request, ended)

    # ---- served (core_worker.proto)

    def GetObjectStatus(self, request: Any, call: ServerCall) -> None:
        object_id = request.object_id
        if self._core.memory_store.when_ready(object_id, lambda: self._answer_status(object_id, call)):
            self._answer_status(object_id, call)

    def _answer_status(self, object_id: bytes, call: ServerCall) -> None:
        entry = self._core.memory_store.get(object_id)
        if entry is None or not entry.ready:
            call.reply(Status(status=Status.OUT_OF_SCOPE))
        elif entry.data is None:
            call.reply(Status(in_plasma=True, location_node_ids=entry.locations, size_bytes=entry.size_bytes))
        else:
            entry.is_seen = True
            value = common_pb2.SerializedObject(
                metadata=entry.metadata, data=entry.data, nested=self.references_inside(object_id)
            )
            call.reply(Status(value=value))

    def AddBorrower(self, request: Any, call: ServerCall) -> None:
        self.watch_borrower(request.object_id, request.borrower, request.contained_in)
        call.reply(common_pb2.Empty())

    def WaitForRefRemoved(self, request: Any, call: ServerCall) -> None:
        object_id = request.object_id

        def look() -> None:
            row = self._core.references.row(object_id)
            if row is None:
                call.reply(common_pb2.Empty())
            elif row.removal_waiters is None:
                row.removal_waiters = [answer]
            else:
                row.removal_waiters.append(answer)

        def answer() -> None:
            call.reply(common_pb2.Empty())

        container = request.contained_in
        if container:
            self._core.streams.expect(container)
        if not container or self._core.memory_store.when_ready(container, look):
            look()

    def AddObjectLocation(self, request: Any, call: ServerCall) -> None:
        entry = self._core.memory_store.get(request.object_id)
        if entry is None:
            # Freed while the copy was made.
            self._core.free_in_stores(request.object_id, [request.node_id])
        elif entry.locations is not None and request.node_id not in entry.locations:
            entry.locations.append(request.node_id)
        call.reply(common_pb2.Empty())

    def RemoveObjectLocation(self, request: Any, call: ServerCall) -> None:
        entry = self._core.memory_store.get(request.object_id)
        if entry is not None and entry.locations is not None and request.node_id in entry.locations:
            entry.locations.remove(request.node_id)
        call.reply(common_pb2.Empty())

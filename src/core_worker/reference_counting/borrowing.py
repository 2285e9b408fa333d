"""What owners and borrowers of references say to each other. Its rules are 1 to 4 of ARCHITECTURE's
"Ownership and references".

An owner answers AddBorrower, and keeps one WaitForRefRemoved open for each borrower of an object. A borrower
registers the references that it keeps, and answers WaitForRefRemoved. The value of an object, and where it
lies, is another conversation (objects/future_resolver.py).

Everything here runs under the core worker's lock, and never blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray_mono.common.exceptions import ReferenceCountingAssertionError
from ray_mono.common.our_bug import known
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.peers import OnAnswer, PeerPool
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.reactor_server import ServerCall
from ray_mono.rpc.surface import RpcError

CALLER = "caller of the actor"
"""In the state of a connection: the worker id of whoever calls the actor of this process on it."""
_NAMED = "named"
_NAMED_MIN = 1000


class _Named:
    """What replies over one connection have named, and what is gone of it is forgotten now and then."""

    def __init__(self) -> None:
        self.object_ids: dict[bytes, None] = {}
        self._look_at = _NAMED_MIN

    def add(self, object_ids: Iterable[bytes], references: ReferenceCounter) -> None:
        self.object_ids.update(dict.fromkeys(object_ids))
        if len(self.object_ids) >= self._look_at:
            self.object_ids = {each: None for each in self.object_ids if each in references}
            self._look_at = max(_NAMED_MIN, 2 * len(self.object_ids))


class Borrowing:
    """Both sides of the protocol for one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        peers: PeerPool,
        expect_item: Callable[[bytes], None],
    ) -> None:
        """expect_item(object id): called before somebody waits in the memory store for this object, which may
        be an item of a generator that is still on its way."""
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._peers = peers
        self._expect_item = expect_item
        # What waits for each registration that its owner has not acknowledged yet.
        self._registering: dict[bytes, list[Callable[[], None]]] = {}
        # By caller: how many references that came on a connection of its own which ended are named again, and
        # not acknowledged yet; and what waits for that.
        self._naming_again: Counter[bytes] = Counter()
        self._when_named_again: dict[bytes, list[Callable[[], None]]] = {}

    # ---- references for the wire

    def owner_of(self, object_id: bytes) -> bytes:
        """The serialized Address of the object's owner."""
        row = self._references.get(object_id)
        return self._env.owner_address if row is None or row.owner is None else row.owner

    def message_of(self, object_id: bytes) -> common_pb2.ObjectReference:
        """The reference with its owner, as a message."""
        row = self._references.get(object_id)
        if row is None or row.owner is None:
            return common_pb2.ObjectReference(object_id=object_id, owner=self._env.address)
        return common_pb2.ObjectReference(object_id=object_id, owner=common_pb2.Address.FromString(row.owner))

    def references_inside(self, object_id: bytes) -> list[common_pb2.ObjectReference]:
        """The references inside an object of ours."""
        row = self._references.get(object_id)
        return [self.message_of(inner) for inner in row.nested or ()] if row is not None else []

    # ---- as a borrower

    def arrived(self, object_id: bytes, owner: bytes) -> Reference:
        """The row of a reference that arrived from elsewhere; a new one if it has none. The caller then adds
        its reason to live.

        One of ours that went out of scope before it came back is a borrowed one of ourselves. An error is its
        value, for whoever asks.
        """
        row = self._references.row(object_id)
        if row is None:
            row = self._references.borrow(object_id, owner)
            if owner == self._env.owner_address:
                self._references.mark_registered(object_id)
                error = serialization.serialize_error(ReferenceCountingAssertionError(object_id.hex()))
                self._memory_store.put_inline(object_id, error.metadata, error.to_bytes())
        return row

    def register(self, object_id: bytes, hold: bytes | None, then: Callable[[], None] | None = None) -> None:
        """Tells the owner that this process keeps a reference (rules 1 and 3). Nothing is sent where that was
        done already. Calls then() once the owner has acknowledged, or is gone.

        hold: the object that the reference came out of; it is kept until then.
        """
        row = self._references.get(object_id)
        if row is None or row.registered:
            if then is not None:
                self._once_acknowledged(object_id, then)
            return
        owner = known(row.owner, "the owner of a borrowed reference")
        self._references.mark_registered(object_id)
        # A reference may have gone and come back meanwhile. Its earlier registration has a list of its own.
        waiting = self._registering[object_id] = [then] if then is not None else []
        if hold is not None and hold in self._references:
            self._references.add_submitted([hold])
        else:
            hold = None

        def acknowledged(reply: Any, error: RpcError | None) -> None:
            if hold is not None:
                self._references.remove_submitted([hold])
            if self._registering.get(object_id) is waiting:
                del self._registering[object_id]
            for callback in waiting:
                callback()

        request = core_worker_pb2.AddBorrowerRequest(object_id=object_id, borrower=self._env.address)
        self._add_borrower(common_pb2.Address.FromString(owner), request, acknowledged)

    def _add_borrower(self, owner: common_pb2.Address, request: Any, then: OnAnswer) -> None:
        self._peers.insist(owner, lambda stub, answered: stub.AddBorrower.start(request, answered), then)

    def named(self, references: Sequence[common_pb2.ObjectReference], connection: Any) -> None:
        """A reply names these to their owner. If its connection ends, it may have been lost, and the owner
        may live: then they are registered in the other way."""
        self.told_by_reply([each.object_id for each in references], connection)

    def told_by_reply(self, object_ids: Iterable[bytes], connection: Any) -> None:
        """Their owner knows by this connection that they are here: by a reply that names them, or since it
        waits for the answer of a call that it gave them to. If the connection ends, and the call runs on, it
        may not wait any more."""
        if not object_ids:
            return
        told = connection.state.get(_NAMED)
        is_new = told is None
        if told is None:
            told = connection.state[_NAMED] = _Named()
        told.add(object_ids, self._references)
        if is_new:
            connection.on_close(lambda reason: self._name_again(told, connection.state.get(CALLER, b"")))
        elif connection.is_closed:
            self._name_again(told, connection.state.get(CALLER, b""))

    def _name_again(self, told: _Named, caller: bytes) -> None:
        for object_id in told.object_ids:
            row = self._references.get(object_id)
            if row is not None and row.owner is not None and not self._env.reactor.is_closed:
                request = core_worker_pb2.AddBorrowerRequest(object_id=object_id, borrower=self._env.address)
                owner = common_pb2.Address.FromString(row.owner)
                self._naming_again[caller] += 1
                self._add_borrower(owner, request, lambda reply, error: self._named_again(caller))

    def _named_again(self, caller: bytes) -> None:
        self._naming_again[caller] -= 1
        if not self._naming_again[caller]:
            del self._naming_again[caller]
            for then in self._when_named_again.pop(caller, ()):
                then()

    def when_named_again(self, caller: bytes, then: Callable[[], None]) -> None:
        """Calls then() once the owners of all that came on this caller's connections which ended know who has
        it. Whoever calls again lets go of what it held for calls that it does not wait for any more."""
        if caller in self._naming_again:
            self._when_named_again.setdefault(caller, []).append(then)
        else:
            then()

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
        """The end of a task (rule 1). Calls then(references that the reply has to name).

        A reference that is still held is named in the reply if the caller owns it; otherwise it is registered
        first. A registration that is under way already (rule 3) travels on another connection than the reply,
        so the reply waits for it.

        kept: what `hand_over` returned. These counts end with the reply, so they are no reason to register.
        """
        named: list[common_pb2.ObjectReference] = []
        waiting = 1

        def one() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                then(named)

        for object_id, owner in arrived.items():
            row = self._references.get(object_id)
            if row is None:
                continue
            if row.registered:
                waiting += 1
                self._once_acknowledged(object_id, one)
                continue
            if not row.local and not row.contained and row.submitted == kept.count(object_id):
                continue
            address = common_pb2.Address.FromString(owner)
            if address.worker_id == caller_worker_id:
                self._references.mark_registered(object_id)
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
        """Rule 2: `receiver` gets the references `nested` inside of the object `return_id`. Has it registered
        with each owner, and calls then() after that.

        Returns those that the receiver itself owns. They are counted as `submitted` here, and the caller ends
        that when the reply is written. If this process's borrow ended earlier, the receiver would free what
        it is about to get.
        """
        kept: list[bytes] = []
        waiting = 1

        def one(reply: Any = None, error: RpcError | None = None) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                then()

        for object_id in nested:
            row = self._references.get(object_id)
            if row is None:
                continue
            if row.owner is None:
                if receiver.worker_id == self._env.worker_id:
                    self._hold_until_ready(object_id, return_id)
                else:
                    self.watch_borrower(object_id, receiver, return_id)
                continue
            owner = common_pb2.Address.FromString(row.owner)
            if owner.worker_id != receiver.worker_id:
                waiting += 1
                request = core_worker_pb2.AddBorrowerRequest(
                    object_id=object_id, borrower=receiver, contained_in=return_id
                )
                self._add_borrower(owner, request, one)
            else:
                kept.append(object_id)
        self._references.add_submitted(kept)
        one()
        return kept

    def _hold_until_ready(self, object_id: bytes, return_id: bytes) -> None:
        """An actor called itself and returns a reference to an object of its own. The object is held until
        the return has arrived."""
        self._references.add_submitted([object_id])
        self._expect_item(return_id)

        def release() -> None:
            self._references.remove_submitted([object_id])

        if self._memory_store.when_ready(return_id, release):
            release()

    def adopt_returned(self, nested: Iterable[common_pb2.ObjectReference]) -> list[bytes]:
        """The references inside a return of a task of ours get rows here. The executor has registered them.
        Returns their ids."""
        ids = []
        for reference in nested:
            object_id = reference.object_id
            if object_id not in self._references:
                if reference.owner.worker_id == self._env.worker_id:
                    continue  # it is ours, and out of scope already: whoever reads it is told so
                self._references.borrow(object_id, reference.owner.SerializeToString(deterministic=True))
            self._references.mark_registered(object_id)
            ids.append(object_id)
        return ids

    def _adopt_copy(self, object_id: bytes, owner: common_pb2.Address, container: bytes) -> None:
        """Another process gives us the reference inside of `container`, a return or item of a task of ours.
        If the task runs several times, stores may have copies with other references inside. The copy with
        this one may be read before we have word of it, or without: the word may be lost, and a later attempt
        may find the copy there. So what lies in stores keeps the reference."""
        entry = self._memory_store.get(container)
        if entry is not None and entry.locations is not None:
            reference = common_pb2.ObjectReference(object_id=object_id, owner=owner)
            self._references.add_nested(container, self.adopt_returned([reference]))

    # ---- as an owner

    def watch_borrower(self, object_id: bytes, borrower: common_pb2.Address, contained_in: bytes) -> None:
        """Counts `borrower` until its WaitForRefRemoved is answered or it is gone (rule 4)."""
        if object_id not in self._references or borrower.worker_id == self._env.worker_id:
            return
        if not self._references.add_borrower(object_id, borrower.worker_id, contained_in):
            return
        address = common_pb2.Address()
        address.CopyFrom(borrower)

        def watch(container: bytes) -> None:
            request = core_worker_pb2.WaitForRefRemovedRequest(object_id=object_id, contained_in=container)
            if container:
                request.owner.CopyFrom(self._env.address)
            self._peers.insist(
                address, lambda stub, answered: stub.WaitForRefRemoved.start(request, answered), ended
            )

        def ended(reply: Any, error: RpcError | None) -> None:
            later = self._references.remove_borrower(object_id, address.worker_id, error is not None)
            if later is not None:
                watch(later)

        watch(contained_in)

    # ---- served (core_worker.proto)

    def AddBorrower(self, request: Any, call: ServerCall) -> None:
        self.watch_borrower(request.object_id, request.borrower, request.contained_in)
        call.reply(common_pb2.Empty())

    def WaitForRefRemoved(self, request: Any, call: ServerCall) -> None:
        object_id, container = request.object_id, request.contained_in

        def answer() -> None:
            call.reply(common_pb2.Empty())

        def look() -> None:
            if container:
                self._adopt_copy(object_id, request.owner, container)
            if not self._references.when_removed(object_id, answer):
                answer()

        if container:
            self._expect_item(container)
        if not container or self._memory_store.when_ready(container, look):
            look()

"""Owners and borrowers of references: who is told, who waits for whom, and what keeps an object alive
meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.peers import NODE_DIED
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import (
    ELSEWHERE,
    OWNER,
    Reply,
    Said,
    Scene,
    Served,
    address_of,
    in_store,
    status,
    value,
)

OBJECT = b"o" * 28
OTHER = b"p" * 28
CALLER = address_of(b"caller")
BORROWER = address_of(b"borrower")


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def worker() -> Scene:
    return Scene(is_driver=False)


def registrations(scene: Scene, to: str = "unix:owner") -> list[Said]:
    return scene.wire.all("AddBorrower", to)


def is_known(scene: Scene, object_id: bytes) -> bool:
    """Whether this process has a reference to it: only then is its end waited for."""
    return not ask_for_end(scene, object_id).replies


def ask_for_end(scene: Scene, object_id: bytes, contained_in: bytes = b"") -> Served:
    request = core_worker_pb2.WaitForRefRemovedRequest(
        object_id=object_id, contained_in=contained_in, owner=OWNER
    )
    return scene.ask("WaitForRefRemoved", request)


def lend(scene: Scene, ref: ObjectRef[Any], to: common_pb2.Address = BORROWER, inside: bytes = b"") -> None:
    """A borrower says that it has it."""
    request = core_worker_pb2.AddBorrowerRequest(object_id=ref.binary(), borrower=to, contained_in=inside)
    assert scene.ask("AddBorrower", request).replies == [common_pb2.Empty()]


# ---- a borrower registers


def test_a_reference_that_arrives_is_registered_with_its_owner_once(scene: Scene) -> None:
    refs = [scene.borrow(OBJECT), scene.borrow(OBJECT)]
    (told,) = registrations(scene)
    assert (told.request.object_id, told.request.borrower) == (OBJECT, scene.address)
    assert scene.core.reference_counts() == 1
    refs.pop()
    assert scene.core.reference_counts() == 1
    refs.pop()
    assert scene.core.reference_counts() == 0


def test_one_that_comes_again_after_it_went_is_registered_again(scene: Scene) -> None:
    scene.borrow(OBJECT)
    scene.turn()
    ref = scene.borrow(OBJECT)
    assert len(registrations(scene)) == 2
    del ref


def test_one_of_our_own_is_nobodys_to_register(scene: Scene) -> None:
    ref = scene.core.put(1)
    again = scene.borrow(ref.binary(), scene.address)
    assert again == ref and not scene.wire.all("AddBorrower")
    del ref
    assert scene.core.get([again], None) == [1]


def holder_of(scene: Scene, inner: ObjectRef[Any]) -> ObjectRef[Any]:
    """A borrowed object whose value has `inner` of OWNER inside."""
    outer = scene.borrow(OTHER, address_of(b"another"))
    scene.core.wait([outer], 1, 0, False)
    scene.owner_answers(outer, status([inner]))
    return outer


def test_what_a_value_brought_is_registered_while_the_value_is_held(scene: Scene) -> None:
    donor = Scene()
    outer = holder_of(scene, donor.borrow(OBJECT))
    with scene.as_this_process():
        (inner,) = scene.core.get([outer], None)[0]
    (told,) = registrations(scene)
    del outer
    assert scene.core.reference_counts() == 2 and is_known(scene, OTHER)
    told.answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 1 and not is_known(scene, OTHER)
    del inner


def test_a_registration_that_was_lost_with_its_connection_is_made_again(scene: Scene) -> None:
    outer = holder_of(scene, Scene().borrow(OBJECT))
    with scene.as_this_process():
        (inner,) = scene.core.get([outer], None)[0]
    del outer
    scene.wire.channels["unix:owner"].close()
    scene.wire.last("CheckAlive").answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 2  # the outer one is held until the owner has said so
    registrations(scene)[-1].answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 1
    del inner


def test_a_value_is_let_go_also_where_the_owner_of_what_it_brought_is_gone(scene: Scene) -> None:
    outer = holder_of(scene, Scene().borrow(OBJECT))
    with scene.as_this_process():
        (inner,) = scene.core.get([outer], None)[0]
    del outer
    scene.wire.end("unix:owner")
    assert scene.core.reference_counts() == 1
    del inner


def test_the_owner_of_what_is_pickled_travels_with_it(scene: Scene) -> None:
    mine, theirs = scene.core.put(1), scene.borrow(OBJECT)
    assert scene.core.owner_address_of(mine) == scene.address.SerializeToString(deterministic=True)
    assert scene.core.owner_address_of(theirs) == OWNER.SerializeToString(deterministic=True)
    scene.core.shutdown()
    with pytest.raises(RaySystemError, match="session that is over"):
        scene.core.owner_address_of(mine)


# ---- a borrower is asked when it lets go


def test_who_asks_for_the_end_of_a_reference_hears_of_it_then(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    first, second = ask_for_end(scene, OBJECT), ask_for_end(scene, OBJECT)
    assert first.replies == second.replies == []
    del ref
    scene.turn()
    assert first.replies == second.replies == [common_pb2.Empty()]


def test_who_asks_for_what_is_not_here_hears_at_once(scene: Scene) -> None:
    assert ask_for_end(scene, OBJECT).replies == [common_pb2.Empty()]


def test_a_return_on_its_way_is_waited_for(scene: Scene) -> None:
    """The owner was told of it before the return came here, which has the reference inside."""
    call = scene.submit()
    asked = ask_for_end(scene, OBJECT, call.binary())
    assert asked.replies == []
    nested = common_pb2.ObjectReference(object_id=OBJECT, owner=OWNER)
    returned = core_worker_pb2.ReturnObject(object_id=call.binary(), value=status(1).value)
    returned.value.nested.append(nested)
    scene.finish(call, Reply(returns=[returned]))
    assert asked.replies == [] and scene.core.reference_counts() == 2
    # It was registered by the executor.
    assert not registrations(scene)
    del call
    scene.turn()
    assert asked.replies == [common_pb2.Empty()]


def returned_in_store(call: ObjectRef[Any], *inside: bytes) -> core_worker_pb2.PushTaskReply:
    nested = [common_pb2.ObjectReference(object_id=each, owner=OWNER) for each in inside]
    reply = in_store(call.binary(), ELSEWHERE)
    reply.returns[0].nested.extend(nested)
    return reply


def test_what_a_lost_attempt_left_inside_a_return_in_a_store_lives_with_the_return(scene: Scene) -> None:
    """Its answer did not come here. The next attempt found the return in the store, as the first had left it,
    and names what it had inside itself."""
    call = scene.submit()
    of_the_lost = ask_for_end(scene, OBJECT, call.binary())
    of_the_next = ask_for_end(scene, OTHER, call.binary())
    scene.finish(call, returned_in_store(call, OTHER))
    assert of_the_lost.replies == of_the_next.replies == [] and scene.core.reference_counts() == 3
    # Who reads the return need not register what it finds there.
    refs = [scene.borrow(OBJECT), scene.borrow(OTHER)]
    assert not registrations(scene)
    refs.clear()
    del call
    scene.turn()
    assert of_the_lost.replies == of_the_next.replies == [common_pb2.Empty()]


def test_what_a_lost_attempt_would_have_returned_is_let_go_where_the_next_answers_inline(
    scene: Scene,
) -> None:
    call = scene.submit()
    asked = ask_for_end(scene, OBJECT, call.binary())
    scene.finish(call, value(1))
    assert asked.replies == [common_pb2.Empty()] and scene.core.reference_counts() == 1
    del call


def test_a_return_that_nobody_waits_for_any_more_has_no_reference(scene: Scene) -> None:
    call = scene.submit()
    asked = ask_for_end(scene, OBJECT, call.binary())
    del call
    scene.turn()
    assert asked.replies == [common_pb2.Empty()]


def test_our_own_reference_inside_a_return_is_not_made_anew(scene: Scene) -> None:
    call, mine = scene.submit(), scene.core.put(1)
    gone = b"g" * 28
    returned = core_worker_pb2.ReturnObject(object_id=call.binary(), value=status(1).value)
    for object_id in (mine.binary(), gone):
        returned.value.nested.add(object_id=object_id, owner=scene.address)
    scene.finish(call, Reply(returns=[returned]))
    assert scene.core.reference_counts() == 2 and not is_known(scene, gone)
    del mine
    assert scene.core.reference_counts() == 2
    del call
    assert scene.core.reference_counts() == 0


# ---- an owner watches


def test_an_owner_keeps_what_is_borrowed_until_its_borrower_lets_go(scene: Scene) -> None:
    ref = scene.core.put(1)
    assert not scene.core.is_needed(by_holders=True)
    lend(scene, ref)
    assert scene.core.is_needed(by_holders=True) and not scene.core.is_needed(by_holders=False)
    watch = scene.wire.last("WaitForRefRemoved", "unix:borrower")
    assert (watch.request.object_id, watch.request.contained_in) == (ref.binary(), b"")
    del ref
    assert scene.core.reference_counts() == 1
    watch.answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 0 and not scene.core.is_needed(by_holders=True)


def test_a_borrower_that_is_gone_borrows_nothing(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref)
    lend(scene, ref)
    del ref
    scene.wire.end(scene.wire.last("WaitForRefRemoved").to)
    assert scene.core.reference_counts() == 0


def test_a_borrower_whose_connection_ended_and_who_lives_borrows_still(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref)
    del ref
    scene.wire.channels[scene.wire.last("WaitForRefRemoved").to].close()
    (probe,) = scene.wire.open("CheckAlive")
    assert scene.core.reference_counts() == 1
    probe.answer(common_pb2.Empty())
    (watch,) = scene.wire.open("WaitForRefRemoved")
    assert scene.core.reference_counts() == 1
    watch.answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 0


def test_a_borrower_whose_node_is_dead_is_not_asked_whether_it_lives(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref)
    del ref
    scene.wire.last("WaitForRefRemoved").fail(RpcError(StatusCode.UNAVAILABLE, NODE_DIED))
    assert scene.core.reference_counts() == 0 and not scene.wire.all("CheckAlive")


def test_each_borrower_counts(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref)
    lend(scene, ref, CALLER)
    del ref
    scene.wire.last("WaitForRefRemoved", "unix:borrower").answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 1
    scene.wire.last("WaitForRefRemoved", "unix:caller").answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 0


def test_a_borrower_that_got_it_again_meanwhile_is_asked_again(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref)
    lend(scene, ref, inside=b"return")
    assert len(scene.wire.all("WaitForRefRemoved")) == 1
    del ref
    scene.wire.last("WaitForRefRemoved").answer(common_pb2.Empty())
    again = scene.wire.last("WaitForRefRemoved")
    assert again.request.contained_in == b"return" and scene.core.reference_counts() == 1
    again.answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 0 and len(scene.wire.all("WaitForRefRemoved")) == 2


def test_what_is_gone_and_what_we_borrow_of_ourselves_is_not_watched(scene: Scene) -> None:
    ref = scene.core.put(1)
    lend(scene, ref, scene.address)
    del ref
    scene.turn()
    scene.ask("AddBorrower", core_worker_pb2.AddBorrowerRequest(object_id=OBJECT, borrower=BORROWER))
    assert not scene.wire.all("WaitForRefRemoved") and scene.core.reference_counts() == 0


def test_what_a_task_still_holds_at_its_end_is_watched(scene: Scene) -> None:
    ref = scene.core.put(1)
    call = scene.submit([ref])
    reply = value("done")
    reply.borrowed.add(object_id=ref.binary())
    scene.finish(call, reply)
    del ref
    assert scene.core.reference_counts() == 2
    scene.wire.last("WaitForRefRemoved", "unix:worker 0").answer(common_pb2.Empty())
    assert scene.core.reference_counts() == 1


# ---- the end of a task that runs here


class Task:
    """References come in with the arguments of a task on this worker."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.arrived: dict[bytes, bytes] = {}
        self.named: list[list[bytes]] = []

    def arrive(self, object_id: bytes, owner: common_pb2.Address = CALLER) -> ObjectRef[Any]:
        self.scene.parts.unpickled.collect_into(lambda: self.arrived)
        try:
            return self.scene.borrow(object_id, owner)
        finally:
            self.scene.parts.unpickled.collect_into(None)

    def settle(self, kept: list[bytes] | None = None) -> None:
        """The task ends, which CALLER asked for."""
        self.scene.turn()
        with self.scene.env.lock:
            self.scene.parts.borrowing.settle_arrived(
                self.arrived,
                kept or [],
                CALLER.worker_id,
                lambda named: self.named.append([each.object_id for each in named]),
            )


def test_what_came_with_a_task_is_not_registered_before_its_end(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT)
    assert task.arrived == {OBJECT: CALLER.SerializeToString(deterministic=True)}
    assert not worker.wire.all("AddBorrower")
    del ref
    task.settle()
    assert task.named == [[]] and not worker.wire.all("AddBorrower")


def test_what_is_still_held_and_is_the_callers_is_named_in_the_answer(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT)
    task.settle()
    assert task.named == [[OBJECT]] and not worker.wire.all("AddBorrower")
    # The caller counts this process from now on.
    again = worker.borrow(OBJECT, CALLER)
    assert not worker.wire.all("AddBorrower")
    del ref, again


def test_what_is_still_held_and_is_anothers_is_registered_first(worker: Scene) -> None:
    task = Task(worker)
    refs = [task.arrive(OBJECT, OWNER), task.arrive(OTHER)]
    task.settle()
    assert task.named == []
    registrations(worker)[0].answer(common_pb2.Empty())
    assert task.named == [[OTHER]]
    refs.clear()


def test_a_registration_that_is_under_way_is_waited_for(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT, OWNER)
    early = worker.borrow(OBJECT)
    task.settle()
    assert task.named == [] and len(registrations(worker)) == 1
    registrations(worker)[0].answer(common_pb2.Empty())
    assert task.named == [[]]
    # And one that is over is not.
    later = Task(worker)
    later.arrived = dict(task.arrived)
    later.settle()
    assert later.named == [[]]
    del ref, early


def test_what_only_the_answer_itself_holds_is_not_borrowed(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT)
    with worker.env.lock:
        kept = worker.parts.borrowing.hand_over([OBJECT], b"r" * 28, CALLER, lambda: None)
    assert kept == [OBJECT]
    del ref
    task.settle(kept)
    assert task.named == [[]]
    assert worker.core.reference_counts() == 1
    with worker.env.lock:
        worker.parts.references.remove_submitted(kept)
    assert worker.core.reference_counts() == 0


def test_what_the_answer_and_another_task_hold_is_borrowed(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT)
    call = worker.submit(ref)
    with worker.env.lock:
        kept = worker.parts.borrowing.hand_over([OBJECT], b"r" * 28, CALLER, lambda: None)
    del ref
    task.settle(kept)
    assert task.named == [[OBJECT]]
    del call


def test_what_is_inside_an_object_here_is_borrowed(worker: Scene) -> None:
    task = Task(worker)
    ref = task.arrive(OBJECT)
    outer = worker.core.put([ref])
    del ref
    task.settle()
    assert task.named == [[OBJECT]]
    del outer


# ---- a return that has references inside


class HandOver:
    """This worker answers CALLER, with these inside."""

    def __init__(self, worker: Scene, *refs: ObjectRef[Any], receiver: Any = CALLER) -> None:
        self.done = 0
        with worker.env.lock:
            self.kept = worker.parts.borrowing.hand_over(
                [ref.binary() for ref in refs], b"r" * 28, receiver, self.over
            )

    def over(self) -> None:
        self.done += 1


def test_our_own_inside_a_return_is_kept_for_the_caller(worker: Scene) -> None:
    ref = worker.core.put(1)
    answer = HandOver(worker, ref)
    assert answer.done == 1 and answer.kept == []
    watch = worker.wire.last("WaitForRefRemoved", "unix:caller")
    assert (watch.request.object_id, watch.request.contained_in) == (ref.binary(), b"r" * 28)
    assert watch.request.owner == worker.address
    del ref
    assert worker.core.reference_counts() == 1
    watch.answer(common_pb2.Empty())
    assert worker.core.reference_counts() == 0


def test_anothers_inside_a_return_is_registered_for_the_caller_before_it_goes(worker: Scene) -> None:
    refs = [worker.borrow(OBJECT), worker.borrow(OTHER, address_of(b"far", ELSEWHERE))]
    answer = HandOver(worker, *refs)
    said = [worker.wire.last("AddBorrower", to) for to in ("unix:owner", "far:1")]
    for each in said:
        assert (each.request.borrower, each.request.contained_in) == (CALLER, b"r" * 28)
    said[0].answer(common_pb2.Empty())
    assert answer.done == 0
    worker.wire.end("far:1")
    assert answer.done == 1 and answer.kept == []


def test_a_return_with_nothing_inside_goes_at_once(worker: Scene) -> None:
    answer = HandOver(worker)
    assert (answer.done, answer.kept) == (1, [])


def test_what_went_before_the_answer_is_left_out(worker: Scene) -> None:
    ref = worker.borrow(OBJECT)
    before = len(worker.wire.said)
    stranger = Scene().borrow(OTHER)
    answer = HandOver(worker, stranger)
    assert answer.done == 1 and len(worker.wire.said) == before
    del ref


def test_our_own_that_we_return_to_ourselves_lives_until_the_return_is_read(worker: Scene) -> None:
    """An actor calls itself."""
    call, inner = worker.submit(), worker.core.put(1)
    with worker.env.lock:
        worker.parts.borrowing.hand_over([inner.binary()], call.binary(), worker.address, lambda: None)
    del inner
    assert worker.core.reference_counts() == 2
    worker.finish(call, value(1))
    assert worker.core.reference_counts() == 1
    assert not worker.wire.all("WaitForRefRemoved")
    # A return that is here already holds nothing up.
    late = worker.core.put(2)
    with worker.env.lock:
        worker.parts.borrowing.hand_over([late.binary()], call.binary(), worker.address, lambda: None)
    del late
    assert worker.core.reference_counts() == 1

"""What objects are worth and where they lie, between owner and borrower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    OwnerDiedError,
    RayTaskError,
    ReferenceCountingAssertionError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, object_manager_pb2
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    OWNER,
    Scene,
    Served,
    failure,
    in_store,
    status,
    status_in_stores,
    value,
)

OBJECT = b"o" * 28
OTHER_NODE = b"x" * 28
Status = core_worker_pb2.GetObjectStatusReply


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(store_file=tmp_path / "store")


def look(scene: Scene, ref: ObjectRef[Any]) -> bool:
    """As who asks again and again whether it is there."""
    return bool(scene.core.wait([ref], 1, 0, False)[0])


def freed(scene: Scene) -> list[tuple[bytes, list[bytes]]]:
    scene.turn()
    return [
        (each.object_id, list(each.location_node_ids))
        for said in scene.wire.all("Free")
        for each in said.request.objects
    ]


def location(scene: Scene, ref: ObjectRef[Any]) -> tuple[list[bytes], int | None]:
    known = scene.core.location_of(ref)
    assert known is not None
    return list(known[0]), known[1]


# ---- as a borrower


def test_an_owner_is_asked_once_however_often_it_is_looked_at(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    assert not look(scene, ref) and not look(scene, ref)
    (asked,) = scene.wire.all("GetObjectStatus", "unix:owner")
    assert asked.request.object_id == OBJECT
    scene.owner_answers(ref, status("value"))
    assert look(scene, ref) and scene.core.get([ref], None) == ["value"]
    assert len(scene.wire.all("GetObjectStatus")) == 1


def test_what_its_owner_has_freed_is_told_as_that(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.owner_answers(ref, Status(status=Status.OUT_OF_SCOPE))
    with pytest.raises(ReferenceCountingAssertionError):
        scene.core.get([ref], None)


def test_an_owner_whose_connection_ended_and_who_lives_is_asked_again(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.wire.channels["unix:owner"].close()
    for probe in scene.wire.open("CheckAlive", "unix:owner"):
        probe.answer(common_pb2.Empty())
    scene.owner_answers(ref, status("value"))
    assert scene.core.get([ref], None) == ["value"]


def test_an_owner_that_is_gone_when_it_is_asked_whether_it_lives_is_told_as_that(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.wire.channels["unix:owner"].close()
    scene.wire.end("unix:owner")
    with pytest.raises(OwnerDiedError):
        scene.core.get([ref], None)


def test_what_an_owner_that_is_gone_had_is_told_as_that(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.wire.end("unix:owner")
    with pytest.raises(OwnerDiedError):
        scene.core.get([ref], None)


def test_it_says_who_owned_it_and_why_and_many_objects_of_one_owner_ask_once(scene: Scene) -> None:
    cause = common_pb2.DeathCause(message="worker pid 7 was killed")
    scene.worker_death = gcs_pb2.GetWorkerDeathReply(is_known=True, cause=cause)
    for number in range(3):
        ref = scene.borrow(b"%d" % number + OBJECT[1:])
        look(scene, ref)
        scene.wire.end("unix:owner")
        with pytest.raises(OwnerDiedError, match="owned it has ended: worker pid 7 was killed") as caught:
            scene.core.get([ref], None)
        owner = f"worker {OWNER.worker_id.hex()} on node {OWNER.node_id.hex()}"
        assert f"{ref.hex()} of {owner} cannot be had" in str(caught.value)
    assert len(scene.wire.all("GetWorkerDeath")) == 1


@pytest.mark.parametrize("becomes_known", [True, False])
def test_a_reason_that_is_not_known_yet_is_waited_for_but_not_long(scene: Scene, becomes_known: bool) -> None:
    config, ref = scene.env.config, scene.borrow(OBJECT)
    scene.worker_death = gcs_pb2.GetWorkerDeathReply()
    look(scene, ref)
    scene.wire.end("unix:owner")
    scene.turn()
    assert isinstance(scene.state_of(ref), GetTimeoutError)
    if becomes_known:
        cause = common_pb2.DeathCause(message="it was killed")
        scene.worker_death = gcs_pb2.GetWorkerDeathReply(is_known=True, cause=cause)
        scene.pass_time(config.owner_death_look_s)
    else:
        scene.pass_time(config.owner_death_s)
    error = scene.state_of(ref)
    assert isinstance(error, OwnerDiedError) and ("it was killed" in str(error)) is becomes_known
    scene.pass_time(config.owner_death_s)


def test_an_answer_for_what_nobody_wants_any_more_is_dropped(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    asked = scene.wire.last("GetObjectStatus")
    del ref
    scene.turn()
    asked.answer(status("value"))
    assert scene.core.describe()["values"] == 0


def test_a_reference_that_went_and_came_back_meanwhile_gets_the_answer(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    del ref
    scene.turn()
    ref = scene.borrow(OBJECT)
    assert not look(scene, ref)
    assert len(scene.wire.all("GetObjectStatus")) == 1
    scene.owner_answers(ref, status("value"))
    assert scene.core.get([ref], None) == ["value"]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_reference_that_comes_back_after_the_answer_is_asked_for_anew(
    scene: Scene, is_wanted: bool
) -> None:
    ref: ObjectRef[Any] | None = scene.borrow(OBJECT)
    look(scene, scene.borrow(OBJECT))
    if not is_wanted:
        ref = None
    scene.turn()
    (asked,) = scene.wire.open("GetObjectStatus")
    with scene.env.lock:
        asked.answer(status("first"))
    ref = None
    scene.turn()
    assert ref is None and scene.core.reference_counts() == 0
    again = scene.borrow(OBJECT)
    assert not look(scene, again)
    scene.owner_answers(again, status("second"))
    assert scene.core.get([again], None) == ["second"]


def test_one_of_our_own_that_was_freed_before_it_came_back_says_so(scene: Scene) -> None:
    ref = scene.borrow(OBJECT, scene.address)
    with pytest.raises(ReferenceCountingAssertionError):
        scene.core.get([ref], None)
    assert not scene.wire.all("GetObjectStatus") and not scene.wire.all("AddBorrower")


def test_who_asks_for_one_of_our_own_that_was_freed_before_it_came_back_hears_so(scene: Scene) -> None:
    """A connection to a borrower broke, say, so it counted as dead. Then it gives the reference back."""
    ref = scene.borrow(OBJECT, scene.address)
    status_asked, removal_asked = Served(), Served()
    scene.servicer.GetObjectStatus(
        core_worker_pb2.GetObjectStatusRequest(object_id=ref.binary()), status_asked
    )
    assert status_asked.answer.value.metadata == serialization.ERROR
    # Another owner believes that a reference of its own comes inside this one.
    scene.servicer.WaitForRefRemoved(
        core_worker_pb2.WaitForRefRemovedRequest(object_id=b"i" * 28, contained_in=ref.binary()),
        removal_asked,
    )
    assert removal_asked.replies


def test_nobody_is_asked_for_what_this_process_owns(scene: Scene) -> None:
    look(scene, scene.submit())
    assert not scene.wire.all("GetObjectStatus")


def test_where_it_lies_is_known_once_the_owner_has_said_so(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    assert scene.core.location_of(ref) is None
    scene.owner_answers(ref, status_in_stores(ELSEWHERE, OTHER_NODE))
    assert location(scene, ref) == ([ELSEWHERE, OTHER_NODE], 10**6)


# ---- a copy that came to this node's store


def pull(scene: Scene, ref: ObjectRef[Any]) -> Any:
    """Somebody waits for it here. Returns the question to the store."""
    scene.core.wait([ref], 1, 0, True)
    return scene.wire.last("Get")


def came(ref: bytes, **fields: Any) -> object_manager_pb2.GetReply:
    return object_manager_pb2.GetReply(
        objects=[object_manager_pb2.ObjectFound(object_id=ref, pulled=True, **fields)]
    )


def test_a_copy_that_came_when_nobody_wants_it_any_more_leaves_the_store(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.owner_answers(ref, status_in_stores(ELSEWHERE))
    asked = pull(scene, ref)
    del ref
    scene.turn()
    asked.answer(came(OBJECT))
    assert freed(scene) == [(OBJECT, [NODE_ID])]
    assert not scene.wire.all("AddObjectLocation")


def test_the_owner_of_what_came_hears_where_it_is(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    look(scene, ref)
    scene.owner_answers(ref, status_in_stores(ELSEWHERE))
    pull(scene, ref).answer(came(OBJECT))
    assert location(scene, ref)[0] == [ELSEWHERE, NODE_ID] and freed(scene) == []
    (told,) = scene.wire.all("AddObjectLocation", "unix:owner")
    assert (told.request.object_id, told.request.node_id) == (OBJECT, NODE_ID)
    del ref
    # Its owner frees it.
    assert freed(scene) == []


def test_what_this_process_owns_and_what_came_is_freed_in_both_places(scene: Scene) -> None:
    ref = scene.submit()
    object_id = ref.binary()
    scene.finish(ref, in_store(object_id, ELSEWHERE))
    pull(scene, ref).answer(came(object_id))
    assert not scene.wire.all("AddObjectLocation")
    del ref
    assert freed(scene) == [(object_id, [ELSEWHERE, NODE_ID])]


# ---- as an owner


def ask(scene: Scene, object_id: bytes) -> Any:
    return scene.ask("GetObjectStatus", core_worker_pb2.GetObjectStatusRequest(object_id=object_id))


def test_who_asks_an_owner_hears_the_value(scene: Scene) -> None:
    ref = scene.core.put("value")
    answer = ask(scene, ref.binary()).answer
    assert answer == status("value")


def test_who_asks_for_what_is_not_there_yet_hears_of_it_when_it_is(scene: Scene) -> None:
    ref = scene.submit()
    asked = ask(scene, ref.binary())
    assert asked.replies == []
    scene.finish(ref, value(1))
    assert asked.answer == status(1)


def test_who_asks_for_what_goes_before_it_is_there_hears_that(scene: Scene) -> None:
    ref = scene.submit()
    asked = ask(scene, ref.binary())
    del ref
    scene.turn()
    assert asked.answer.status == Status.OUT_OF_SCOPE
    assert ask(scene, OBJECT).answer.status == Status.OUT_OF_SCOPE


def test_who_asks_for_what_is_large_hears_where_it_is(scene: Scene) -> None:
    ref = scene.submit()
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    answer = ask(scene, ref.binary()).answer
    assert answer.in_plasma and list(answer.location_node_ids) == [ELSEWHERE] and answer.size_bytes == 10**6


def test_an_answer_names_the_owners_of_what_is_inside(scene: Scene) -> None:
    mine, theirs = scene.core.put(1), scene.borrow(OBJECT)
    ref = scene.core.put([mine, theirs])
    nested = ask(scene, ref.binary()).answer.value.nested
    assert [(each.object_id, each.owner) for each in nested] == [
        (mine.binary(), scene.address),
        (OBJECT, OWNER),
    ]


def test_an_error_that_somebody_elsewhere_was_told_is_not_printed(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    for is_told in (True, False):
        ref = scene.submit()
        scene.finish(ref, failure(RayTaskError(f"told {is_told}", "text", KeyError("k")), ref.binary()))
        if is_told:
            ask(scene, ref.binary())
        del ref
    scene.core.shutdown()
    printed = capfd.readouterr().err
    assert "told False" in printed and "told True" not in printed


def where(object_id: bytes, node_id: bytes = OTHER_NODE) -> core_worker_pb2.ObjectLocationRequest:
    return core_worker_pb2.ObjectLocationRequest(object_id=object_id, node_id=node_id)


def test_copies_that_others_made_are_named_and_freed_with_the_first(scene: Scene) -> None:
    ref = scene.submit()
    object_id = ref.binary()
    scene.finish(ref, in_store(object_id, ELSEWHERE))
    for _ in range(2):
        assert scene.ask("AddObjectLocation", where(object_id)).replies
    assert location(scene, ref)[0] == [ELSEWHERE, OTHER_NODE]
    del ref
    assert freed(scene) == [(object_id, [ELSEWHERE, OTHER_NODE])]


def test_a_copy_of_what_was_freed_meanwhile_is_freed_too(scene: Scene) -> None:
    assert scene.ask("AddObjectLocation", where(OBJECT)).replies
    assert freed(scene) == [(OBJECT, [OTHER_NODE])]

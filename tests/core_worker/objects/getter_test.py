"""`get`: which error ends it and when, what it leaves behind, what it asks stores and owners, and when it
says that its task waits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OwnerDiedError,
    RaySystemError,
    RayTaskError,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.objects.lineage import WhyNot
from ray_mono.core_worker.objects.store_reads import NoRoomHere
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, object_manager_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import (
    ELSEWHERE,
    NODE_ID,
    Scene,
    address_of,
    failure,
    status,
    status_in_stores,
    value,
)

LARGE = b"l" * 28
OTHER = b"o" * 28
Found = object_manager_pb2.ObjectFound
GetReply = object_manager_pb2.GetReply


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(store_file=tmp_path / "store")


@pytest.fixture
def worker(tmp_path: Path) -> Scene:
    """A worker's, which tells its raylet when its task waits."""
    return Scene(is_driver=False, store_file=tmp_path / "store")


def fail(scene: Scene, ref: ObjectRef[Any], error: BaseException) -> None:
    scene.finish(ref, failure(error, ref.binary()))


def large(scene: Scene, object_id: bytes = LARGE, *node_ids: bytes) -> ObjectRef[Any]:
    """A borrowed reference to what lies in these nodes' stores, as its owner has said already."""
    ref = scene.borrow(object_id)
    scene.core.wait([ref], 1, 0, False)
    scene.owner_answers(ref, status_in_stores(*(node_ids or (NODE_ID,))))
    return ref


def store_finds(scene: Scene, *found: Any) -> None:
    """The store's answer to the next Get."""
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(GetReply(objects=found)))


def told(scene: Scene) -> list[str]:
    return [each.method for each in scene.wire.said if each.method.startswith("Notify")]


# ---- errors, and what a get leaves behind


def test_an_error_that_comes_ends_the_get_although_others_never_come(scene: Scene) -> None:
    never, fails = scene.submit(), scene.submit()
    scene.meanwhile(lambda: fail(scene, fails, KeyError("no")))
    with pytest.raises(KeyError, match="no"):
        scene.core.get([never, fails], None)
    assert scene.core.describe()["waiters"] == 0


def test_of_several_errors_that_are_there_the_first_in_order_is_raised(scene: Scene) -> None:
    never, a, b = scene.submit(), scene.submit(), scene.submit()
    fail(scene, b, KeyError("b"))
    fail(scene, a, KeyError("a"))
    for order, first in ([never, a, b], "a"), ([b, never, a], "b"):
        with pytest.raises(KeyError, match=first):
            scene.core.get(order, None)
    assert scene.core.describe()["waiters"] == 0


@pytest.mark.parametrize("fails", [1, 2, 3, 6])
def test_an_error_among_many_that_come_ends_the_get(fails: int) -> None:
    scene = Scene()
    refs = [scene.submit() for _ in range(7)]
    scene.meanwhile(lambda: fail(scene, refs[fails], KeyError("last")))
    with pytest.raises(KeyError, match="last"):
        scene.core.get(refs, None)
    assert scene.core.describe()["waiters"] == 0


def test_values_may_come_in_any_order(scene: Scene) -> None:
    refs = [scene.submit() for _ in range(5)]
    for number in (4, 0, 2, 1, 3):
        scene.meanwhile(partial(scene.finish, refs[number], value(number)))
    assert scene.core.get(refs, None) == [0, 1, 2, 3, 4]


def test_errors_of_others_end_nothing(scene: Scene) -> None:
    a, b, other = scene.submit(), scene.submit(), scene.submit()
    scene.meanwhile(lambda: fail(scene, other, KeyError("not ours")))
    with pytest.raises(GetTimeoutError, match=r"2 of 2 objects were not there after 0\.02 s"):
        scene.core.get([a, b], 0.02)
    assert scene.core.describe()["waiters"] == 0


def test_a_get_counts_only_what_is_missing_when_its_time_is_up(scene: Scene) -> None:
    here, missing = scene.submit(), scene.submit()
    scene.finish(here, value(1))
    before_s = scene.reactor.now_s
    with pytest.raises(GetTimeoutError, match="1 of 2"):
        scene.core.get([here, missing], 5)
    assert scene.reactor.now_s - before_s == 5


def test_a_get_without_time_does_not_wait(scene: Scene) -> None:
    before_s = scene.reactor.now_s
    with pytest.raises(GetTimeoutError, match="1 of 1 objects were not there after 0 s"):
        scene.core.get([scene.submit()], 0)
    assert scene.reactor.now_s == before_s


def test_values_come_in_the_order_that_was_asked_for_and_twice_where_asked_twice(scene: Scene) -> None:
    a, b = scene.core.put(["a"]), scene.core.put("b")
    got = scene.core.get([b, a, b, a], None)
    assert got == ["b", ["a"], "b", ["a"]]
    assert got[1] is not got[3]
    with scene.as_this_process():
        unusual = scene.core.put([a])  # it has a reference inside
        got = scene.core.get([unusual, b, unusual], None)
    assert got == [[a], "b", [a]] and got[0] is not got[2]


_read: list[int] = []


def count_reads() -> int:
    _read.append(len(_read))
    return len(_read)


class Counted:
    """Is a number where it is read, another one each time."""

    def __reduce__(self) -> Any:
        return count_reads, ()


def test_code_that_makes_a_value_where_it_is_read_runs_for_each(scene: Scene) -> None:
    refs = [scene.submit() for _ in range(4)]
    for ref in refs:
        scene.finish(ref, value(Counted()))
    _read.clear()
    assert scene.core.get(refs, None) == [1, 2, 3, 4]


@pytest.mark.parametrize("of", [None, True, 7, "text", b"bytes", [1], {"a": 1}])
def test_values_that_are_alike_are_each_their_own(scene: Scene, of: Any) -> None:
    refs = [scene.submit() for _ in range(4)]
    for ref in refs:
        scene.finish(ref, value(of))
    found = scene.core.get(refs, None)
    assert found == [of] * 4
    if type(of) in (list, dict):
        assert len(set(map(id, found))) == 4
    other = scene.submit()
    scene.finish(other, value("another"))
    assert scene.core.get([*refs, other, *refs], None) == [*[of] * 4, "another", *[of] * 4]


def test_the_error_of_a_task_is_raised_as_what_it_was_raised_by(scene: Scene) -> None:
    ref = scene.submit()
    fail(scene, ref, RayTaskError("f", "the traceback", KeyError("k")))
    with pytest.raises(KeyError) as caught:
        scene.core.get([ref], None)
    assert isinstance(caught.value, RayTaskError)


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_value_whose_code_does_not_let_it_be_read_is_told_as_that(scene: Scene) -> None:
    ref = scene.core.put(Unreadable())
    with pytest.raises(RaySystemError, match="cannot be unpickled: ValueError"):
        scene.core.get([ref], None)


@pytest.mark.parametrize("holds_a_reference", [True, False])
def test_an_interrupt_that_came_meanwhile_is_raised_at_the_end_of_a_get(
    scene: Scene, holds_a_reference: bool
) -> None:
    value: Any = [scene.core.put(0)] if holds_a_reference else 2
    refs = [scene.core.put(1), scene.core.put(value)]
    scene.reactor.note_interrupt(True)
    with scene.as_this_process():
        with pytest.raises(KeyboardInterrupt):
            scene.core.get(refs, None)
        assert scene.core.get(refs, None) == [1, value]


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_ends_a_get_and_its_waiters(scene: Scene, count: int) -> None:
    refs = [scene.submit() for _ in range(count)]
    scene.meanwhile(lambda: scene.reactor.note_interrupt(True))
    with pytest.raises(KeyboardInterrupt):
        scene.core.get(refs, None)
    assert scene.core.describe()["waiters"] == 0


def test_who_waits_when_this_process_leaves_hears_that_and_so_does_who_comes_later(scene: Scene) -> None:
    ref = scene.submit()
    scene.meanwhile(scene.core.shutdown)
    with pytest.raises(RaySystemError, match="disconnected from its cluster while it waited"):
        scene.core.get([ref], None)
    with pytest.raises(RaySystemError, match=r"call ray_mono\.init\(\) again"):
        scene.core.get([ref], None)


def test_a_reference_of_another_session_is_refused(scene: Scene) -> None:
    theirs = Scene().core.put(1)
    for ask in (
        lambda: scene.core.get([theirs], None),
        lambda: scene.core.wait([theirs], 1, None, True),
    ):
        with pytest.raises(RaySystemError, match="belongs to a session that is over"):
            ask()


# ---- stores


def test_what_lies_in_stores_is_asked_for_at_once_and_read_in_order(scene: Scene) -> None:
    refs = [large(scene, LARGE), scene.core.put("small"), large(scene, OTHER, ELSEWHERE, NODE_ID)]
    store_finds(scene, scene.lay(OTHER, "other"), scene.lay(LARGE, "large"))
    assert scene.core.get(refs, None) == ["large", "small", "other"]
    (asked,) = scene.wire.all("Get")
    assert asked.request.timeout_ms == 0 and not asked.request.may_go_elsewhere
    assert [(each.object_id, list(each.location_node_ids)) for each in asked.request.objects] == [
        (LARGE, [NODE_ID]),
        (OTHER, [ELSEWHERE, NODE_ID]),
    ]


@pytest.mark.parametrize(("timeout_s", "timeout_ms"), [(None, -1), (2.5, 2500)])
def test_a_copy_from_elsewhere_may_take_as_long_as_the_get(
    scene: Scene, timeout_s: float | None, timeout_ms: int
) -> None:
    ref = large(scene, LARGE, ELSEWHERE)
    store_finds(scene, scene.lay(LARGE, "large", pulled=True))
    assert scene.core.get([ref], timeout_s) == ["large"]
    (asked,) = scene.wire.all("Get")
    assert asked.request.timeout_ms == timeout_ms


def test_the_time_that_a_value_took_is_not_given_to_the_store_again(scene: Scene) -> None:
    ref = scene.borrow(LARGE)

    def comes() -> None:
        scene.reactor.now_s += 2
        scene.owner_answers(ref, status_in_stores(ELSEWHERE))

    scene.meanwhile(comes)
    found = scene.lay(LARGE, "large")
    scene.meanwhile(lambda: None)
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[found])
    assert scene.core.get([ref], 5) == ["large"]
    assert scene.wire.last("Get").request.timeout_ms == 3000


def test_what_did_not_come_in_time_is_counted(scene: Scene) -> None:
    ref = large(scene, LARGE, ELSEWHERE)
    store_finds(scene, Found(object_id=LARGE, state=Found.NOT_HERE))
    with pytest.raises(GetTimeoutError, match="1 of 2 objects were not there after 3 s"):
        scene.core.get([scene.core.put(1), ref], 3)


def test_the_owner_of_a_copy_that_came_hears_where_it_is(scene: Scene) -> None:
    ref = large(scene, LARGE, ELSEWHERE)
    store_finds(scene, scene.lay(LARGE, "large", pulled=True))
    assert scene.core.get([ref], None) == ["large"]
    heard = scene.wire.last("AddObjectLocation", "unix:owner").request
    assert (heard.object_id, heard.node_id) == (LARGE, NODE_ID)


def test_what_was_here_before_is_not_told_to_its_owner(scene: Scene) -> None:
    ref = large(scene)
    store_finds(scene, scene.lay(LARGE, "large"))
    scene.core.get([ref], None)
    assert not scene.wire.all("AddObjectLocation")


def test_what_no_store_has_is_asked_of_its_owner_again(scene: Scene) -> None:
    ref = large(scene, LARGE, ELSEWHERE)
    store_finds(scene, Found(object_id=LARGE, state=Found.LOST))
    scene.meanwhile(lambda: scene.owner_answers(ref, status("made again")))
    assert scene.core.get([ref], None) == ["made again"]


def test_what_no_node_gives_after_all_attempts_is_lost_as_its_owner_says(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store", fetch_attempts_max=3)
    ref = large(scene, LARGE, ELSEWHERE)
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[Found(object_id=LARGE, state=Found.LOST)])
    why = serialization.serialize_error(WhyNot.PUT.error(LARGE))
    told = core_worker_pb2.GetObjectStatusReply(
        value=common_pb2.SerializedObject(metadata=why.metadata, data=why.to_bytes())
    )
    scene.wire.replies["GetObjectStatus"] = lambda request: (
        told if request.gives_up else status_in_stores(ELSEWHERE)
    )
    with pytest.raises(ObjectReconstructionFailedError, match="put"):
        scene.core.get([ref], None)
    assert len(scene.wire.all("Get")) == 3


def test_what_this_process_owns_and_no_store_has_is_lost_at_once(scene: Scene) -> None:
    scene.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply(offset=0)
    ref = scene.core.put(bytes(200_000))
    store_finds(scene, Found(object_id=ref.binary(), state=Found.NOT_HERE))
    store_finds(scene, Found(object_id=ref.binary(), state=Found.LOST))
    with pytest.raises(ObjectLostError):
        scene.core.get([ref], None)
    assert [each.request.timeout_ms for each in scene.wire.all("Get")] == [0, -1]


def test_an_owner_that_died_is_told_as_that(scene: Scene) -> None:
    ref = scene.borrow(LARGE)
    scene.meanwhile(lambda: scene.wire.end("unix:owner"))
    with pytest.raises(OwnerDiedError):
        scene.core.get([ref], None)


def test_a_store_whose_memory_cannot_be_opened_ends_the_get_and_keeps_no_pin(
    scene: Scene, tmp_path: Path
) -> None:
    refs = [large(scene, LARGE), large(scene, OTHER)]
    store_finds(scene, scene.lay(LARGE, 1), scene.lay(OTHER, 2))
    (tmp_path / "store").unlink()
    with pytest.raises(RaySystemError, match="cannot be opened"):
        scene.core.get(refs, None)
    scene.turn()
    assert list(scene.wire.last("Release").request.object_ids) == [LARGE, OTHER]


def test_a_store_that_is_full_or_fails_is_told_as_that(scene: Scene) -> None:
    ref = large(scene, LARGE, ELSEWHERE)
    for code, error in (
        (StatusCode.RESOURCE_EXHAUSTED, ObjectStoreFullError),
        (StatusCode.UNAVAILABLE, RaySystemError),
    ):
        scene.meanwhile(partial(_store_fails, scene, code))
        with pytest.raises(error, match="why"):
            scene.core.get([ref], None)


def _store_fails(scene: Scene, code: Any) -> None:
    scene.wire.open("Get")[0].fail(RpcError(code, "why"))


def test_a_task_that_may_go_elsewhere_hears_that_there_is_no_room(worker: Scene) -> None:
    ref = large(worker, LARGE, ELSEWHERE)
    worker.meanwhile(partial(_store_fails, worker, StatusCode.RESOURCE_EXHAUSTED))
    with pytest.raises(NoRoomHere, match="why"):
        worker.parts.getter.get_ids([ref.binary()], None, may_go_elsewhere=True)
    assert worker.wire.last("Get").request.may_go_elsewhere


# ---- saying that the task waits


def test_a_task_that_reads_what_its_nodes_store_has_does_not_say_that_it_waits(worker: Scene) -> None:
    ref = large(worker, LARGE, ELSEWHERE, NODE_ID)
    store_finds(worker, worker.lay(LARGE, "large"))
    assert worker.core.get([ref], None) == ["large"]
    assert told(worker) == []


def test_a_task_that_needs_a_copy_from_elsewhere_says_that_it_waits(worker: Scene) -> None:
    ref = large(worker, LARGE, ELSEWHERE)
    store_finds(worker, worker.lay(LARGE, "large"))
    assert worker.core.get([ref], None) == ["large"]
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_task_whose_copy_was_evicted_here_says_that_it_waits(worker: Scene) -> None:
    ref = large(worker)
    store_finds(worker, Found(object_id=LARGE, state=Found.NOT_HERE))
    store_finds(worker, worker.lay(LARGE, "large"))
    assert worker.core.get([ref], None) == ["large"]
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_task_that_asks_an_owner_for_what_is_there_does_not_say_that_it_waits(worker: Scene) -> None:
    ref = worker.borrow(OTHER)
    worker.meanwhile(lambda: worker.owner_answers(ref, status("value")))
    assert worker.core.get([ref], None) == ["value"]
    assert told(worker) == []


def test_a_task_whose_owner_has_no_value_yet_says_that_it_waits(worker: Scene) -> None:
    ref = worker.borrow(OTHER)
    worker.reactor.call_later(0.02, lambda: worker.owner_answers(ref, status("value")))
    assert worker.core.get([ref], 1) == ["value"]
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


@pytest.mark.parametrize("timeout_s", [0.005, 0.01])
def test_a_task_that_has_less_time_than_owners_are_given_does_not_say_that_it_waits(
    worker: Scene, timeout_s: float
) -> None:
    ref = worker.borrow(OTHER)
    before_s = worker.reactor.now_s
    with pytest.raises(GetTimeoutError):
        worker.core.get([ref], timeout_s)
    assert told(worker) == [] and worker.reactor.now_s == pytest.approx(before_s + timeout_s)


def test_the_moment_that_owners_are_given_is_part_of_the_time(worker: Scene) -> None:
    ref = worker.borrow(OTHER)
    before_s = worker.reactor.now_s
    with pytest.raises(GetTimeoutError):
        worker.core.get([ref], 1)
    assert worker.reactor.now_s == pytest.approx(before_s + 1)
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_task_that_waits_for_a_task_of_its_own_says_so_at_once(worker: Scene) -> None:
    ref, theirs = worker.submit(), worker.borrow(OTHER)
    worker.meanwhile(lambda: worker.owner_answers(theirs, status("value")))
    worker.meanwhile(lambda: worker.finish(ref, value("made")))
    assert worker.core.get([theirs, ref], None) == ["value", "made"]
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_wait_that_is_interrupted_is_taken_back(worker: Scene) -> None:
    ref = worker.submit()
    worker.meanwhile(lambda: worker.reactor.note_interrupt(True))
    with pytest.raises(KeyboardInterrupt):
        worker.core.get([ref], None)
    assert told(worker) == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_driver_tells_nobody_that_it_waits(scene: Scene) -> None:
    ref = scene.submit()
    scene.meanwhile(lambda: scene.finish(ref, value(1)))
    assert scene.core.get([ref], None) == [1] and told(scene) == []


# ---- what a get that ran out of time tells


def test_a_get_that_ran_out_of_time_names_the_calls_that_are_not_over(scene: Scene) -> None:
    over = scene.submit(name="over")
    scene.finish(over, value(1))
    scene.pass_time(1)
    of_nobody = scene.borrow(OTHER)
    slow = scene.core.submit_task(scene.template("slow", num_returns=2), [])
    held = scene.core.hold_actor(b"\xaa" * 16, None, CallRules())
    add = scene.core.submit_actor_task(held, scene.core.method_template("add", "Counter"), [])
    scene.wire.last("WatchActor").answer(
        common_pb2.ActorInfo(
            actor_id=b"\xaa" * 16,
            state=common_pb2.PENDING_CREATION,
            version=1,
            class_name="Counter",
            pending_reason="Actor Counter needs {CPU: 1}, which is in use",
        )
    )
    g, h = scene.submit(name="g"), scene.submit(name="h")
    with pytest.raises(GetTimeoutError) as caught:
        scene.core.get([of_nobody, *slow, *add, g, h, over], 0.02)
    assert str(caught.value) == (
        "6 of 7 objects were not there after 0.02 s;"
        " not over: slow() (it waits for a worker, and needs {CPU: 1}),"
        " Counter.add() of actor aaaaaaaa (Actor Counter needs {CPU: 1}, which is in use),"
        " g() (it waits for a worker, and needs {CPU: 1}), …"
    )


def test_a_call_that_waits_for_a_worker_or_for_arguments_says_so(scene: Scene) -> None:
    first = scene.submit(name="first")
    second = scene.submit(first, name="second")
    with pytest.raises(GetTimeoutError) as caught:
        scene.core.get([first, second], 0)
    assert str(caught.value) == (
        "2 of 2 objects were not there after 0 s;"
        " not over: first() (it waits for a worker, and needs {CPU: 1}),"
        " second() (its arguments are not there)"
    )


def test_a_call_whose_worker_cannot_be_reached_tells_the_trouble(scene: Scene) -> None:
    ref = scene.submit(name="g")
    scene.turn()
    scene.grant(address_of(b"far", ELSEWHERE))
    scene.wire.connect("far:1").trouble = "cannot connect to g's worker"
    with pytest.raises(GetTimeoutError, match=r"g\(\) \(cannot connect to g's worker\)"):
        scene.core.get([ref], 0)

"""wait: what ends it, what it has brought here, and what it leaves behind."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError, RayTaskError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.store_provider.memory_store import Watch
from ray_mono.protobuf import object_manager_pb2
from tests.core_worker.scene import ELSEWHERE, NODE_ID, Scene, failure, in_store, nodes, status, value
from tests.core_worker.scene_time import ended

OBJECT = b"o" * 28
Found = object_manager_pb2.ObjectFound


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(store_file=tmp_path / "store")


def far(scene: Scene) -> ObjectRef[Any]:
    """One whose value lies on another node."""
    ref = scene.submit()
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    return ref


def came(ref: ObjectRef[Any], state: int = Found.FOUND) -> object_manager_pb2.GetReply:
    found = Found(object_id=ref.binary(), state=state, pulled=state == Found.FOUND)  # type: ignore[arg-type]
    return object_manager_pb2.GetReply(objects=[found])


@pytest.mark.parametrize("timeout_s", [None, 1e9])
def test_a_wait_that_ends_since_this_process_leaves_does_not_say_that_the_time_is_up(
    scene: Scene, timeout_s: float | None
) -> None:
    ref = scene.submit()
    scene.meanwhile(scene.core.shutdown)
    with pytest.raises(RaySystemError, match="disconnected from its cluster"):
        scene.core.wait([ref], 1, timeout_s, True)


def test_a_wait_ends_with_as_many_as_were_asked_for_in_the_order_of_the_references(scene: Scene) -> None:
    refs = [scene.submit() for _ in range(4)]
    scene.meanwhile(lambda: scene.finish(refs[3], value(3)))
    scene.meanwhile(lambda: scene.finish(refs[1], value(1)))
    assert scene.core.wait(refs, 2, None, True) == ([refs[1], refs[3]], [refs[0], refs[2]])
    assert scene.core.describe()["waiters"] == 0


def test_of_more_that_are_ready_the_first_are_named(scene: Scene) -> None:
    refs = [scene.core.put(number) for number in range(3)]
    assert scene.core.wait(refs, 2, None, True) == (refs[:2], refs[2:])
    assert scene.core.wait(refs, 3, None, True) == (refs, [])


def test_a_wait_whose_time_is_up_names_what_is_ready(scene: Scene) -> None:
    refs = [scene.submit(), scene.core.put(1)]
    before_s = scene.reactor.now_s
    assert scene.core.wait(refs, 2, 3, True) == ([refs[1]], [refs[0]])
    assert scene.reactor.now_s == before_s + 3
    assert scene.core.describe()["waiters"] == 0


def test_what_lies_elsewhere_is_ready_where_nobody_wants_it_here(scene: Scene) -> None:
    ref = far(scene)
    assert scene.core.wait([ref], 1, 0, False) == ([ref], [])
    assert not scene.wire.all("Get")


def test_what_lies_elsewhere_is_brought_here_and_not_pinned(scene: Scene) -> None:
    ref = far(scene)
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(came(ref)))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])
    (asked,) = scene.wire.all("Get")
    assert asked.request.timeout_ms == -1 and not asked.request.may_go_elsewhere
    assert [list(each.location_node_ids) for each in asked.request.objects] == [[ELSEWHERE]]
    scene.turn()
    assert list(scene.wire.last("Release").request.object_ids) == [ref.binary()]
    known = scene.core.location_of(ref)
    assert known is not None and list(known[0]) == [ELSEWHERE, NODE_ID]


def test_what_is_lost_for_good_is_ready_as_an_error(scene: Scene) -> None:
    ref = scene.submit(max_retries=0)
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(came(ref, Found.LOST)))
    scene.meanwhile(lambda: scene.wire.open("GetAllNodes")[0].answer(nodes(ELSEWHERE)))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])
    scene.turn()
    assert not scene.wire.all("Release")


def test_who_looks_again_and_again_gets_there(scene: Scene) -> None:
    ref, theirs = far(scene), scene.borrow(OBJECT)
    for _ in range(3):
        assert scene.core.wait([ref, theirs], 2, 0, True) == ([], [ref, theirs])
    # Asked for once each.
    scene.wire.open("Get")[0].answer(came(ref))
    scene.owner_answers(theirs, status(1))
    assert scene.core.wait([ref, theirs], 2, 0, True) == ([ref, theirs], [])
    assert len(scene.wire.all("Get")) == 1 and len(scene.wire.all("GetObjectStatus")) == 1


def test_two_that_wait_for_one_object_bring_it_here_once(scene: Scene) -> None:
    ref = far(scene)
    future = ref.future()
    scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(
        objects=[scene.lay(ref.binary(), "far")]
    )
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(came(ref)))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])
    assert ended(future).result() == "far"
    assert [each.request.timeout_ms for each in scene.wire.all("Get")] == [-1, 0]
    scene.core.shutdown()


def test_values_and_copies_count_together(scene: Scene) -> None:
    copy, made, never = far(scene), scene.submit(), scene.submit()
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(came(copy)))
    scene.meanwhile(partial(scene.finish, made, value(1)))
    assert scene.core.wait([never, made, copy], 2, None, True) == ([made, copy], [never])


def test_a_value_that_turns_out_to_lie_elsewhere_is_brought_here_too(scene: Scene) -> None:
    ref = scene.submit()
    scene.meanwhile(lambda: scene.finish(ref, in_store(ref.binary(), ELSEWHERE)))
    scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(came(ref)))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])


def test_what_an_owner_that_is_gone_had_is_ready_at_once(scene: Scene) -> None:
    ref = scene.borrow(OBJECT)
    scene.meanwhile(lambda: scene.wire.end("unix:owner"))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])


def test_who_is_told_that_an_error_is_there_was_told_of_it(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    ref = scene.submit()
    scene.finish(ref, failure(RayTaskError("f", "text", KeyError("k")), ref.binary()))
    assert scene.core.wait([ref], 1, 0, True) == ([ref], [])
    del ref
    scene.core.shutdown()
    assert capfd.readouterr().err == ""


def test_an_interrupt_ends_a_wait_and_its_waiters(scene: Scene) -> None:
    refs = [scene.submit(), scene.submit()]
    scene.meanwhile(lambda: scene.reactor.note_interrupt(True))
    with pytest.raises(KeyboardInterrupt):
        scene.core.wait(refs, 2, None, True)
    assert scene.core.describe()["waiters"] == 0


def num_watches() -> int:
    gc.collect()
    return sum(type(each) is Watch for each in gc.get_objects())


def test_a_wait_that_is_over_watches_nothing(scene: Scene) -> None:
    before = num_watches()
    ref = scene.submit()
    assert scene.core.wait([ref], 1, 0.1, True) == ([], [ref])
    scene.meanwhile(lambda: scene.finish(ref, value(1)))
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])
    scene.meanwhile(lambda: scene.reactor.note_interrupt(True))
    with pytest.raises(KeyboardInterrupt):
        scene.core.wait([scene.submit()], 1, None, True)
    assert num_watches() == before


def test_an_interrupt_that_came_meanwhile_is_raised_at_the_end_of_a_wait(scene: Scene) -> None:
    ref = scene.core.put(1)
    scene.reactor.note_interrupt(True)
    with pytest.raises(KeyboardInterrupt):
        scene.core.wait([ref], 1, None, True)
    assert scene.core.wait([ref], 1, None, True) == ([ref], [])


def test_a_task_that_waits_says_so() -> None:
    worker = Scene(is_driver=False)
    ref = worker.submit()
    worker.meanwhile(lambda: worker.finish(ref, value(1)))
    worker.core.wait([ref], 1, None, True)
    assert [each.method for each in worker.wire.said if each.method.startswith("Notify")] == [
        "NotifyBlocked",
        "NotifyUnblocked",
    ]


def test_what_is_ready_when_this_process_has_left_is_named(scene: Scene) -> None:
    refs = [scene.core.put(1), scene.submit()]
    scene.core.shutdown()
    assert scene.core.wait(refs, 1, None, True) == ([refs[0]], [refs[1]])


def test_what_went_before_a_wait_is_counted_with_it(scene: Scene) -> None:
    ref, other = scene.core.put(1), scene.core.put(2)
    del ref
    assert scene.core.describe()["references"] == 2
    scene.core.wait([other], 1, 0, True)
    assert scene.core.describe()["references"] == 1

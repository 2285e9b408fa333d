"""Normal tasks of a `map`: they travel together, and each has its own life."""

from __future__ import annotations

import contextlib
import gc
import pickle
import threading
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.map_builder import FIRST_PIECE_ITEMS, PIECE_ITEMS
from ray_mono.protobuf import common_pb2, raylet_pb2
from tests.core_worker.scene import Reply, Scene, address_of, failure, value, values
from tests.core_worker.task_submission.mapped import a_scene, mapped
from tests.core_worker.task_submission.tasks import (
    AUTO,
    NOT_STARTED,
    SECOND,
    answer,
    frames,
    id_of,
    ids_in,
    ids_of,
    lease_states,
    num_queued,
    other,
    outcomes,
    pushed,
)

LOOK_S = 0.01


def test_the_first_travels_alone_and_the_others_behind_it_together() -> None:
    scene = a_scene()
    refs = mapped(scene, range(10))
    assert pushed(scene)[-1] == id_of(refs[0])
    (frame,) = frames(scene)
    assert ids_in(frame) == ids_of(*refs[1:])
    assert pickle.loads(frame.request.items) == list(range(1, 10))


def test_values_arrive_in_parts_and_the_last_with_the_reply() -> None:
    scene = a_scene()
    refs = mapped(scene, range(5))
    (frame,) = frames(scene)
    answer(scene, refs[0], value("a", run_us=1))
    frame.part(values(0, "b", "c", run_us=2))
    assert scene.core.get(refs[:3], 0) == ["a", "b", "c"]
    frame.answer(values(2, "d", "e", run_us=2))
    assert scene.core.get(refs, 0) == list("abcde")
    assert "lingers" in lease_states(scene)[0]


@pytest.mark.parametrize("dropped", [[], [1], [1, 3], [1, 2, 3, 4]])
def test_of_answers_that_come_together_those_are_kept_that_somebody_wants(dropped: list[int]) -> None:
    scene = a_scene()
    refs: list[Any] = mapped(scene, range(5))
    (frame,) = frames(scene)
    answer(scene, refs[0], value("a"))
    for index in dropped:
        refs[index] = None
    left = [ref for ref in refs if ref is not None]
    assert scene.core.reference_counts() == len(left)
    frame.answer(values(0, "b", "c", "d", "e", run_us=4))
    assert scene.core.reference_counts() == scene.core.describe()["values"] == len(left)
    assert scene.core.get(left, 0) == [each for index, each in enumerate("abcde") if index not in dropped]
    assert not scene.core.describe()["tasks_pending"]
    del left
    refs.clear()
    assert scene.core.reference_counts() == scene.core.describe()["values"] == 0


def test_who_waits_for_them_hears_of_answers_that_come_together() -> None:
    scene = a_scene()
    refs = mapped(scene, range(5))
    (frame,) = frames(scene)
    answer(scene, refs[0], value("a"))
    scene.meanwhile(lambda: frame.part(values(0, "b", "c")))
    scene.meanwhile(lambda: frame.answer(values(2, "d", "e")))
    assert scene.core.get(refs, None) == list("abcde")
    assert scene.core.describe()["waiters"] == 0


def test_an_answer_of_another_kind_is_its_own() -> None:
    scene = a_scene()
    refs = mapped(scene, range(4))
    (frame,) = frames(scene)
    frame.part(values(0, "b"))
    frame.part(other(1, failure(KeyError("c"), refs[2].binary())))
    frame.answer(values(2, "d"))
    answer(scene, refs[0])
    assert scene.core.get([refs[0], refs[1], refs[3]], 0) == [1, "b", "d"]
    with pytest.raises(KeyError):
        scene.core.get([refs[2]], 0)


def test_how_many_travel_together_is_as_told() -> None:
    scene = a_scene()
    refs = mapped(scene, range(13), chunk=4)
    assert [len(ids_in(frame)) for frame in frames(scene)] == [4, 4, 4]
    assert [task_id for frame in frames(scene) for task_id in ids_in(frame)] == ids_of(*refs[1:])


def test_as_many_are_ahead_as_a_worker_runs_in_a_moment() -> None:
    scene = a_scene(chunk_ahead_us=200.0, chunk_task_overhead_us=9.0)
    refs = mapped(scene, range(100))
    (frame,) = frames(scene)
    assert len(ids_in(frame)) == 19
    # Refilled by halves.
    answer(scene, refs[0], value(0, run_us=1))
    frame.part(values(0, *range(8), run_us=8))
    assert len(frames(scene)) == 1
    frame.part(values(8, 0, run_us=1))
    assert [len(ids_in(frame)) for frame in frames(scene)] == [19, 10]


def test_tasks_that_may_be_long_are_not_pushed_ahead() -> None:
    scene = Scene()
    refs = mapped(scene, range(5))
    scene.grant()
    assert (pushed(scene), frames(scene), num_queued(scene)) == (ids_of(refs[0]), [], 4)
    answer(scene, refs[0], value(0, run_us=10**6))
    assert (pushed(scene)[1:], frames(scene), num_queued(scene)) == (ids_of(refs[1]), [], 3)


def test_tasks_that_hold_other_resources_than_cpus_travel_alone_and_in_order() -> None:
    scene = a_scene()
    refs = mapped(scene, range(3), resources=ResourceSet.from_units({"CPU": 1, "slot": 1}))
    scene.grant()
    for ref in refs:
        assert pushed(scene)[-1] == id_of(ref) and not frames(scene)
        answer(scene, ref, value(0, run_us=1))


def test_a_frame_has_no_more_bytes_than_its_limit() -> None:
    scene = a_scene(chunk_bytes_max=10_000)
    mapped(scene, [0] + ["x" * 3000] * 7, chunk=10**9)
    assert [len(ids_in(frame)) for frame in frames(scene)] == [3]
    scene = a_scene(chunk_bytes_max=800)
    mapped(scene, range(1000), chunk=10**9)
    assert [len(ids_in(frame)) for frame in frames(scene)] == [28]


@pytest.mark.parametrize(
    "item",
    [None, False, 255, 2**32000, 1.5, 2j, "é" * 1000, "中" * 1000, "x", b"", b"x" * 999],
    ids=lambda item: type(item).__name__,
)
def test_the_bytes_are_those_that_the_frame_has(item: Any) -> None:
    scene = a_scene(chunk_bytes_max=20_000)
    mapped(scene, [pickle.loads(pickle.dumps(item)) for _ in range(2000)], chunk=10**9)
    (frame,) = frames(scene)
    assert len(frame.request.items) + len(frame.request.task_ids) <= 20_000
    assert len(ids_in(frame)) > 3


@pytest.mark.parametrize("large", ["é" * 3000, 2**100_000], ids=["text", "int"])
def test_an_item_that_is_not_small_travels_alone(large: Any) -> None:
    scene = a_scene()
    refs = mapped(scene, [0, 1, 2, large, 4, 5])
    assert [ids_in(frame) for frame in frames(scene)] == [ids_of(*refs[1:3]), ids_of(*refs[4:])]
    assert pushed(scene)[1:] == ids_of(refs[0], refs[3])


def test_unusual_items_travel_alone_and_all_keep_their_order() -> None:
    scene = a_scene()
    refs = mapped(scene, [0, 1, (2,), 3, 4, "x" * 5000, 6])
    order = [
        each
        for said in scene.wire.said
        if said.method in ("PushTask", "PushTasks")
        for each in (ids_in(said) if said.method == "PushTasks" else [said.request.task_id])
    ]
    assert order[-7:] == ids_of(*refs)
    assert [len(ids_in(frame)) for frame in frames(scene)] == [2]


def test_items_that_travel_alone_and_come_back_have_their_place_in_the_order() -> None:
    scene = a_scene()
    refs = mapped(scene, [(0,), (1,), (2,)])
    answer(scene, refs[2], NOT_STARTED)
    answer(scene, refs[1], NOT_STARTED)
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(*refs[1:])


def test_an_item_that_waits_for_its_value_holds_back_no_other() -> None:
    scene = a_scene()
    late = scene.borrow(b"late".ljust(28, b"."))
    refs = mapped(scene, [0, late, 2, 3])
    assert ids_in(frames(scene)[0]) == ids_of(refs[2], refs[3])
    assert id_of(refs[1]) not in pushed(scene)


def test_what_a_worker_gives_back_travels_together_again() -> None:
    scene = a_scene()
    refs = mapped(scene, range(6))
    (frame,) = frames(scene)
    frame.part(values(0, "b"))
    frame.answer(other(1, NOT_STARTED, count=4))
    assert num_queued(scene) == 4
    scene.grant(SECOND)
    assert pushed(scene, "unix:second") == ids_of(refs[2])
    assert [ids_in(each) for each in frames(scene, "unix:second")] == [ids_of(*refs[3:])]


def test_an_answer_that_waits_for_an_owner_may_be_overtaken() -> None:
    scene = a_scene()
    refs = mapped(scene, range(4))
    (frame,) = frames(scene)
    frame.part(values(1, "c", "d"))
    assert outcomes(scene, refs[2:]) == ["c", "d"]
    answer(scene, refs[0])
    frame.answer(other(0, value("b")))
    assert scene.core.get(refs, 0) == [1, "b", "c", "d"]
    assert "lingers" in lease_states(scene)[0]


def test_no_answer_is_taken_for_a_task_that_has_failed_meanwhile() -> None:
    scene = a_scene()
    refs = mapped(scene, range(3))
    (frame,) = frames(scene)
    scene.core.cancel(refs[1], False, False)
    assert [said.request.task_id for said in scene.wire.all("CancelTask")] == ids_of(refs[1])
    frame.part(other(0, Reply(status=Reply.CANCELLED)))
    frame.answer(values(1, "c"))
    assert outcomes(scene, refs[1:]) == [TaskCancelledError, "c"]


# ---- a worker that does not answer


def test_what_a_frozen_worker_has_not_begun_runs_elsewhere() -> None:
    scene = a_scene(stall_look_s=LOOK_S)
    refs = mapped(scene, range(6))
    answer(scene, refs[0], value(0, run_us=1))
    scene.pass_time(5 * LOOK_S)
    assert scene.wire.all("GiveBackTasks")
    (asked,) = scene.wire.open("WithdrawTasks")
    assert asked.request.last == 7
    asked.answer(raylet_pb2.WithdrawTasksReply(is_closed=True, begun=4))
    assert num_queued(scene) == 3
    # It goes on after all, and answers what it had begun.
    (frame,) = frames(scene)
    frame.part(values(0, "b", "c"))
    frame.answer(other(2, NOT_STARTED, count=3))
    assert outcomes(scene, refs[1:3]) == ["b", "c"]
    assert scene.wire.all("ReturnWorker") and num_queued(scene) == 3


# ---- many


def test_the_first_are_on_their_way_before_the_last_is_packed() -> None:
    scene = a_scene()
    num_before = len(pushed(scene))

    class Late:
        def __reduce__(self) -> Any:
            seen.append(len(pushed(scene)) - num_before)
            return (int, ())

    seen: list[int] = []
    refs = mapped(scene, [*range(FIRST_PIECE_ITEMS + PIECE_ITEMS), Late()])
    assert seen[0] > 0 and len(refs) == FIRST_PIECE_ITEMS + PIECE_ITEMS + 1


def test_items_that_were_made_have_their_references_where_a_later_one_does_not_pickle() -> None:
    scene = a_scene()
    refs: list[ObjectRef[Any]] = []
    with pytest.raises(TypeError, match="does not pickle"):
        scene.core.submit_tasks(scene.template(), [*range(100), [1], 2, threading.Lock(), 3], AUTO, refs)
    assert len(refs) == scene.core.reference_counts() == 102
    with pytest.raises(TypeError, match="does not pickle"):
        scene.core.submit_tasks(scene.template(), [threading.Lock()], AUTO, refs)
    assert len(refs) == 102


# ---- answers that are held


def held_answers(first: int, begun: int, *found: Any) -> raylet_pb2.LastWordsReply:
    plain = [pickle.dumps(each) for each in found]
    return raylet_pb2.LastWordsReply(is_known=True, begun=begun, first=first, plain=plain)


def test_answers_that_a_worker_holds_are_read_by_its_raylet_and_count_once() -> None:
    scene = a_scene()
    refs = mapped(scene, range(5))
    answer(scene, refs[0], value("a", run_us=1))
    (frame,) = frames(scene)
    scene.pass_time(0.05)
    (asked,) = scene.wire.open("HeldAnswers")
    assert (asked.to, asked.request.lease_number) == ("raylet", 7)
    # The frame begins at place 3. The fourth of it holds the GIL.
    asked.answer(held_answers(3, 5, "b", "c"))
    assert scene.core.get(refs[:3], 0) == ["a", "b", "c"]
    frame.answer(values(0, "b", "c", "d", "e", run_us=4))
    assert scene.core.get(refs, 0) == list("abcde")


def test_no_more_is_asked_of_a_frame_whose_first_runs_for_long() -> None:
    scene = a_scene()
    refs = mapped(scene, range(3))
    answer(scene, refs[0], value("a", run_us=1))
    for _ in range(2):
        scene.pass_time(0.05)
        (asked,) = scene.wire.open("HeldAnswers")
        asked.answer(held_answers(0, 3))
    scene.pass_time(1)
    assert not scene.wire.open("HeldAnswers")
    frames(scene)[0].part(values(0, "b"))
    scene.pass_time(0.05)
    assert scene.wire.open("HeldAnswers")


def test_nothing_is_asked_while_answers_come_or_when_all_are_there() -> None:
    scene = a_scene()
    refs = mapped(scene, range(9))
    answer(scene, refs[0], value("a", run_us=1))
    (frame,) = frames(scene)
    for place in range(7):
        frame.part(values(place, place))
        scene.pass_time(0.015)
    frame.answer(values(7, 7))
    scene.pass_time(1)
    assert not scene.wire.all("HeldAnswers")


def held(scene: Scene) -> Any:
    told = scene.core.describe()
    return {name: told[name] for name in ("references", "values", "waiters", "tasks_pending")}


def test_nothing_is_left_when_all_is_answered_and_dropped() -> None:
    scene = a_scene()
    argument = scene.core.put(b"x" * 10)
    before = held(scene)
    refs = mapped(scene, [0, 1, [argument], 3, 4])
    for frame in frames(scene):
        frame.answer(values(0, *([0] * len(ids_in(frame)))))
    for said in scene.wire.open("PushTask"):
        said.answer(value(0))
    assert scene.core.get(refs, 0)
    del refs
    scene.turn()
    assert held(scene) == before


def test_what_the_function_captured_is_held_until_the_last_is_answered() -> None:
    scene = a_scene()
    captured = scene.core.put("captured")
    python = common_pb2.PythonFunctionDescriptor(module_name="m", function_name="f", function_hash=b"f")
    code = Exported(common_pb2.FunctionDescriptor(python=python), (captured,))
    refs: list[ObjectRef[Any]] = []
    scene.core.submit_tasks(scene.core.task_template(code, TaskOptions(name="f")), list(range(6)), AUTO, refs)
    del captured, code
    assert scene.core.reference_counts() == 7
    answer(scene, refs[0])
    (frame,) = frames(scene)
    frame.part(values(0, *range(3)))
    frame.part(other(3, value(0)))
    assert scene.core.reference_counts() == 7
    frame.answer(values(4, 0))
    assert scene.core.reference_counts() == 6


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("last", [6, threading.Lock()], ids=["all", "not the last"])
def test_the_cycle_collector_is_as_it_was_when_a_map_is_made(was_on: bool, last: Any) -> None:
    scene = a_scene()
    try:
        if not was_on:
            gc.disable()
        with contextlib.suppress(TypeError):
            mapped(scene, [*range(1000), last])
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_two_workers_share_a_map() -> None:
    scene = a_scene(chunk_ahead_us=50.0, chunk_task_overhead_us=9.0)
    refs = mapped(scene, range(20))
    scene.grant(address_of(b"second"), number=8)
    assert pushed(scene, "unix:second") == ids_of(refs[5])
    assert len(frames(scene, "unix:second")) == 1 and len(frames(scene, "unix:worker")) == 1

"""ObjectRef: what it is equal to, how it travels, and who counts it."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker import object_ref
from ray_mono.core_worker.object_ref import ObjectRef, collect_into
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.process import current
from tests.core_worker.scene import OWNER, Scene

OBJECT = b"o" * 28


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_references_to_one_object_are_equal(scene: Scene) -> None:
    first, second, other = scene.borrow(OBJECT), scene.borrow(OBJECT), scene.core.put(1)
    assert first == second and hash(first) == hash(second) and len({first, second, other}) == 2
    assert first != other and first != OBJECT
    assert repr(first) == f"ObjectRef({OBJECT.hex()})" and first.hex() == OBJECT.hex()
    assert first.binary() == OBJECT and ObjectRef.size() == len(OBJECT)


def test_a_reference_names_its_task_and_its_job(scene: Scene) -> None:
    ref = scene.core.put(1)
    assert ref.task_id().binary() == scene.core.context.task_id()
    assert ref.job_id().binary() == scene.core.job_id


def test_the_reference_to_nothing_is_nobodys(scene: Scene) -> None:
    nil = ObjectRef.nil()
    assert nil.is_nil() and not scene.core.put(1).is_nil()
    del nil
    gc.collect()


@pytest.mark.parametrize(
    "use",
    [
        lambda core, nil: core.get([nil], None),
        lambda core, nil: core.wait([nil], 1, None, True),
        lambda core, nil: core.put([nil]),
        lambda core, nil: nil.future(),
        lambda core, nil: nil.__await__(),
        lambda core, nil: pickle.dumps(nil),
    ],
)
def test_whoever_asks_for_the_value_of_nothing_is_told_so(scene: Scene, use: Any) -> None:
    with pytest.raises(ValueError, match="refers to nothing"):
        use(scene.core, ObjectRef.nil())


def test_a_copy_is_the_reference_itself(scene: Scene) -> None:
    ref = scene.core.put(1)
    assert copy.copy(ref) is ref and copy.deepcopy([ref])[0] is ref
    assert scene.core.reference_counts() == 1


def test_a_reference_that_is_pickled_inside_a_value_is_noted_and_not_kept(scene: Scene) -> None:
    ref = scene.core.put(1)
    noted: list[ObjectRef[Any]] = []
    before = collect_into(noted)
    try:
        pickle.dumps([ref])
    finally:
        assert collect_into(before) is noted
    assert noted == [ref]
    noted.clear()
    del ref
    assert scene.core.reference_counts() == 0


def test_a_reference_that_the_user_pickles_keeps_its_object_until_this_process_leaves(scene: Scene) -> None:
    ref = scene.core.put("value")
    text = pickle.dumps(ref)
    del ref
    assert scene.core.reference_counts() == 1
    with scene.as_this_process():
        again = pickle.loads(text)
    assert scene.core.get([again], None) == ["value"]
    del again
    scene.core.shutdown()
    scene.turn()
    assert scene.core.describe()["references"] == 0


def test_an_actors_handle_is_not_kept_by_what_the_user_pickles(scene: Scene) -> None:
    creation = scene.borrow(OBJECT)
    held = scene.core.hold_actor(b"\xaa" * 16, creation, CallRules())
    pickle.dumps(creation)
    del creation, held
    assert scene.core.reference_counts() == 0


def test_a_reference_arrives_with_its_owner(scene: Scene) -> None:
    text = pickle.dumps(Scene().borrow(OBJECT))
    with scene.as_this_process():
        ref = pickle.loads(text)
    assert scene.core.owner_address_of(ref) == OWNER.SerializeToString(deterministic=True)
    assert scene.core.reference_counts() == 1


def test_a_reference_cannot_arrive_where_there_is_no_core_worker(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pickle.dumps(scene.core.put(1))
    assert current.core is None
    with pytest.raises(RaySystemError, match="not connected|no core worker"):
        pickle.loads(text)
    monkeypatch.setattr(object_ref, "_find_home", None)
    with pytest.raises(RaySystemError, match="no core worker"):
        pickle.loads(text)


def test_a_reference_is_told_once_when_it_is_gone() -> None:
    gone: list[bytes] = []

    class Home:
        def reference_dropped(self, object_id: bytes) -> None:
            gone.append(object_id)

    ref: Any = ObjectRef(OBJECT, Home())  # type: ignore[arg-type]
    also = ref
    del ref
    assert gone == []
    del also
    gc.collect()
    assert gone == [OBJECT]

"""`cancel` at a task's owner: what becomes of the task, and of those that it submitted; and at whoever only
holds its reference."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common import ids
from ray_mono.common.exceptions import GetTimeoutError, RaySystemError, TaskCancelledError
from ray_mono.core_worker.context import TaskContext, TaskKind
from ray_mono.core_worker.object_ref import ObjectRef
from tests.core_worker.called_actor import OWNER, CalledActor
from tests.core_worker.scene import JOB_ID, Said, Scene, address_of, value
from tests.core_worker.task_submission.tasks import answer, id_of, pushed

NO_ACTOR, ACTOR = ids.nil_actor_of(JOB_ID), b"a" * 12 + JOB_ID
NO_FORCE = "not supported for calls to actors"


def told(scene: Scene) -> list[Said]:
    return scene.wire.all("CancelTask")


def borrowed(scene: Scene, actor_id: bytes = NO_ACTOR, index: int = 1) -> ObjectRef[Any]:
    object_id = b"t" * 8 + actor_id + index.to_bytes(4, "little")
    return scene.core.reference_arrived(object_id, OWNER.SerializeToString(deterministic=True))


def test_what_is_over_is_not_cancelled() -> None:
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    answer(scene, ref)
    scene.core.cancel(ref, True, True)
    with scene.env.lock:
        assert not scene.core.canceller.cancel_own(id_of(ref), False, True)
    assert not told(scene) and scene.state_of(ref) == 1


def test_a_put_is_nothing_to_cancel() -> None:
    scene = Scene()
    scene.core.cancel(scene.core.put(1), True, True)
    scene.core.cancel(borrowed(scene, index=ids.PUT_INDEX_BASE + 1), True, True)
    scene.core.cancel(borrowed(scene, index=ids.PUT_INDEX_BASE), True, True)
    assert not told(scene)
    scene.core.cancel(borrowed(scene, index=ids.PUT_INDEX_BASE - 1), True, True)
    assert len(told(scene)) == 1


@pytest.mark.parametrize(("force", "recursive"), [(True, False), (False, True)])
def test_the_worker_is_told_how(force: bool, recursive: bool) -> None:
    scene = Scene()
    ref = scene.submit()
    scene.grant()
    flushes = scene.reactor.num_flushes
    scene.core.cancel(ref, force, recursive)
    (asked,) = told(scene)
    assert (asked.to, asked.request.task_id) == ("unix:worker", id_of(ref))
    assert (asked.request.force, asked.request.recursive) == (force, recursive)
    assert not asked.request.to_owner and scene.reactor.num_flushes > flushes


def test_any_return_of_a_task_stands_for_it() -> None:
    scene = Scene()
    first, second = scene.core.submit_task(scene.template(num_returns=2), [])
    scene.core.cancel(second, False, False)
    assert isinstance(scene.state_of(first), TaskCancelledError)


@pytest.mark.parametrize(("force", "recursive"), [(True, False), (False, True)])
def test_who_only_holds_a_reference_asks_its_owner(force: bool, recursive: bool) -> None:
    scene = Scene()
    ref = borrowed(scene)
    scene.core.cancel(ref, force, recursive)
    (asked,) = told(scene)
    assert asked.to == "unix:owner" and asked.request.to_owner and asked.request.task_id == id_of(ref)
    assert (asked.request.force, asked.request.recursive) == (force, recursive)


def test_a_reference_of_another_session_is_refused() -> None:
    ref = Scene().submit()
    with pytest.raises(RaySystemError, match="session"):
        Scene().core.cancel(ref, False, False)


def test_a_call_of_an_actor_is_not_forced() -> None:
    world = CalledActor()
    call = world.submit()
    with pytest.raises(ValueError, match=NO_FORCE):
        world.scene.core.cancel(call.ref, True, True)
    assert isinstance(world.scene.state_of(call.ref), GetTimeoutError) and not told(world.scene)
    # Nor was it cancelled in part.
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 1"


def test_anothers_call_of_an_actor_is_not_forced() -> None:
    scene = Scene()
    with pytest.raises(ValueError, match=NO_FORCE):
        scene.core.cancel(borrowed(scene, ACTOR), True, True)
    assert not told(scene)
    scene.core.cancel(borrowed(scene, ACTOR), False, True)
    assert len(told(scene)) == 1


def test_children_are_cancelled_and_nobody_else_by_force_where_that_is_possible() -> None:
    world = CalledActor()
    scene = world.scene
    parent = scene.context.get()
    first = world.submit()
    world.starts()
    child = scene.submit()
    scene.grant()
    other = TaskContext(b"other".ljust(8) + NO_ACTOR, TaskKind(JOB_ID))
    token = scene.context.enter(other)
    stranger = scene.submit()
    scene.context.leave(token)
    with scene.env.lock:
        scene.core.canceller.cancel_children(parent, force=True)
    assert {(asked.request.task_id, asked.request.force) for asked in told(scene)} == {
        (id_of(first.ref), False),
        (id_of(child), True),
    }
    assert all(asked.request.recursive for asked in told(scene))
    assert isinstance(scene.state_of(stranger), GetTimeoutError)


@pytest.mark.parametrize("force", [True, False])
def test_the_last_child_is_cancelled_like_the_first(force: bool) -> None:
    scene = Scene()
    refs = [scene.submit() for _ in range(3)]
    with scene.env.lock:
        scene.core.canceller.cancel_children(scene.context.get(), force)
    assert all(isinstance(scene.state_of(ref), TaskCancelledError) for ref in refs)


def test_a_cancelled_task_that_waits_lets_those_behind_it_go_on() -> None:
    scene = Scene()
    first, second = scene.submit(), scene.submit()
    scene.core.cancel(first, False, False)
    scene.grant(address_of(b"worker"))
    assert pushed(scene) == [id_of(second)]
    answer(scene, second, value(2))
    assert scene.state_of(second) == 2

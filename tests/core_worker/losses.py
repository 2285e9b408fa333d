"""Losses of objects, as a scene's core worker hears of them, and what it does then."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import core_worker_pb2, object_manager_pb2
from tests.core_worker.scene import (
    ELSEWHERE,
    Scene,
    Served,
    in_store,
    nodes,
)

THIRD = b"3" * 28
"""One more node."""
Found = object_manager_pb2.ObjectFound


def report(scene: Scene, object_id: bytes, *node_ids: bytes, gives_up: bool = False) -> Served:
    """A borrower asks where the object is, and says that these nodes did not give it. gives_up: however often
    they were asked."""
    request = core_worker_pb2.GetObjectStatusRequest(
        object_id=object_id, lost_node_ids=node_ids, gives_up=gives_up
    )
    return scene.ask("GetObjectStatus", request)


def tell_of_copy(scene: Scene, ref: ObjectRef[Any], node_id: bytes) -> None:
    """A borrower has it in the store of its node."""
    request = core_worker_pb2.ObjectLocationRequest(object_id=ref.binary(), node_id=node_id)
    scene.ask("AddObjectLocation", request)


def lose(scene: Scene, ref: ObjectRef[Any], node_id: bytes = ELSEWHERE) -> Served:
    """Its one copy is lost, with its node."""
    asked = report(scene, ref.binary(), node_id)
    for said in scene.wire.open("GetAllNodes"):
        with scene.env.lock:
            said.answer(nodes(ELSEWHERE, THIRD))
    scene.turn()
    return asked


def make(scene: Scene, *args: Any, node_id: bytes = ELSEWHERE, **options: Any) -> ObjectRef[Any]:
    """A task, which has put its value into the store of a node."""
    ref = scene.submit(*args, **options)
    scene.finish(ref, in_store(ref.binary(), node_id))
    return ref


def attempts(scene: Scene, ref: ObjectRef[Any]) -> list[int]:
    """Of the task, as they were pushed."""
    task_id = ref.task_id().binary()
    return [each.request.attempt for each in scene.wire.all("PushTask") if each.request.task_id == task_id]


def made_again(scene: Scene, ref: ObjectRef[Any], node_id: bytes = THIRD) -> None:
    scene.finish(ref, in_store(ref.binary(), node_id))


def places(scene: Scene, ref: ObjectRef[Any]) -> list[bytes]:
    found = scene.core.location_of(ref)
    assert found is not None
    return list(found[0])


def freed(scene: Scene) -> list[tuple[bytes, list[bytes]]]:
    scene.turn()
    said = [each for free in scene.wire.all("Free") for each in free.request.objects]
    return [(each.object_id, list(each.location_node_ids)) for each in said]


def kept(scene: Scene) -> tuple[int, int]:
    """How many finished tasks are kept, and how many bytes that takes."""
    scene.turn()
    scene.core.reference_counts()
    described = scene.core.describe()
    return described["tasks_kept"], described["bytes_kept"]


def error_of(asked: Served) -> Any:
    value = asked.answer.value
    assert value.metadata == serialization.ERROR
    return serialization.deserialize(value.metadata, value.data)

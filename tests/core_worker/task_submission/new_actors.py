"""Actors that a scene's process creates, and what the GCS says of them."""

from __future__ import annotations

from typing import Any

from ray_mono.common.exceptions import RayTaskError
from ray_mono.core_worker.options import ActorOptions
from ray_mono.core_worker.task_submission.actor_handles import HeldActor
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.core_worker.scene import Said, Scene, address_of, failure

CREATED = gcs_pb2.RegisterActorReply(created=True)
OTHERS = gcs_pb2.RegisterActorReply(actor=common_pb2.ActorInfo(actor_id=b"o" * 16))


def create(scene: Scene, *args: Any, **options: Any) -> HeldActor:
    code = Exported(common_pb2.FunctionDescriptor())
    flat = [each for value in args for each in (None, value)]
    return scene.core.create_actor(  # type: ignore[no-any-return]
        code, ActorOptions(class_name="Actor", **options), flat
    )


def call(scene: Scene, held: HeldActor) -> Any:
    (ref,) = scene.core.submit_actor_task(held, scene.core.method_template("method", "Actor"), [])
    return ref


def registration(scene: Scene) -> Said:
    (said,) = scene.wire.all("RegisterActor")
    return said


def dies(scene: Scene, **cause: Any) -> None:
    """The GCS says so to who watches."""
    (watch,) = scene.wire.open("WatchActor")
    info = common_pb2.ActorInfo(state=common_pb2.DEAD, version=9, death_cause=common_pb2.DeathCause(**cause))
    watch.answer(info)


def lives(scene: Scene) -> None:
    (watch,) = scene.wire.open("WatchActor")
    watch.answer(common_pb2.ActorInfo(state=common_pb2.ALIVE, version=2, address=address_of(b"actor")))


def raised(ref: Any) -> Any:
    return failure(RayTaskError("make", "its traceback", KeyError("no")), ref.binary())

"""Tasks on workers, in a scene: which went where, and what their workers say."""

from __future__ import annotations

from typing import Any

from ray_mono.common import ids
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.task_wire import task_ids_of
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from tests.core_worker.scene import ELSEWHERE, Reply, Said, Scene, address_of, value

NOT_STARTED = Reply(status=Reply.NOT_STARTED)
SECOND = address_of(b"second")
"""A worker besides the scene's own."""
GPU = ResourceSet.from_units({"GPU": 1})


def id_of(ref: ObjectRef[Any]) -> bytes:
    """Its task's."""
    return ref.binary()[: -ids.INDEX_BYTES]


def ids_of(*refs: ObjectRef[Any]) -> list[bytes]:
    return [id_of(ref) for ref in refs]


def asked(scene: Scene) -> list[Said]:
    """Lease requests without an answer."""
    return scene.wire.open("RequestWorkerLease")


def pushed(scene: Scene, to: str | None = None) -> list[bytes]:
    """The tasks that were pushed, in order."""
    return [said.request.task_id for said in scene.wire.all("PushTask", to)]


def push_of(scene: Scene, ref: ObjectRef[Any]) -> Said:
    """The latest of its task."""
    return [said for said in scene.wire.all("PushTask") if said.request.task_id == id_of(ref)][-1]


def answer(scene: Scene, ref: ObjectRef[Any], reply: Any = None) -> None:
    """Its worker answers: with the value 1 where nothing else is said."""
    push_of(scene, ref).answer(value(1) if reply is None else reply)


def in_store(ref: ObjectRef[Any], node_id: bytes = ELSEWHERE, size_bytes: int = 10**6) -> Any:
    """A task's answer: its value is large, and lies on that node."""
    return Reply(
        returns=[
            core_worker_pb2.ReturnObject(
                object_id=ref.binary(), in_plasma=True, size_bytes=size_bytes, node_id=node_id
            )
        ]
    )


def lose(scene: Scene, channel: str = "unix:worker") -> None:
    """The worker's process ends."""
    scene.wire.channels[channel].close()


def crash(scene: Scene, channel: str = "unix:worker") -> None:
    """The worker's process ends while it has one task, and its raylet says so."""
    lose(scene, channel)
    (told,) = scene.wire.open("LostWorker")
    told.answer(common_pb2.DeathCause(message="signal 9"))


def raylet_says(scene: Scene, begun: int | None) -> None:
    """How a worker ended that was lost, and how many of the lease's tasks had begun; None: it does not
    know."""
    (told,) = scene.wire.open("LostWorker")
    told.answer(common_pb2.DeathCause(message="signal 9"))
    (words,) = scene.wire.open("LastWords")
    words.answer(raylet_pb2.LastWordsReply(is_known=begun is not None, begun=begun or 0))


def num_queued(scene: Scene) -> int:
    """Tasks that wait for a worker."""
    return sum(queue["tasks_queued"] for queue in scene.core.describe()["scheduling"])


def lease_states(scene: Scene) -> list[str]:
    return [story for queue in scene.core.describe()["scheduling"] for story in queue["lease_states"]]


def short_tasks(scene: Scene, run_us: int = 1, **options: Any) -> None:
    """Tasks of the default kind ran so long here; no worker is leased, and nothing was said."""
    ref = scene.submit(**options)
    scene.grant()
    answer(scene, ref, value(0, run_us=run_us))
    scene.pass_time(1)
    assert not lease_states(scene)
    scene.wire.said[:] = scene.wire.all("WatchReclaims")


def a_worker_with(scene: Scene, count: int, **options: Any) -> list[ObjectRef[Any]]:
    """Has so many tasks pushed to one worker, whose like were short so far."""
    short_tasks(scene)
    refs = [scene.submit(**options) for _ in range(count)]
    scene.grant()
    assert pushed(scene) == ids_of(*refs)
    return refs


# ---- those of a `map`

AUTO = 0
"""How many travel together: as the core chooses."""


def frames(scene: Scene, to: str | None = None) -> list[Said]:
    return scene.wire.all("PushTasks", to)


def ids_in(frame: Said) -> list[bytes]:
    return task_ids_of(frame.request)


def other(first: int, reply: Any, count: int = 1) -> core_worker_pb2.PushTasksReply:
    """Answers of another kind than a small value."""
    return core_worker_pb2.PushTasksReply(first=first, reply=reply, count=count)


def outcomes(scene: Scene, refs: list[ObjectRef[Any]]) -> list[Any]:
    return [found if not isinstance(found := scene.state_of(ref), Exception) else type(found) for ref in refs]


def two_idle_workers(run_us: int, strategy: Any = None, **limits: Any) -> Scene:
    """Both ran tasks that took so long."""
    scene = Scene(task_overhead_us=0.0, **limits)
    refs = [scene.submit(strategy=strategy) for _ in range(2)]
    scene.grant()
    scene.grant(SECOND)
    for ref in refs:
        answer(scene, ref, value(0, run_us=run_us))
    scene.wire.said[:] = scene.wire.all("WatchReclaims")
    return scene

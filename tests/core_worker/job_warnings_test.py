"""What a process tells the driver of its job."""

from __future__ import annotations

from ray_mono.core_worker.context import JobContext, TaskContext, TaskKind
from ray_mono.core_worker.job_warnings import JobWarnings
from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.core_worker.scene import Scene


def test_a_warning_is_published_to_the_job_that_the_process_serves_by_then() -> None:
    scene = Scene()
    warnings = JobWarnings(scene.env, scene.context)
    scene.context.enter_job(JobContext(b"job2"), TaskContext(b"t" * 24, TaskKind(b"job2")))
    warnings.tell("kind", "text caf\udce9")
    said = scene.wire.last("Publish", "gcs")
    assert said.is_notice, "nobody waits for it"
    message = said.request.message
    assert (message.channel, message.key) == (gcs_pb2.ERROR, b"job2")
    error = common_pb2.ErrorInfo.FromString(message.payload)
    assert (error.job_id, error.type, error.message) == (b"job2", "kind", "text caf\\udce9")
    assert error.time_s == scene.reactor.wall_s()

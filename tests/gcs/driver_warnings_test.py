"""Which troubles of the cluster a driver is told of."""

from __future__ import annotations

import dataclasses

import pytest

from ray_mono.common.ids import JobID
from ray_mono.gcs.actor.actor_state import Actor, ActorLife, Death, DeathKind
from ray_mono.gcs.driver_warnings import DEATHS_TOLD_MAX, DriverWarnings
from ray_mono.protobuf import common_pb2
from tests.gcs.actor.actor_scene import registration

JOB = JobID.from_int(1)
KILLED = Death(DeathKind.WORKER_DIED, "worker pid 7 was killed by signal 9", signal=9)
ASKED = Death(DeathKind.EXITED, "exit_actor() was called")
TASKS = common_pb2.WorkerInfo(worker_id=b"w" * 28, job_id=JOB.binary(), ran="task f")
ANONYMOUS = "4f782f09-152c-49a5-968b-2ce63b471bca"


def driver_warnings() -> DriverWarnings:
    """Of a cluster where every job runs."""
    return DriverWarnings(lambda job_id: True)


def actor(ending: Death | None = None) -> Actor:
    return Actor(registration(1), ActorLife.ALIVE, 1, 0.0, ending=ending)


def test_a_worker_that_died_by_itself_is_told_to_its_job_with_what_it_ran() -> None:
    warning = driver_warnings().worker_died(TASKS, KILLED, None)
    assert warning is not None and warning.job_id == JOB.binary() and warning.type == "worker_died"
    assert "task f" in warning.message and KILLED.message in warning.message
    # A worker's own report does not name its job.
    warning = driver_warnings().worker_died(common_pb2.WorkerInfo(), KILLED, actor())
    assert warning is not None and warning.job_id == registration(1).job_id.binary()
    assert f"actor {registration(1).class_name}" in warning.message


@pytest.mark.parametrize(
    ("info", "death", "of_actor"),
    [
        (common_pb2.WorkerInfo(job_id=JOB.binary()), KILLED, None),
        (TASKS, dataclasses.replace(KILLED, kind=DeathKind.KILLED), None),
        (common_pb2.WorkerInfo(), ASKED, actor()),
        (common_pb2.WorkerInfo(), KILLED, actor(ending=ASKED)),
    ],
    ids=["idle", "killed by order", "left", "asked to end"],
)
def test_what_was_meant_is_no_news(info: common_pb2.WorkerInfo, death: Death, of_actor: Actor | None) -> None:
    assert driver_warnings().worker_died(info, death, of_actor) is None


def test_a_job_whose_workers_die_again_and_again_is_told_so_many_times() -> None:
    warnings = driver_warnings()
    told = [warnings.worker_died(TASKS, KILLED, None) for _ in range(DEATHS_TOLD_MAX + 5)]
    messages = [warning.message for warning in told if warning is not None]
    assert len(messages) == DEATHS_TOLD_MAX and "Further" in messages[-1] and "Further" not in messages[-2]
    other = common_pb2.WorkerInfo(job_id=JobID.from_int(2).binary(), ran="g")
    assert warnings.worker_died(other, KILLED, None) is not None


def test_a_job_without_a_driver_is_told_nothing_and_nothing_is_counted_for_it() -> None:
    running = {JOB}
    warnings = DriverWarnings(running.__contains__)
    assert warnings.worker_died(TASKS, KILLED, None) is not None
    running.remove(JOB)
    warnings.job_finished(JOB)
    # A detached actor outlives its job.
    for _ in range(DEATHS_TOLD_MAX + 1):
        assert warnings.worker_died(TASKS, KILLED, None) is None
        assert warnings.worker_died(common_pb2.WorkerInfo(), KILLED, actor()) is None
    running.add(JOB)
    first = warnings.worker_died(TASKS, KILLED, None)
    assert first is not None and "Further" not in first.message


def test_every_driver_is_told_of_a_node_that_is_gone_and_of_none_that_was_stopped() -> None:
    node = common_pb2.NodeInfo(node_id=b"n" * 28, host="10.0.0.7")
    node.death_cause.MergeFrom(
        common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message="it is deaf")
    )
    warning = driver_warnings().node_died(node)
    assert warning is not None and not warning.job_id
    assert (
        (b"n" * 28).hex() in warning.message
        and "10.0.0.7" in warning.message
        and "it is deaf" in warning.message
    )
    node.death_cause.kind = common_pb2.DeathCause.KILLED
    assert driver_warnings().node_died(node) is None


@pytest.mark.parametrize(
    ("is_detached", "namespace", "is_told"),
    [(True, ANONYMOUS, True), (True, "mine", False), (False, ANONYMOUS, False)],
)
def test_a_detached_actor_without_a_namespace_of_a_name_is_told(
    is_detached: bool, namespace: str, is_told: bool
) -> None:
    made = dataclasses.replace(registration(1), is_detached=is_detached, namespace=namespace)
    warning = driver_warnings().actor_registered(made)
    assert (warning is not None) == is_told
    assert warning is None or (namespace in warning.message and warning.job_id == made.job_id.binary())

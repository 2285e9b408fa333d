"""Jobs are counted, and end with their drivers."""

from __future__ import annotations

from ray_mono.common.ids import JobID, NodeID, WorkerID
from ray_mono.gcs.job_manager import JobManager
from ray_mono.protobuf import common_pb2

DRIVER, NODE = WorkerID(b"d" * 28), NodeID(b"n" * 28)


def add(manager: JobManager, driver: WorkerID = DRIVER) -> JobID:
    job = common_pb2.JobInfo(driver=common_pb2.Address(worker_id=driver.binary(), node_id=NODE.binary()))
    return JobID(manager.add(job, now_s=1.0).job_id)


def test_jobs_are_counted_from_one() -> None:
    manager = JobManager(10)
    assert [add(manager).int() for _ in range(3)] == [1, 2, 3]
    assert [row.start_time_s for row in manager.rows()] == [1.0] * 3


def test_a_job_ends_once() -> None:
    manager = JobManager(10)
    job_id = add(manager)
    row = manager.finish(job_id, now_s=2.0)
    assert row is not None and (row.is_finished, row.end_time_s) == (True, 2.0)
    assert manager.finish(job_id, now_s=3.0) is None
    assert manager.is_finished(job_id) and manager.is_known(job_id)


def test_a_job_is_not_forgotten_before_it_is_over() -> None:
    manager = JobManager(finished_jobs_max=1)
    outlived, *others = [add(manager) for _ in range(3)]
    for job_id in (outlived, *others):
        manager.finish(job_id, now_s=2.0)
    for job_id in others:
        assert manager.over(job_id) is not None
    assert manager.forget_oldest(0) == [others[0]]
    assert (
        manager.is_finished(outlived) and not manager.is_over(outlived) and manager.row(outlived) is not None
    )
    manager.over(outlived)
    assert manager.forget_oldest(0) == [others[1]] and manager.over(outlived) is None


def test_the_jobs_of_a_driver_and_of_a_node_are_the_running_ones() -> None:
    manager = JobManager(10)
    first, second = add(manager), add(manager, WorkerID(b"e" * 28))
    assert manager.of_driver(DRIVER) == [first]
    assert manager.of_node(NODE) == [first, second]
    manager.finish(first, now_s=2.0)
    assert manager.of_driver(DRIVER) == [] and manager.of_node(NODE) == [second]


def test_a_number_is_not_used_again_after_a_restart_even_when_its_job_is_forgotten() -> None:
    before = JobManager(finished_jobs_max=1)
    for _ in range(2):
        job_id = add(before)
        before.finish(job_id, now_s=2.0)
        before.over(job_id)
    assert before.forget_oldest(0) == [JobID.from_int(1)]
    after = JobManager(finished_jobs_max=1)
    after.restore(before.rows(), before.next_number)
    assert add(after).int() == 3
    assert after.is_finished(JobID.from_int(2)) and not after.is_known(JobID.from_int(1))

"""What the GCS keeps of task events, and what it drops."""

from __future__ import annotations

from ray_mono.gcs.task_event_log import TaskEventLog
from ray_mono.protobuf import gcs_pb2


def batch(job: bytes, count: int, dropped: int = 0) -> gcs_pb2.TaskEvents:
    return gcs_pb2.TaskEvents(job_id=job, name_indices=[0] * count, dropped=dropped)


def test_batches_come_back_in_order_and_by_job() -> None:
    log = TaskEventLog(events_max=100)
    batches = [batch(b"1", 2), batch(b"2", 1), batch(b"1", 3)]
    for one in batches:
        log.add(one, 0)
    assert log.of_job(b"") == batches
    assert log.of_job(b"1") == [batches[0], batches[2]]
    assert log.of_job(b"3") == [] and log.dropped == 0


def test_the_oldest_batches_go_at_the_limit_and_are_counted_with_what_workers_dropped() -> None:
    log = TaskEventLog(events_max=5)
    log.add(batch(b"1", 3), 0)
    log.add(batch(b"2", 2, dropped=7), 0)
    log.add(batch(b"3", 1), 0)
    assert [one.job_id for one in log.of_job(b"")] == [b"2", b"3"]
    assert log.dropped == 3 + 7


def test_batches_that_came_too_long_ago_go() -> None:
    log = TaskEventLog(events_max=100)
    for second in range(4):
        log.add(batch(b"%d" % second, 2), second)
    log.forget_oldest(before_s=2)
    assert [one.job_id for one in log.of_job(b"")] == [b"2", b"3"] and log.dropped == 4


def test_the_latest_batch_is_kept_however_large() -> None:
    log = TaskEventLog(events_max=5)
    log.add(batch(b"1", 3), 0)
    log.add(batch(b"2", 50), 0)
    assert [one.job_id for one in log.of_job(b"")] == [b"2"]

"""Rows of workers: the living, and the latest dead."""

from __future__ import annotations

from ray_mono.common.ids import NodeID, WorkerID
from ray_mono.gcs.worker_manager import WorkerManager
from ray_mono.protobuf import common_pb2

NODE = NodeID(b"n" * 28)
KILLED = common_pb2.DeathCause(kind=common_pb2.DeathCause.WORKER_DIED, message="killed", signal=9)


def info(number: int) -> common_pb2.WorkerInfo:
    return common_pb2.WorkerInfo(worker_id=bytes([number]) * 28, node_id=NODE.binary(), pid=number)


def test_a_death_adds_to_what_was_known_and_is_told_once() -> None:
    manager = WorkerManager(10)
    manager.add(info(1), now_s=1.0)
    row = manager.died(common_pb2.WorkerInfo(worker_id=bytes([1]) * 28, death_cause=KILLED), now_s=2.0)
    assert row is not None
    assert (row.pid, row.start_time_s, row.end_time_s, row.death_cause.signal, row.is_alive) == (
        1,
        1.0,
        2.0,
        9,
        False,
    )
    assert manager.died(info(1), now_s=3.0) is None
    assert manager.of_node(NODE) == []


def test_a_worker_whose_death_came_first_does_not_live() -> None:
    manager = WorkerManager(10)
    assert manager.died(info(1), now_s=1.0) is not None
    assert manager.add(info(1), now_s=2.0) is None
    assert manager.count_living() == 0


def test_the_workers_that_died_first_are_forgotten_first() -> None:
    manager = WorkerManager(dead_workers_max=1)
    for number in (1, 2):
        manager.died(info(number), now_s=float(number))
    assert manager.forget_oldest(0) == [WorkerID(bytes([1]) * 28)]
    assert not manager.is_dead(WorkerID(bytes([1]) * 28)) and manager.is_dead(WorkerID(bytes([2]) * 28))


def test_a_restored_manager_has_the_same_rows() -> None:
    before = WorkerManager(10)
    before.add(info(1), now_s=1.0)
    before.add(info(2), now_s=1.0)
    before.died(info(2), now_s=2.0)
    after = WorkerManager(10)
    after.restore(before.rows())
    assert after.rows() == before.rows()

"""Task events as trace events."""

from __future__ import annotations

import pytest

import ray_mono as ray
from ray_mono._private.profiling import profile
from ray_mono._private.timeline import trace_events
from ray_mono.common.ids import TaskID
from ray_mono.protobuf import gcs_pb2


def test_each_node_is_a_process_and_each_worker_a_thread() -> None:
    batches = [
        gcs_pb2.TaskEvents(
            job_id=b"j" * 4,
            worker_id=bytes([worker]) * 28,
            node_id=bytes([node]) * 28,
            host="10.0.0.1",
            pid=worker,
            names=["f", "g"],
            name_indices=[1, 0],
            start_time_s=[20.0 + worker, 10.0 + worker],
            end_time_s=[21.5 + worker, 10.25 + worker],
            task_ids=b"1" * TaskID.SIZE + b"2" * TaskID.SIZE,
        )
        for node, worker in ((1, 3), (1, 4), (2, 5))
    ]
    events = trace_events(batches)
    names = [event for event in events if event["ph"] == "M"]
    assert [event["name"] for event in names] == ["process_name"] * 2 + ["thread_name"] * 3
    calls = [event for event in events if event["ph"] == "X"]
    assert [(call["name"], call["ts"], call["dur"]) for call in calls] == [
        *(("f", (10.0 + worker) * 1e6, 0.25e6) for worker in (3, 4, 5)),
        *(("g", (20.0 + worker) * 1e6, 1.5e6) for worker in (3, 4, 5)),
    ]
    assert len({call["pid"] for call in calls}) == 2 and len({call["tid"] for call in calls}) == 3
    assert calls[0]["args"]["task_id"] == (b"2" * TaskID.SIZE).hex()


def test_a_timeline_needs_a_cluster_and_is_empty_in_local_mode() -> None:
    with pytest.raises(RuntimeError, match="timeline"):
        ray.timeline()
    with profile("outside of a cluster"):
        assert not ray.is_initialized()
    ray.init(local_mode=True)
    try:
        with profile("in local mode"):
            assert ray.timeline() == []
    finally:
        ray.shutdown()

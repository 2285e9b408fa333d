"""`timeline()` of a real cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray

pytestmark = pytest.mark.usefixtures("shared_cluster")
DEADLINE_S = 30.0
KEYS = {"cat", "name", "ph", "pid", "tid", "ts", "dur", "args"}


def calls_when(is_complete: Callable[[list[str]], bool]) -> list[dict[str, Any]]:
    """The calls of the timeline, once their names are complete: workers tell of them once a second."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        events = ray.timeline()
        assert events is not None
        calls = [event for event in events if event["ph"] == "X"]
        if is_complete([call["name"] for call in calls]):
            return calls
        assert time.monotonic() < deadline_s, events
        time.sleep(0.05)


def test_the_timeline_has_every_call_with_its_time_and_place() -> None:
    @ray.remote
    def timed() -> tuple[float, float, str, str]:
        began_s = time.time()
        context = ray.get_runtime_context()
        return began_s, time.time(), context.get_task_id() or "", context.get_worker_id()

    @ray.remote
    def failing() -> None:
        raise ValueError

    @ray.remote
    class Plain:
        def method(self) -> None: ...

    @ray.remote
    class Asynchronous:
        async def method(self) -> None: ...

    began_s, ended_s, task_id, worker_id = ray.get(timed.remote())
    actors = [Plain.remote(), Asynchronous.remote()]
    ray.get([actor.method.remote() for actor in actors])
    ray.wait([failing.remote()])
    wanted = {"timed", "failing", "Plain.__init__", "Plain.method", "Asynchronous.method"}
    calls = calls_when(lambda names: wanted <= {name.rpartition("<locals>.")[2] for name in names})
    assert all(call.keys() == KEYS for call in calls)
    (call,) = [call for call in calls if call["args"]["task_id"] == task_id]
    assert call["args"]["worker_id"] == worker_id
    assert call["args"]["node_id"] == ray.get_runtime_context().get_node_id()
    # A millisecond of difference between the two clocks.
    assert call["ts"] / 1e6 <= began_s + 0.001 and (call["ts"] + call["dur"]) / 1e6 >= ended_s - 0.001
    assert [call["ts"] for call in calls] == sorted(call["ts"] for call in calls)


def test_the_timeline_is_written_as_a_json_list_of_trace_events(tmp_path: Path) -> None:
    @ray.remote
    def written() -> None: ...

    ray.get(written.remote())
    calls_when(lambda names: any("written" in name for name in names))
    path = tmp_path / "timeline.json"
    assert ray.timeline(str(path)) is None
    events = json.loads(path.read_text())
    named = {
        (event["pid"], event["tid"])
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name"
    }
    calls = [event for event in events if event["ph"] == "X"]
    assert calls and {(call["pid"], call["tid"]) for call in calls} <= named
    assert all(isinstance(call["ts"], float) and call["dur"] >= 0 for call in calls)


def test_workers_that_end_in_order_leave_their_events() -> None:
    @ray.remote(max_calls=1)
    def last_words() -> None: ...

    ray.get([last_words.remote() for _ in range(3)])
    calls_when(lambda names: sum("last_words" in name for name in names) == 3)

"""`timeline()` of a real cluster."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono._private.profiling import profile
from tests.integration.bounded import GET_TIMEOUT_S
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("shared_cluster")
KEYS = {"cat", "name", "ph", "pid", "tid", "ts", "dur", "args"}


def calls_told(is_complete: Callable[[list[str]], bool]) -> list[dict[str, Any]]:
    """The calls of the timeline, which has all that were answered before it is asked for."""
    events = ray.timeline()
    assert events is not None
    calls = [event for event in events if event["ph"] == "X"]
    assert is_complete([call["name"] for call in calls]), events
    return calls


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
    calls = calls_told(lambda names: wanted <= {name.rpartition("<locals>.")[2] for name in names})
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
    calls_told(lambda names: any("written" in name for name in names))
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
    calls_told(lambda names: sum("last_words" in name for name in names) == 3)


def test_workers_that_the_cluster_kills_leave_their_events(tmp_path: Path) -> None:
    class Killed:
        def before_its_end(self) -> None: ...

    class KilledAsync:
        async def before_its_end(self) -> None: ...

    def stuck() -> None:
        with profile("before its end"):
            (tmp_path / "stuck").touch()
        time.sleep(GET_TIMEOUT_S)

    actors = [ray.remote(cls).remote() for cls in (Killed, KilledAsync)]
    ray.get([actor.before_its_end.remote() for actor in actors])
    for actor in actors:
        ray.kill(actor)
    cancelled = ray.remote(stuck).remote()
    wait_until((tmp_path / "stuck").exists, "it is stuck")
    ray.cancel(cancelled, force=True)
    ray.wait([cancelled])
    calls_told(lambda names: sum("before" in name and "end" in name for name in names) == 3)


def test_a_call_that_wants_no_events_is_not_in_the_timeline() -> None:
    @ray.remote(enable_task_events=False)
    def hidden() -> None: ...

    @ray.remote(enable_task_events=False)
    class Hidden:
        def method(self) -> None: ...

        @ray.method(enable_task_events=True)
        def shown_method(self) -> None: ...

    @ray.remote
    class Shown:
        async def shown_last(self) -> None: ...

        @ray.method(enable_task_events=False)
        async def hidden_method(self) -> None: ...

    actor, asynchronous = Hidden.remote(), Shown.remote()
    ray.get([hidden.remote(), actor.method.remote(), asynchronous.hidden_method.remote()])
    ray.get([actor.shown_method.remote(), asynchronous.shown_last.remote()])
    calls = calls_told(
        lambda names: {"shown_method", "shown_last"} <= {name.rpartition(".")[2] for name in names}
    )
    assert not [call["name"] for call in calls if "idden" in call["name"] and "shown" not in call["name"]]


def refuse(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def check_trace(text: str) -> list[dict[str, Any]]:
    """The complete events of a trace in the JSON array format, as strictly as viewers take it."""
    events = json.loads(text, parse_constant=refuse)
    assert isinstance(events, list)
    named: dict[tuple[int, int | None], str] = {}
    threads: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        assert event["ph"] in ("M", "X") and isinstance(event["name"], str) and event["name"], event
        for number in (event["pid"], event["tid"]):
            # They are shown as 32 bits, and 0 stands for none.
            assert type(number) is int and 0 <= number < 1 << 31, event
        if event["ph"] == "M":
            assert event.keys() == {"ph", "name", "pid", "tid", "args"}
            key = (event["pid"], None if event["name"] == "process_name" else event["tid"])
            assert event["name"] in ("process_name", "thread_name") and key not in named
            named[key] = event["args"]["name"]
            continue
        assert event.keys() == KEYS and isinstance(event["cat"], str) and isinstance(event["args"], dict)
        for time_us in (event["ts"], event["dur"]):
            assert type(time_us) in (int, float) and 0 <= time_us < 1 << 53, event
        assert (event["pid"], None) in named and (event["pid"], event["tid"]) in named, "names come first"
        threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for of_thread in threads.values():
        for one, other in itertools.pairwise(of_thread):
            assert one["ts"] + one["dur"] <= other["ts"], "viewers throw away what overlaps on one thread"
    assert all(isinstance(name, str) and name for name in named.values())
    return [event for of_thread in threads.values() for event in of_thread]


def test_a_viewer_takes_every_call_also_those_that_ran_beside_each_other(tmp_path: Path) -> None:
    class Meeting:
        """Its calls are under way until all have come."""

        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)
            self.come = 0
            self.all_come = asyncio.Event()

        def meet(self) -> None:
            self.barrier.wait()

        async def meet_later(self) -> None:
            self.come += 1
            if self.come == 4:
                self.all_come.set()
            await self.all_come.wait()

    class Threaded(Meeting):
        meet_later = None  # type: ignore[assignment]

    actors = [ray.remote(Threaded).options(max_concurrency=4).remote(), ray.remote(Meeting).remote()]
    ray.get([actors[0].meet.remote() for _ in range(4)] + [actors[1].meet_later.remote() for _ in range(4)])
    calls_told(lambda names: sum("meet" in name for name in names) == 8)
    path = tmp_path / "timeline.json"
    ray.timeline(path)
    met = [call for call in check_trace(path.read_text()) if "meet" in call["name"]]
    assert len(met) == 8 and len({call["tid"] for call in met}) == 8


def test_a_span_shows_what_the_program_says_of_it(tmp_path: Path) -> None:
    @ray.remote
    def spanning() -> str | None:
        with profile(
            "loading",
            {"name": "the table", "cname": "good", "rows": 3, "path": tmp_path, "part": float("nan")},
        ):
            pass
        filled: dict[str, Any] = {}
        with profile("filled", filled):
            filled["late"] = "yes"
        return ray.get_runtime_context().get_task_id()

    with profile("of the driver \ud800", {"long": "x" * 10_000}):
        task_id = ray.get(spanning.remote())
    calls = calls_told(lambda names: {"the table", "filled", "of the driver ?"} <= set(names))
    ids = ("task_id", "job_id", "node_id", "worker_id")
    told = {
        call["name"]: (
            call["cat"],
            call.get("cname"),
            {k: v for k, v in call["args"].items() if k not in ids},
        )
        for call in calls
    }
    said = {"name": "the table", "cname": "good", "rows": 3, "path": str(tmp_path), "part": "nan"}
    assert told["the table"] == ("loading", "good", said)
    assert told["filled"] == ("filled", None, {"late": "yes"})
    assert told["of the driver ?"] == ("of the driver ?", None, {})
    assert {call["args"]["task_id"] for call in calls if call["cat"] in ("loading", "filled")} == {task_id}


def test_a_span_that_is_called_no_text_is_refused_and_spoils_nothing() -> None:
    @ray.remote
    def misnamed() -> None:
        with profile(3):  # type: ignore[arg-type]
            pass

    with pytest.raises(TypeError, match="event_type must be a string, got 3 of type int"):
        ray.get(misnamed.remote())
    with (
        pytest.raises(TypeError, match="extra_data must be a dict or None, got 'text'"),
        profile("a", "text"),
    ):  # type: ignore[arg-type]
        pass
    calls_told(lambda names: any(name.endswith("misnamed") for name in names))

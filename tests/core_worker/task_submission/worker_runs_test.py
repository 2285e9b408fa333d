"""Functions that every worker runs once: before any task that was submitted after their export, however late publications are."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.call_template import CallTemplate, Peer
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.protobuf import common_pb2, core_worker_pb2

JOB = b"job1"
ran: list[tuple[str, str]] = []
release = threading.Event()


class Gcs:
    """A KV, and publications that nobody gets."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.published: list[bytes] = []

    def KvPut(self, request: Any, timeout_s: float) -> Any:
        added = request.key not in self.rows
        self.rows.setdefault(request.key, request.value)
        return SimpleNamespace(added=added)

    def KvGet(self, request: Any, timeout_s: float) -> Any:
        return SimpleNamespace(value=self.rows[request.key])

    def KvKeys(self, request: Any, timeout_s: float) -> Any:
        return SimpleNamespace(keys=list(self.rows))

    def Publish(self, request: Any, timeout_s: float) -> None:
        self.published.append(request.message.payload)


def process(gcs: Gcs, name: str) -> WorkerRuns:
    core: Any = SimpleNamespace(gcs=gcs, job_id=JOB, lock=threading.RLock(), name=name)
    return WorkerRuns(core)


def note(info: dict[str, Any]) -> None:
    ran.append((info["worker"].name, "note"))


def other(info: dict[str, Any]) -> None:
    ran.append((info["worker"].name, "other"))


class Worker:
    """A worker as its caller sees it, and what it does with each request."""

    def __init__(self, gcs: Gcs, name: str) -> None:
        self.runs = process(gcs, name)
        self.num_with_spec = 0

    def peer_of(self, caller: WorkerRuns) -> Peer:
        peer = Peer(SimpleNamespace(), b"worker", caller.known)  # type: ignore[arg-type]
        peer.stub = SimpleNamespace(PushTask=SimpleNamespace(start=self._receive))  # type: ignore[assignment]
        return peer

    def _receive(self, request: Any, on_done: Any, on_part: Any) -> None:
        if request.HasField("spec"):
            self.num_with_spec += 1
            self.runs.learn(request.run_first)
        self.runs.run_pending()


def push(peer: Peer, template: CallTemplate) -> None:
    request = core_worker_pb2.PushTaskRequest(template_id=template.number)
    peer.push(template, request, None)
    assert not request.HasField("spec") and not request.run_first


def template() -> CallTemplate:
    return CallTemplate(common_pb2.TaskSpec(name="f"), 1)


def test_an_export_reaches_a_worker_with_the_next_task_and_once() -> None:
    ran.clear()
    gcs, call = Gcs(), template()
    driver, worker = process(gcs, "driver"), Worker(gcs, "worker")
    peer = worker.peer_of(driver)
    push(peer, call)
    driver.export(note)
    driver.export(other)
    assert ran == [("driver", "note"), ("driver", "other")]
    for _ in range(3):
        push(peer, call)
    assert ran[2:] == [("worker", "note"), ("worker", "other")]
    # The others carried their template's number only.
    assert worker.num_with_spec == 2
    # What comes late after all changes nothing.
    worker.runs.learn(gcs.published)
    worker.runs.run_pending()
    assert len(ran) == 4


def test_a_worker_tells_those_that_it_calls_itself() -> None:
    ran.clear()
    gcs, call = Gcs(), template()
    driver, first, second = process(gcs, "driver"), Worker(gcs, "first"), Worker(gcs, "second")
    driver.export(note)
    push(first.peer_of(driver), call)
    push(second.peer_of(first.runs), call)
    assert ran == [("driver", "note"), ("first", "note"), ("second", "note")]


def test_who_exports_does_not_run_it_a_second_time() -> None:
    ran.clear()
    gcs = Gcs()
    worker = process(gcs, "worker")
    worker.export(note)
    worker.read(JOB)
    worker.run_pending()
    assert ran == [("worker", "note")]


def slow(info: dict[str, Any]) -> None:
    if info["worker"].name == "worker":
        release.wait(30)
    ran.append((info["worker"].name, "slow"))


def test_a_task_in_another_thread_waits_until_the_function_has_run() -> None:
    ran.clear()
    release.clear()
    gcs = Gcs()
    process(gcs, "driver").export(slow)
    runs = process(gcs, "worker")
    runs.read(JOB)

    def task() -> None:
        runs.run_pending()
        ran.append((threading.current_thread().name, "task"))

    threads = [threading.Thread(target=task, name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    assert ran == [("driver", "slow")]
    release.set()
    for thread in threads:
        thread.join()
    assert ran[1] == ("worker", "slow") and len(ran) == 4

"""Functions that every worker runs once: before any task that was submitted after their export, however late
publications are."""

from __future__ import annotations

import threading
from typing import Any

from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.peers import Peer
from ray_mono.core_worker.task_submission.job_code import RUNS
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from tests.core_worker.scene import JOB_ID, OWNER, Scene
from tests.core_worker.task_submission.tasks import answer, push_of

ran: list[tuple[str, str]] = []
release = threading.Event()


class Gcs:
    """A KV, and publications that nobody gets."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.published: list[bytes] = []

    def _put(self, request: Any) -> Any:
        assert request.namespace == RUNS and not request.overwrite
        added = request.key not in self.rows
        self.rows.setdefault(request.key, request.value)
        return gcs_pb2.KvPutReply(added=added)

    def _publish(self, request: Any) -> Any:
        assert request.message.channel == gcs_pb2.RUN_ON_WORKERS and request.message.key == JOB_ID
        self.published.append(request.message.payload)
        return common_pb2.Empty()

    def serve(self, scene: Scene) -> None:
        scene.wire.replies.update(
            KvPut=self._put,
            KvGet=lambda request: gcs_pb2.KvGetReply(found=True, value=self.rows[request.key]),
            KvKeys=lambda request: gcs_pb2.KvKeysReply(
                keys=[key for key in self.rows if key.startswith(request.prefix)]
            ),
            Publish=self._publish,
            GetJob=lambda request: common_pb2.JobInfo(job_id=request.job_id),
        )


class Process:
    """One that exports, submits, and runs what others export."""

    def __init__(self, gcs: Gcs, name: str) -> None:
        self.name = name
        self.scene = Scene()
        gcs.serve(self.scene)
        self.runs = WorkerRuns(self.scene.env, self.scene.context, self, self.scene.core.job_code, [])
        self.peers: dict[str, Peer] = {}

    def join(self) -> None:
        """Becomes its job's, as a worker does."""
        self.runs.learn(self.scene.core.job_code.setup(JOB_ID, OWNER).run_keys)

    def push_to(self, worker: Process, times: int = 1) -> list[bool]:
        """Tasks of this process's on that one. Whether each carried its template, and so news."""
        peer = self._peer_of(worker)
        carried = []
        for _ in range(times):
            request = self._push(peer)
            carried.append(request.HasField("spec"))
            worker.runs.learn(request.run_first)
            worker.runs.run_pending(OWNER)
        return carried

    def _peer_of(self, worker: Process) -> Peer:
        channel: Any = self.scene.wire.connect(worker.name)
        return self.peers.setdefault(worker.name, Peer(channel, worker.name.encode(), self.runs.known))

    def _push(self, peer: Peer) -> Any:
        request = core_worker_pb2.PushTaskRequest(template_id=1)
        template = CallTemplate(common_pb2.TaskSpec(name="f"), 1)
        peer.push_request(template, request, lambda reply, error: None)
        assert not request.HasField("spec") and not request.run_first
        return self.scene.wire.last("PushTask").request


def note(info: dict[str, Any]) -> None:
    ran.append((info["worker"].name, "note"))


def other(info: dict[str, Any]) -> None:
    ran.append((info["worker"].name, "other"))


def names_its_worker(info: dict[str, Any]) -> None:
    ran.append((type(info["worker"]).__name__, "is given"))


def fails(info: dict[str, Any]) -> None:
    if info["worker"].name != "driver":
        raise ValueError("on this worker")


def test_an_export_reaches_a_worker_with_the_next_task_and_once() -> None:
    ran.clear()
    gcs = Gcs()
    driver, worker = Process(gcs, "driver"), Process(gcs, "worker")
    assert driver.push_to(worker) == [True]
    driver.runs.export(note)
    driver.runs.export(other)
    assert ran == [("driver", "note"), ("driver", "other")]
    # The first carries what is new, the others their template's number only.
    assert driver.push_to(worker, 3) == [True, False, False]
    assert ran[2:] == [("worker", "note"), ("worker", "other")]
    # What comes late after all changes nothing.
    assert len(gcs.published) == 2
    worker.runs.learn(gcs.published)
    worker.runs.run_pending(OWNER)
    assert len(ran) == 4


def test_a_worker_tells_those_that_it_calls_itself() -> None:
    ran.clear()
    gcs = Gcs()
    driver, first, second = Process(gcs, "driver"), Process(gcs, "first"), Process(gcs, "second")
    driver.runs.export(note)
    driver.push_to(first)
    first.push_to(second)
    assert ran == [("driver", "note"), ("first", "note"), ("second", "note")]


def test_who_exports_does_not_run_it_a_second_time() -> None:
    ran.clear()
    worker = Process(Gcs(), "worker")
    worker.runs.export(note)
    worker.join()
    worker.runs.run_pending(OWNER)
    assert ran == [("worker", "note")]


def test_of_one_function_only_the_first_export_is_published() -> None:
    gcs = Gcs()
    for name in ("first", "second"):
        Process(gcs, name).runs.export(note)
    assert len(gcs.published) == 1


def test_a_worker_that_joins_later_reads_what_was_exported_for_its_job() -> None:
    ran.clear()
    gcs = Gcs()
    Process(gcs, "driver").runs.export(note)
    gcs.rows[b"job2" + b"x"] = b"another job's"
    worker = Process(gcs, "worker")
    worker.join()
    worker.runs.run_pending(OWNER)
    assert ran == [("driver", "note"), ("worker", "note")]


def test_what_was_exported_while_the_gcs_was_away_is_read_when_it_is_back() -> None:
    ran.clear()
    gcs = Gcs()
    worker = Process(gcs, "worker")
    worker.join()
    Process(gcs, "driver").runs.export(note)
    worker.runs.read_again(JOB_ID)
    worker.runs.run_pending(OWNER)
    assert ran == [("driver", "note"), ("worker", "note")]


def test_a_function_that_fails_on_a_worker_holds_back_nothing() -> None:
    ran.clear()
    gcs = Gcs()
    driver, worker = Process(gcs, "driver"), Process(gcs, "worker")
    driver.runs.export(fails)
    driver.runs.export(note)
    driver.push_to(worker)
    assert ran == [("driver", "note"), ("worker", "note")]


def slow(info: dict[str, Any]) -> None:
    if info["worker"].name == "worker":
        release.wait(30)
    ran.append((info["worker"].name, "slow"))


def test_a_task_in_another_thread_waits_until_the_function_has_run() -> None:
    ran.clear()
    release.clear()
    gcs = Gcs()
    Process(gcs, "driver").runs.export(slow)
    worker = Process(gcs, "worker")
    worker.join()
    runs = worker.runs

    def task() -> None:
        runs.run_pending(OWNER)
        ran.append((threading.current_thread().name, "task"))

    threads = [threading.Thread(target=task, name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    assert ran == [("driver", "slow")]
    release.set()
    for thread in threads:
        thread.join()
    assert ran[1] == ("worker", "slow") and len(ran) == 4


def test_a_core_worker_names_its_exports_ahead_of_its_next_task() -> None:
    ran.clear()
    scene = Scene()
    Gcs().serve(scene)
    first = scene.submit()
    scene.grant()
    answer(scene, first)
    scene.core.run_function_on_all_workers(names_its_worker)
    assert ran == [("CoreWorker", "is given")]
    second, third = scene.submit(), scene.submit()
    answer(scene, second)
    requests = [push_of(scene, ref).request for ref in (first, second, third)]
    assert [len(request.run_first) for request in requests] == [0, 1, 0]

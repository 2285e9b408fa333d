"""A worker needs code, and what its job sets up: the GCS has both, and so have those whose tasks it runs."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.core_worker.context import JobContext
from ray_mono.core_worker.task_submission import job_code
from ray_mono.core_worker.task_submission.job_code import PATIENCE_S, JobSetup
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import JOB_ID, LOST, OWNER, Scene, Served

FUN = b"fun"
CALLER = "unix:owner"


class Worker:
    """Its caller is at CALLER."""

    def __init__(self) -> None:
        self.scene = Scene(is_driver=False)
        self.wire = self.scene.wire
        self.started_s = self.scene.reactor.now_s

    def then(self, *happen: Any) -> None:
        """While it waits: first for the GCS alone, and then for both."""
        self.scene.reactor.meanwhile += happen

    def be_silent(self) -> None:
        """The GCS has its time and says nothing."""
        self.scene.pass_time(PATIENCE_S)

    def fetch(self) -> bytes | None:
        return self.scene.core.job_code.fetch(FUN, b"key", OWNER)

    @property
    def asked_caller(self) -> list[str]:
        return [each.method for each in self.wire.said if each.to == CALLER]


def test_code_comes_from_the_gcs_and_nobody_else_is_asked() -> None:
    worker = Worker()
    worker.wire.replies["KvGet"] = lambda request: gcs_pb2.KvGetReply(found=True, value=b"code")
    assert worker.fetch() == b"code"
    assert worker.asked_caller == []


def test_where_the_gcs_is_silent_the_caller_is_asked() -> None:
    worker = Worker()
    worker.wire.replies["GetExportedCode"] = lambda request: core_worker_pb2.GetExportedCodeReply(
        found=request.key == b"key", value=b"code"
    )
    assert worker.fetch() == b"code"
    assert worker.scene.reactor.now_s == worker.started_s + PATIENCE_S
    # The answer of a GCS that wakes up later changes nothing.
    worker.wire.last("KvGet").answer(gcs_pb2.KvGetReply())


def test_what_the_gcs_has_not_got_yet_the_caller_has() -> None:
    worker = Worker()
    worker.wire.replies.update(
        KvGet=lambda request: gcs_pb2.KvGetReply(found=False),
        GetExportedCode=lambda request: core_worker_pb2.GetExportedCodeReply(found=True, value=b"code"),
    )
    assert worker.fetch() == b"code"
    assert worker.scene.reactor.now_s == worker.started_s


@pytest.mark.parametrize("is_gone", [False, True], ids=["it has not got it", "it is gone"])
def test_a_caller_that_cannot_help_leaves_it_to_the_gcs(is_gone: bool) -> None:
    worker = Worker()

    def caller_answers() -> None:
        said = worker.wire.last("GetExportedCode", CALLER)
        said.fail() if is_gone else said.answer(core_worker_pb2.GetExportedCodeReply())

    def gcs_answers() -> None:
        worker.wire.last("KvGet").answer(gcs_pb2.KvGetReply(found=True, value=b"code"))

    worker.then(worker.be_silent)
    waits = iter([caller_answers, gcs_answers])
    worker.wire.heard = lambda said: worker.then(*waits) if said.method == "GetExportedCode" else None
    assert worker.fetch() == b"code"


def test_code_that_nobody_has_is_none() -> None:
    worker = Worker()
    worker.wire.replies.update(
        KvGet=lambda request: gcs_pb2.KvGetReply(found=False),
        GetExportedCode=lambda request: core_worker_pb2.GetExportedCodeReply(found=False),
    )
    assert worker.fetch() is None


def test_where_neither_answers_the_wait_ends() -> None:
    worker = Worker()
    with pytest.raises(RpcError, match="neither the GCS nor the task's caller told the key 6b6579") as caught:
        worker.fetch()
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED


def test_what_the_gcs_refuses_is_refused_and_nobody_else_is_asked() -> None:
    worker = Worker()
    refusal = RpcError(StatusCode.INVALID_ARGUMENT, "job_id must be 4 bytes long")
    worker.then(lambda: worker.wire.last("GetJob").fail(refusal))
    with pytest.raises(RpcError, match="4 bytes"):
        worker.scene.core.job_code.setup(JOB_ID, OWNER)
    assert worker.asked_caller == [] and worker.scene.reactor.now_s == worker.started_s


@pytest.mark.parametrize("is_known", [True, False])
def test_a_job_that_a_gcs_on_an_empty_store_does_not_know_yet_is_set_up_as_the_caller_says(
    is_known: bool,
) -> None:
    worker = Worker()
    not_known = RpcError(StatusCode.NOT_FOUND, "job 6a6f6231 is not known")
    setup = core_worker_pb2.GetJobSetupReply(found=is_known, namespace="of the caller", config_json="{}")
    worker.wire.replies["GetJobSetup"] = lambda request: setup
    worker.then(lambda: worker.wire.last("GetJob").fail(not_known))
    if is_known:
        assert worker.scene.core.job_code.setup(JOB_ID, OWNER) == JobSetup("of the caller", "{}", [])
        return
    with pytest.raises(RpcError, match="is not known"):
        worker.scene.core.job_code.setup(JOB_ID, OWNER)


def test_a_gcs_that_is_gone_with_the_caller_is_told_of() -> None:
    worker = Worker()
    worker.wire.gone.add(CALLER)
    worker.then(lambda: worker.wire.last("KvGet").fail(LOST))
    with pytest.raises(RpcError, match="lost"):
        worker.fetch()


def test_a_job_is_set_up_as_the_gcs_says_or_the_caller() -> None:
    worker = Worker()
    worker.wire.replies.update(
        GetJob=lambda request: common_pb2.JobInfo(namespace="of the row", config_json="{}"),
        KvKeys=lambda request: gcs_pb2.KvKeysReply(keys=[b"run me"]),
    )
    assert worker.scene.core.job_code.setup(JOB_ID, OWNER) == JobSetup("of the row", "{}", [b"run me"])
    alone = Worker()
    alone.wire.replies["GetJobSetup"] = lambda request: core_worker_pb2.GetJobSetupReply(
        found=True, namespace="of the caller", config_json="{}", run_keys=[b"run me"]
    )
    assert alone.scene.core.job_code.setup(JOB_ID, OWNER) == JobSetup("of the caller", "{}", [b"run me"])


def asked_for_code(scene: Scene, name: bytes) -> Any:
    served = Served()
    request = core_worker_pb2.GetExportedCodeRequest(namespace=FUN, key=name)
    with scene.env.lock:
        scene.servicer.GetExportedCode(request, served)  # type: ignore[arg-type]
    return served.answer


def test_who_exported_code_gives_it_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.wire.replies["KvPut"] = lambda request: gcs_pb2.KvPutReply(added=True)
    monkeypatch.setattr(job_code, "KEPT_BYTES_MAX", 10)
    for name, code in ((b"1", b"12345"), (b"2", b"12345"), (b"2", b"12345")):
        scene.core.job_code.export(FUN, name, code)
    assert [asked_for_code(scene, name).value for name in (b"1", b"2")] == [b"12345"] * 2
    # Above the limit the oldest go.
    scene.core.job_code.export(FUN, b"3", b"1")
    assert [asked_for_code(scene, name).found for name in (b"1", b"2", b"3")] == [False, True, True]


def test_a_gcs_that_is_silent_gets_the_code_later_and_nobody_waits_for_that() -> None:
    scene = Scene()
    scene.core.job_code.export(FUN, b"1", b"code")
    assert scene.wire.last("KvPut").request.value == b"code"
    assert asked_for_code(scene, b"1").value == b"code"


def test_a_gcs_that_refuses_code_is_heard() -> None:
    scene = Scene()
    over = RpcError(StatusCode.FAILED_PRECONDITION, "job 6a6f6231 has finished")
    scene.reactor.meanwhile.append(lambda: scene.wire.last("KvPut").fail(over))
    with pytest.raises(RpcError, match="has finished"):
        scene.core.job_code.export(FUN, b"1", b"code")


def test_a_process_tells_of_its_own_job_only() -> None:
    scene = Scene()
    scene.context.enter_job(
        JobContext(JOB_ID, "namespace", config_json='{"sys_path": []}'), scene.context.get()
    )
    answers = []
    for job_id in (JOB_ID, b"job2"):
        served = Served()
        with scene.env.lock:
            request = core_worker_pb2.GetJobSetupRequest(job_id=job_id)
            scene.servicer.GetJobSetup(request, served)  # type: ignore[arg-type]
        answers.append(served.answer)
    assert [answer.found for answer in answers] == [True, False]
    assert answers[0].namespace == "namespace" and answers[0].config_json == '{"sys_path": []}'

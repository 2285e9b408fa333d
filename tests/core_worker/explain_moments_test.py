"""What `explain` says where things move on between two answers."""

from __future__ import annotations

from typing import Any

from ray_mono.protobuf import common_pb2, gcs_pb2
from tests.core_worker.scene import Scene


def test_where_what_was_waited_for_has_ended_meanwhile_it_is_asked_again() -> None:
    scene = Scene()
    answers = [common_pb2.WaitReason(code=code, text=f"f is {code}") for code in ("UNKNOWN", "RUNNING")]
    scene.wire.replies["Explain"] = lambda request: answers.pop(0)
    ref = scene.submit()
    explanation = scene.core.explain("object", ref.binary())
    assert explanation.code == "RUNNING" and not explanation.is_stuck and not answers


def test_what_nobody_knows_is_told_after_a_few_questions() -> None:
    scene = Scene()
    scene.wire.replies["Explain"] = lambda request: common_pb2.WaitReason(code="UNKNOWN", text="f is lost")
    assert scene.core.explain("object", scene.submit().binary()).code == "UNKNOWN"


def test_what_has_ended_since_it_was_listed_does_not_wait() -> None:
    scene = Scene()
    ended = common_pb2.WaitSubject(
        kind=common_pb2.WaitSubject.TASK, id=b"t" * 24, name="f()", at=scene.core.env.address
    )

    def listed(request: Any) -> common_pb2.WaitingReply:
        return common_pb2.WaitingReply(alike=[common_pb2.WaitingReply.Alike(example=ended, count=1)])

    scene.wire.replies["GetAllWorkers"] = lambda request: gcs_pb2.GetAllWorkersReply()
    scene.wire.replies["ListWaiting"] = listed
    assert str(scene.core.explain_all()) == "Nothing waits."


def test_a_long_chain_is_one_short_sentence_and_has_all_links() -> None:
    scene = Scene()
    scene.wire.replies["Explain"] = lambda request: common_pb2.WaitReason(code="INFEASIBLE", text="f is here")
    ref = scene.submit(name="f0")
    for place in range(1, 20):
        ref = scene.submit(ref, name=f"f{place}")
    told = scene.core.explain("object", ref.binary())
    assert told.is_stuck and len(told.links) > 20 and len(told.text) < 900
    assert "is made by f19(); " in told.text and "; and so on, over 30 more; " in told.text
    assert told.text.endswith("; f is here.")

"""A driver whose get or wait lasts long is told why, if nothing that runs will end it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError
from ray_mono.core_worker.objects.long_waits import LOOKED_AT_MAX
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.object_manager_pb2 import GetReply
from ray_mono.protobuf.object_manager_pb2 import ObjectFound as Found
from tests.core_worker.scene import ELSEWHERE, Scene, in_store


def warnings_of(scene: Scene) -> list[str]:
    said = [each.request.message.payload for each in scene.wire.all("Publish")]
    return [common_pb2.ErrorInfo.FromString(payload).message for payload in said]


def infeasible(request: Any) -> common_pb2.WaitReason:
    return common_pb2.WaitReason(code="INFEASIBLE", text="f needs a moon", unblock="start one")


@pytest.mark.parametrize("how", ["get", "wait"])
def test_a_wait_that_nothing_will_end_is_told_at_each_doubling(how: str) -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = infeasible
    ref = scene.submit()
    if how == "get":
        with pytest.raises(GetTimeoutError):
            scene.core.get([ref], 10.0)
    else:
        assert scene.core.wait([ref], 1, 10.0, False) == ([], [ref])
    told = warnings_of(scene)
    assert [text.split(":")[0] for text in told] == [f"Waiting for more than {each} s" for each in (1, 2, 4)]
    assert "f needs a moon. To unblock it: start one." in told[0]


def test_a_wait_for_what_runs_is_not_told() -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = lambda request: common_pb2.WaitReason(code="RUNNING", text="f runs")
    ref = scene.submit()
    with pytest.raises(GetTimeoutError):
        scene.core.get([ref], 10.0)
    assert scene.wire.all("Explain") and not warnings_of(scene)


def test_a_short_wait_asks_nobody() -> None:
    scene = Scene(wait_warning_s=1.0)
    ref = scene.submit()
    with pytest.raises(GetTimeoutError):
        scene.core.get([ref], 0.5)
    assert not scene.wire.all("Explain")


def told_by_name(request: Any) -> common_pb2.WaitReason:
    """f is stuck, and other functions run."""
    name = request.subject.name
    return (
        infeasible(request) if name == "f()" else common_pb2.WaitReason(code="RUNNING", text=f"{name} runs")
    )


def test_a_get_of_several_is_told_of_the_one_that_is_stuck() -> None:
    scene = Scene(wait_warning_s=1.0)
    runs, stuck = scene.submit(name="g"), scene.submit()
    scene.wire.replies["Explain"] = told_by_name
    with pytest.raises(GetTimeoutError):
        scene.core.get([runs, stuck], 1.5)
    (told,) = warnings_of(scene)
    assert "(one of 2 that are missing): " in told and "f needs a moon" in told


def test_a_get_of_very_many_is_told_how_many_of_them_are_looked_at() -> None:
    scene = Scene(wait_warning_s=1.0)
    refs = [scene.submit() for _ in range(LOOKED_AT_MAX + 5)]
    scene.wire.replies["Explain"] = infeasible
    with pytest.raises(GetTimeoutError):
        scene.core.get(refs, 1.5)
    (told,) = warnings_of(scene)
    looked_at = f"of which {LOOKED_AT_MAX} are looked at"
    assert f"(one of {LOOKED_AT_MAX + 5} that are missing, {looked_at}): " in told


def test_a_wait_for_one_of_several_is_not_told_while_another_runs() -> None:
    scene = Scene(wait_warning_s=1.0)
    stuck, runs = scene.submit(), scene.submit(name="g")
    scene.wire.replies["Explain"] = told_by_name
    scene.core.wait([stuck, runs], 1, 1.5, False)
    assert not warnings_of(scene)
    scene.core.wait([stuck, runs], 2, 1.5, False)
    assert len(warnings_of(scene)) == 1


@pytest.mark.parametrize("how", ["get", "wait"])
def test_a_wait_for_a_copy_that_does_not_come_is_told(how: str) -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = infeasible
    ref = scene.submit()
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    if how == "get":
        not_here = GetReply(objects=[Found(object_id=ref.binary(), state=Found.NOT_HERE)])
        scene.reactor.call_later(3.5, lambda: scene.wire.open("Get")[0].answer(not_here))
        with pytest.raises(GetTimeoutError):
            scene.core.get([ref], 3.5)
    else:
        assert scene.core.wait([ref], 1, 3.5, True) == ([], [ref])
    assert len(warnings_of(scene)) >= 2 and "f needs a moon" in warnings_of(scene)[0]

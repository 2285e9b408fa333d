"""Nodes that live and do not give an object, however often they are asked: who is told what."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mono.common.exceptions import ObjectReconstructionFailedError
from ray_mono.protobuf import object_manager_pb2
from tests.core_worker.losses import THIRD, Found, attempts, error_of, make, places, report, tell_of_copy
from tests.core_worker.scene import ELSEWHERE, NODE_ID, Scene, nodes


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_who_has_asked_a_node_often_that_lives_is_told_why_and_nobody_else_is(scene: Scene) -> None:
    ref = make(scene, max_retries=0)
    error = error_of(report(scene, ref.binary(), ELSEWHERE, gives_up=True))
    assert type(error) is ObjectReconstructionFailedError
    assert error.reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED"
    assert places(scene, ref) == [ELSEWHERE]


def test_who_has_asked_a_node_often_gets_what_can_be_made_again_or_lies_elsewhere(scene: Scene) -> None:
    ref = make(scene, max_retries=0)
    tell_of_copy(scene, ref, THIRD)
    asked = report(scene, ref.binary(), ELSEWHERE, gives_up=True)
    assert list(asked.answer.location_node_ids) == [THIRD]
    other = make(scene, max_retries=1)
    asked = report(scene, other.binary(), ELSEWHERE, gives_up=True)
    scene.wire.last("GetAllNodes").answer(nodes(alive=[NODE_ID, ELSEWHERE]))
    scene.turn()
    assert attempts(scene, other) == [0, 1] and not asked.replies


def test_an_owner_that_has_asked_a_node_often_that_lives_is_told_why(tmp_path: Path) -> None:
    scene = Scene(store_file=tmp_path / "store", fetch_attempts_max=1)
    ref = make(scene, max_retries=0)
    scene.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(
        objects=[Found(object_id=ref.binary(), state=Found.LOST)]
    )
    with pytest.raises(ObjectReconstructionFailedError, match="max_retries"):
        scene.core.get([ref], None)
    assert places(scene, ref) == [ELSEWHERE]

"""put: ids, where a value goes, and what lives with it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ray_mono.common import ids
from ray_mono.core_worker.options import INLINE_BYTES_MAX
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import object_manager_pb2
from tests.core_worker.scene import NODE_ID, Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(store_file=tmp_path / "store")
    made.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply()
    return made


def test_each_value_has_an_id_of_its_own_which_names_the_task_that_put_it(scene: Scene) -> None:
    refs = [scene.core.put(number) for number in range(3)]
    task_id = scene.core.context.task_id()
    assert [ref.binary() for ref in refs] == [
        ids.object_id_bytes(task_id, ids.PUT_INDEX_BASE + number) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(("more", "in_store"), [(0, False), (1, True)])
def test_values_above_a_size_go_to_the_nodes_store(scene: Scene, more: int, in_store: bool) -> None:
    value = _of_size(INLINE_BYTES_MAX + more)
    ref = scene.core.put(value)
    assert bool(scene.wire.all("Seal")) == in_store
    known = scene.core.location_of(ref)
    assert known == ([NODE_ID] if in_store else [], INLINE_BYTES_MAX + more)


def _of_size(size_bytes: int) -> bytes:
    """A value that takes so many bytes."""
    value = bytes(size_bytes)
    for _ in range(3):
        value = bytes(len(value) - (serialization.serialize(value).size_bytes - size_bytes))
    assert serialization.serialize(value).size_bytes == size_bytes
    return value


@pytest.mark.parametrize("padding", [b"", bytes(200_000)])
def test_what_a_value_has_inside_lives_with_it(scene: Scene, padding: bytes) -> None:
    inner = scene.core.put("inner")
    outer = scene.core.put([inner, inner, padding])
    del inner
    assert scene.core.reference_counts() == 2
    del outer
    assert scene.core.reference_counts() == 0


def test_what_went_before_is_counted_first_where_room_may_be_needed(scene: Scene) -> None:
    old = scene.core.put(bytes(200_000))
    del old
    new = scene.core.put(1)
    assert scene.wire.all("Free")
    del new


def test_an_interrupt_that_came_meanwhile_is_raised_at_the_end(scene: Scene) -> None:
    scene.reactor.note_interrupt(True)
    with pytest.raises(KeyboardInterrupt):
        scene.core.put(1)
    assert scene.core.reference_counts() == 0


def test_what_does_not_pickle_leaves_nothing(scene: Scene) -> None:
    with pytest.raises(TypeError, match=r"value of put\(\)"):
        scene.core.put(threading.Lock())
    assert scene.core.reference_counts() == 0 and scene.core.describe()["values"] == 0

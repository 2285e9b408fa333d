"""The node's store as a process uses it: its memory, what is written there, and how long what was read stays
pinned.

The store's file, which lies where all users may make files, is mapped only where it is ours: its bytes are
unpickled.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mono.common.exceptions import ObjectStoreFullError, RaySystemError
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.protobuf import object_manager_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import NODE_ID, Scene, status_in_stores
from tests.no_threads import no_threads
from tests.other_user import give_away, needs_another_user
from tests.waiting import wait_until

OBJECT = b"o" * 28
LARGE = bytes(range(256)) * 1000
GetReply = object_manager_pb2.GetReply


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def scene(store_file: Path) -> Scene:
    made = Scene(store_file=store_file)
    made.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply(offset=4096)
    return made


def stored(scene: Scene, value: Any) -> ObjectRef[Any]:
    """A borrowed reference to a value that lies in this node's store."""
    found = scene.lay(OBJECT, value)
    scene.wire.replies["GetObjectStatus"] = lambda request: status_in_stores(NODE_ID)
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[found])
    return scene.borrow(OBJECT)


def read(scene: Scene) -> Any:
    return scene.core.get([stored(scene, "value")], None)


def write(scene: Scene) -> Any:
    return scene.core.put(LARGE)


def released(scene: Scene) -> list[bytes]:
    scene.turn()
    return [each for said in scene.wire.all("Release") for each in said.request.object_ids]


def settle(scene: Scene) -> None:
    """What is not referenced any more is gone, and seen to."""
    gc.collect()
    scene.turn()


# ---- whose memory it is


def test_our_own_is_read_and_written(scene: Scene) -> None:
    assert read(scene) == ["value"]
    write(scene)


@needs_another_user
@pytest.mark.parametrize("use", [read, write])
def test_one_that_another_user_put_in_its_place_is_neither_read_nor_written(
    scene: Scene, store_file: Path, use: Callable[[Scene], Any]
) -> None:
    scene.lay(OBJECT, 1)
    give_away(store_file)
    with pytest.raises(RaySystemError, match="belongs to user id"):
        use(scene)


@pytest.mark.parametrize("use", [read, write])
def test_a_link_in_its_place_is_not_followed(
    scene: Scene, store_file: Path, use: Callable[[Scene], Any]
) -> None:
    moved = store_file.rename(store_file.with_name("elsewhere"))
    store_file.symlink_to(moved)
    with pytest.raises(RaySystemError, match="Too many levels"):
        use(scene)


@pytest.mark.parametrize("use", [read, write])
def test_one_that_is_gone_is_told_as_that(
    scene: Scene, store_file: Path, use: Callable[[Scene], Any]
) -> None:
    ref = stored(scene, "value")
    store_file.unlink()
    with pytest.raises(RaySystemError, match="cannot be opened"):
        scene.core.get([ref], None) if use is read else use(scene)


# ---- writing


def test_a_large_value_is_written_where_the_store_says_and_sealed(scene: Scene, store_file: Path) -> None:
    ref = scene.core.put(LARGE)
    create, seal = (scene.wire.last(name).request for name in ("Create", "Seal"))
    assert create.object_id == seal.object_id == ref.binary()
    assert create.owner_worker_id == scene.core.worker_id
    written = store_file.read_bytes()
    assert LARGE in written[4096 : 4096 + create.size_bytes]
    assert not any(written[:4096]) and not any(written[4096 + create.size_bytes :])
    assert scene.core.location_of(ref) == ([NODE_ID], create.size_bytes)


def test_a_small_value_does_not_go_to_the_store(scene: Scene) -> None:
    assert scene.core.get([scene.core.put("small")], None) == ["small"]
    assert not scene.wire.all("Create")


def refuse(scene: Scene, code: Any) -> None:
    def create(request: Any) -> Any:
        raise RpcError(code, "why it does not go")

    scene.wire.replies["Create"] = create


def test_a_store_that_is_full_says_so_and_keeps_nothing(scene: Scene) -> None:
    refuse(scene, StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(ObjectStoreFullError, match="why it does not go"):
        scene.core.put(LARGE)
    assert scene.core.reference_counts() == 0 and scene.core.describe()["values"] == 0
    assert not scene.wire.all("Seal")


def test_a_store_that_fails_says_so_with_the_size(scene: Scene) -> None:
    refuse(scene, StatusCode.UNAVAILABLE)
    with pytest.raises(RaySystemError, match=r"did not take an object of 256\d\d\d bytes: .*why it does"):
        scene.core.put(LARGE)


def test_what_is_there_already_is_left_as_it_is(scene: Scene) -> None:
    refuse(scene, StatusCode.ALREADY_EXISTS)
    ref = scene.core.put(LARGE)
    assert scene.core.location_of(ref) is not None and scene.core.reference_counts() == 1
    assert not scene.wire.all("Seal") and not scene.wire.all("Abort")


def test_an_interrupt_while_it_waits_for_room_gives_the_room_back(scene: Scene) -> None:
    def create(request: Any) -> Any:
        raise KeyboardInterrupt

    scene.wire.replies["Create"] = create
    with pytest.raises(KeyboardInterrupt):
        scene.core.put(LARGE)
    assert scene.wire.last("Abort").request.object_id == scene.wire.last("Create").request.object_id
    assert scene.core.reference_counts() == 0


# ---- pins


def test_what_was_read_stays_pinned_while_a_view_of_it_lives(scene: Scene) -> None:
    ref = stored(scene, np.arange(1000))
    (array,) = scene.core.get([ref], None)
    derived = array[10:20]
    del array, ref
    gc.collect()
    assert released(scene) == [] and list(derived) == list(range(10, 20))
    del derived
    gc.collect()
    assert released(scene) == [OBJECT]


def test_what_is_pinned_already_is_read_without_a_question(scene: Scene) -> None:
    ref = stored(scene, np.arange(1000))
    first = scene.core.get([ref], None)
    second = scene.core.get([ref], None)
    assert len(scene.wire.all("Get")) == 1
    assert not np.shares_memory(first[0], np.arange(1000)) and np.shares_memory(first[0], second[0])
    del first
    gc.collect()
    scene.pass_time(10)
    assert released(scene) == [] and second[0][5] == 5


def test_what_is_referenced_still_stays_pinned_a_moment_longer(scene: Scene) -> None:
    ref = stored(scene, np.arange(1000))
    scene.core.get([ref], None)
    settle(scene)
    scene.pass_time(0.2)
    assert released(scene) == []
    scene.core.get([ref], None)
    settle(scene)
    assert len(scene.wire.all("Get")) == 1
    # The moment begins anew with each view that ends.
    scene.pass_time(0.2)
    assert released(scene) == []
    scene.pass_time(0.06)
    assert released(scene) == [OBJECT]
    scene.core.get([ref], None)
    assert len(scene.wire.all("Get")) == 2


def test_the_last_reference_ends_the_moment_at_once(scene: Scene) -> None:
    ref = stored(scene, np.arange(1000))
    scene.core.get([ref], None)
    settle(scene)
    scene.turn()
    del ref
    assert released(scene) == [OBJECT]
    scene.pass_time(1)
    assert released(scene) == [OBJECT]


def test_pins_of_two_objects_end_apart(scene: Scene) -> None:
    refs = [stored(scene, np.arange(1000)), scene.borrow(b"p" * 28)]
    other = scene.lay(b"p" * 28, np.arange(10))
    first = scene.core.get([refs[0]], None)
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[other])
    second = scene.core.get([refs[1]], None)
    del first, refs
    settle(scene)
    assert released(scene) == [OBJECT]
    del second
    settle(scene)
    assert released(scene) == [OBJECT, b"p" * 28]


def test_moments_end_in_turn(scene: Scene) -> None:
    refs = [stored(scene, np.arange(10)), scene.borrow(b"p" * 28)]
    other = scene.lay(b"p" * 28, np.arange(10))
    scene.core.get([refs[0]], None)
    settle(scene)
    scene.pass_time(0.1)
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[other])
    scene.core.get([refs[1]], None)
    settle(scene)
    scene.pass_time(0.16)
    assert released(scene) == [OBJECT]
    scene.pass_time(0.1)
    assert released(scene) == [OBJECT, b"p" * 28]


def test_an_empty_object_needs_no_pin(scene: Scene) -> None:
    ref = stored(scene, "value")
    empty = object_manager_pb2.ObjectFound(object_id=OBJECT, metadata=b"")
    scene.wire.replies["Get"] = lambda request: GetReply(objects=[empty])
    with pytest.raises(RaySystemError, match="cannot be unpickled"):
        scene.core.get([ref], None)
    assert released(scene) == [OBJECT]


def test_nothing_is_said_to_a_store_that_is_gone(scene: Scene) -> None:
    ref = stored(scene, np.arange(10))
    scene.core.get([ref], None)
    scene.wire.connect("store").close()
    del ref
    settle(scene)
    assert released(scene) == []


def test_what_is_freed_in_one_turn_goes_in_one_message(scene: Scene) -> None:
    refs = [scene.core.put(LARGE) for _ in range(3)]
    ids = [ref.binary() for ref in refs]
    refs.clear()
    scene.turn()
    (said,) = scene.wire.all("Free")
    assert sorted(each.object_id for each in said.request.objects) == sorted(ids)
    scene.turn()
    assert len(scene.wire.all("Free")) == 1


def test_the_stores_statistics_are_the_nodes(scene: Scene) -> None:
    scene.wire.replies["GetStats"] = lambda request: object_manager_pb2.StoreStats(num_objects=7)
    assert scene.core.store_stats().num_objects == 7


def test_garbage_is_collected_on_another_thread_when_the_store_is_full(scene: Scene) -> None:
    ref = scene.core.put(LARGE)
    cycle: list[Any] = [ref]
    cycle.append(cycle)
    del ref, cycle
    with no_threads():  # there may be one the next time
        scene.wire.last("WatchPressure").part(object_manager_pb2.StorePressure())
    scene.wire.last("WatchPressure").part(object_manager_pb2.StorePressure())
    wait_until(lambda: scene.core.reference_counts() == 0, "no reference")


def test_of_an_object_that_is_read_anew_while_its_view_ends_each_pin_is_released(scene: Scene) -> None:
    """Two threads asked the store before either had its answer: it pinned the object twice."""
    refs = [stored(scene, np.arange(1000))]
    scene.wire.replies.pop("Get")
    answers: list[Any] = []

    def both_answer() -> None:
        found = scene.lay(OBJECT, np.arange(1000))
        for asked in scene.wire.open("Get"):
            asked.answer(GetReply(objects=[found]))

    def second_reader() -> None:
        scene.meanwhile(both_answer)
        answers.append(scene.core.get(refs, None)[0])

    scene.meanwhile(second_reader)
    answers.append(scene.core.get(refs, None)[0])
    assert len(scene.wire.all("Get")) == 2
    refs.clear()
    settle(scene)
    answers.pop(0)
    settle(scene)
    assert released(scene) == [OBJECT]
    answers.clear()
    settle(scene)
    assert released(scene) == [OBJECT, OBJECT]


def test_the_stores_file_is_open_once_for_what_is_written_and_not_for_what_is_read(
    scene: Scene, store_file: Path
) -> None:
    read(scene)
    write(scene)
    opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
    # Python's mmap keeps a copy of its own.
    assert opened.count(str(store_file)) == 1


def _is_open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")

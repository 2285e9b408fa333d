"""Programs with more data than the store holds: they finish, every value is right, and nothing is left on
disk."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono._private.node.reaper_client import ServiceStartError
from ray_mono.cluster_utils import Cluster
from tests.integration.bounded import get
from tests.integration.nothing_left import wait_for_nothing_left
from tests.integration.scripts import Script
from tests.integration.small_disks import file_system
from tests.waiting import wait_until

MIB = 1 << 20
STORE_BYTES = 64 * MIB
PIECE_BYTES = 4 * MIB
SETTINGS = {"min_spilling_size": 8 * MIB, "object_manager": {"create_timeout_s": 3}}


def piece(value: int, size_bytes: int = PIECE_BYTES) -> Any:
    return np.full(size_bytes, value % 256, np.uint8)


def is_piece(array: Any, value: int, size_bytes: int = PIECE_BYTES) -> bool:
    return len(array) == size_bytes and bool((array == value % 256).all())


def start_cluster(directory: Path | None = None, **settings: Any) -> Any:
    return ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        _object_spilling_directory=directory,
        _system_config={**SETTINGS, **settings},
    )


def cluster_with_head(spilled: Path) -> Cluster:
    return Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": STORE_BYTES,
            "_object_spilling_directory": str(spilled),
            "_system_config": SETTINGS,
        },
    )


def head_and_other(folder: Path) -> tuple[Cluster, Any]:
    """Two nodes, which spill into a and b there. The second has the resource "other"."""
    cluster = cluster_with_head(folder / "a")
    other = cluster.add_node(
        num_cpus=1,
        resources={"other": 1},
        object_store_memory=STORE_BYTES,
        _object_spilling_directory=str(folder / "b"),
    )
    cluster.connect()
    return cluster, other


@ray.remote
def make_piece(number: int) -> Any:
    return piece(number)


@pytest.fixture
def spilled(tmp_path: Path, session_base: Path) -> Iterator[Path]:
    """A directory for spilled objects. Nothing is left in it at the end."""
    directory = tmp_path / "spilled"
    yield directory
    ray.shutdown()
    assert os.listdir(directory) == []


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.glob("*/*") if path.name != "lock"]


def test_a_program_with_ten_times_the_stores_data_reads_it_back_in_any_order(spilled: Path) -> None:
    start_cluster(spilled)
    references = [ray.put(piece(number)) for number in range(160)]
    order = list(range(160))
    random.Random(1).shuffle(order)
    for number in order:
        assert is_piece(get(references[number]), number)
    assert internal_state.store_stats().spilled_bytes_total >= 500 * MIB
    assert all(path.stat().st_size >= 8 * MIB for path in files_in(spilled))
    del references
    wait_for_nothing_left()
    wait_until(lambda: not files_in(spilled), "the files of what is freed are gone")


def test_tasks_whose_arguments_and_returns_are_more_than_the_store_finish(spilled: Path) -> None:
    start_cluster(spilled)

    @ray.remote
    def make(number: int) -> Any:
        return piece(number)

    @ray.remote
    def add(*parts: Any) -> int:
        return sum(int(part[0]) for part in parts)

    references = [make.remote(number) for number in range(60)]
    sums = [add.remote(*references[first : first + 6]) for first in range(0, 60, 6)]
    assert get(sums) == [sum(range(first, first + 6)) for first in range(0, 60, 6)]


def test_a_get_of_more_than_the_store_holds_gives_every_value(spilled: Path) -> None:
    start_cluster(spilled)
    references = [ray.put(piece(number)) for number in range(40)]
    values = get(references)
    assert all(is_piece(value, number) for number, value in enumerate(values))
    ready, _ = ray.wait(references, num_returns=40, timeout=60)
    assert len(ready) == 40
    del references
    assert all(is_piece(value, number) for number, value in enumerate(values))  # freed, and still mapped
    del values, ready
    wait_for_nothing_left()


def test_what_is_read_on_disk_and_kept_costs_a_process_no_descriptors(spilled: Path) -> None:
    start_cluster(spilled)
    references = [ray.put(piece(number, MIB)) for number in range(200)]
    before = len(os.listdir("/proc/self/fd"))
    views = get(references)
    assert len(os.listdir("/proc/self/fd")) < before + 20
    assert all(is_piece(view, number, MIB) for number, view in enumerate(views))


def test_a_generators_items_wait_for_room(spilled: Path) -> None:
    start_cluster(spilled)

    @ray.remote(num_returns="streaming")
    def many() -> Any:
        for number in range(40):
            yield piece(number)

    stream = list(many.remote())
    assert all(is_piece(get(reference), number) for number, reference in enumerate(stream))


def test_another_node_reads_what_is_spilled_here(tmp_path: Path, session_base: Path) -> None:
    cluster, other = head_and_other(tmp_path)

    @ray.remote(resources={"other": 0.01})
    def first(array: Any) -> int:
        return int(array[0])

    references = [ray.put(piece(number)) for number in range(40)]
    assert get([first.remote(reference) for reference in references]) == list(range(40))
    ray.shutdown()
    assert files_in(tmp_path / "a")
    cluster.remove_node(other)
    cluster.shutdown()
    assert os.listdir(tmp_path / "a") == os.listdir(tmp_path / "b") == []


def test_the_driver_is_told_of_spilling_and_again_when_it_has_doubled(
    start: Callable[..., Script],
) -> None:
    program = f"""
        import numpy as np
        import ray_mono as ray

        ray.init(num_cpus=1, object_store_memory={STORE_BYTES}, address="local", _system_config={{
            "min_spilling_size": {8 * MIB}, "verbose_spill_logs": {20 * MIB}}})
        kept = [ray.put(np.full({PIECE_BYTES}, number, np.uint8)) for number in range(60)]
        ray.shutdown()
    """
    output = start(program).check_ended_well()
    told = [line for line in output.splitlines() if "Spilled" in line]
    assert 2 <= len(told) <= 5 and "objects, write throughput" in told[0], output
    assert "RAY_MONO_verbose_spill_logs=0" in told[0] and "127.0.0.1" in told[0]


def test_several_disks_take_turns_by_rays_setting(tmp_path: Path, session_base: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    config = json.dumps({"type": "filesystem", "params": {"directory_path": paths}})
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=STORE_BYTES,
        _system_config={**SETTINGS, "object_spilling_config": config},
    )
    references = [ray.put(piece(number)) for number in range(40)]
    assert files_in(tmp_path / "a") and files_in(tmp_path / "b")
    assert is_piece(get(references[0]), 0)
    ray.shutdown()
    assert os.listdir(paths[0]) == os.listdir(paths[1]) == []


def test_objects_go_to_the_session_where_nobody_says_otherwise(session_base: Path) -> None:
    context = start_cluster()
    session = Path(context.address_info["session_dir"])
    references = [ray.put(piece(number)) for number in range(40)]
    (directory,) = session.glob("ray_spilled_objects_*")
    assert len(list(directory.iterdir())) > 1 and is_piece(get(references[0]), 0)
    ray.shutdown()
    assert not directory.exists()


def test_a_directory_that_cannot_be_written_fails_the_start_with_a_sentence(
    tmp_path: Path, session_base: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceStartError, match=f"objects cannot be spilled to {tmp_path}/file: Not a dir"):
        start_cluster(tmp_path / "file")


def test_nothing_is_left_where_the_object_manager_is_killed(tmp_path: Path, session_base: Path) -> None:
    cluster = cluster_with_head(tmp_path / "a")
    cluster.connect()
    references = [ray.put(piece(number)) for number in range(40)]
    assert files_in(tmp_path / "a") and references
    ray.shutdown()
    head = cluster.head_node
    assert head is not None
    cluster.remove_node(head, allow_graceful=False)
    assert os.listdir(tmp_path / "a") == []


@pytest.fixture
def small_disk(tmp_path: Path, session_base: Path) -> Iterator[Path]:
    """A file system of 100 MiB."""
    with file_system(tmp_path / "small", 100) as place:
        yield place
        ray.shutdown()


def test_a_full_disk_is_an_out_of_disk_error_and_the_cluster_lives(small_disk: Path) -> None:
    start_cluster(small_disk)
    references: list[Any] = []
    with pytest.raises(ray.exceptions.OutOfDiskError, match="disk for spilled objects is full.*over 95%"):
        for number in range(100):
            references.append(ray.put(piece(number)))
    assert len(references) * PIECE_BYTES > 140 * MIB  # the store, and most of the disk

    @ray.remote
    def make() -> Any:
        return piece(1)

    with pytest.raises(ray.exceptions.OutOfDiskError):
        get(make.remote())
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))
    del references[20:]
    assert is_piece(get(make.remote()), 1)
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))


def test_a_put_and_a_return_find_room_on_disk_where_views_hold_all_memory(spilled: Path) -> None:
    start_cluster(spilled)
    views = [get(ray.put(piece(number))) for number in range(15)]
    references = [ray.put(piece(100 + number)) for number in range(10)]
    references += [make_piece.remote(110 + number) for number in range(4)]
    assert all(is_piece(get(reference), 100 + number) for number, reference in enumerate(references))
    assert all(is_piece(view, number) for number, view in enumerate(views))
    del references, views
    wait_for_nothing_left()
    wait_until(lambda: not files_in(spilled), "the files of what is freed are gone")


def test_many_processes_that_put_at_once_all_find_room(spilled: Path) -> None:
    start_cluster(spilled)

    @ray.remote(num_cpus=0.25)
    def put_many(first: int) -> list[Any]:
        return [ray.put(piece(first + number)) for number in range(12)]

    for number, references in enumerate(get([put_many.remote(100 * number) for number in range(8)])):
        assert all(is_piece(get(each), 100 * number + at) for at, each in enumerate(references))


def test_a_value_larger_than_the_store_is_written_to_disk_and_read_there(spilled: Path) -> None:
    start_cluster(spilled)
    size_bytes = 3 * STORE_BYTES
    reference = ray.put(piece(7, size_bytes))
    assert is_piece(get(reference), 7, size_bytes)

    @ray.remote
    def grow(array: Any) -> Any:
        assert is_piece(array, 7, size_bytes)
        return piece(8, size_bytes)

    assert is_piece(get(grow.remote(reference)), 8, size_bytes)
    assert internal_state.store_stats().used_bytes == 0
    del reference
    wait_for_nothing_left()
    wait_until(lambda: not files_in(spilled), "the files of what is freed are gone")


def test_a_value_larger_than_the_store_and_the_disk_is_refused_at_once(small_disk: Path) -> None:
    start_cluster(small_disk)
    with pytest.raises(
        ray.exceptions.OutOfDiskError, match=rf"wanted 2097\d+ bytes.*capacity {STORE_BYTES} bytes.*are free"
    ):
        ray.put(piece(1, 200 * MIB))
    assert is_piece(get(ray.put(piece(2))), 2)


def test_a_value_that_is_refused_is_told_its_own_figures_also_after_others_were(small_disk: Path) -> None:
    start_cluster(small_disk)
    references = []
    with pytest.raises(ray.exceptions.OutOfDiskError):
        for number in range(100):
            references.append(ray.put(piece(number)))
    with pytest.raises(ray.exceptions.OutOfDiskError, match=r"wanted 2097\d+ bytes") as caught:
        ray.put(piece(1, 200 * MIB))
    assert re.findall(r"full: .* (\d+) bytes more would fill it", str(caught.value))[0].startswith("2097")
    assert str(caught.value).count("would fill it") == 1


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    """By a file of the same size."""
    size_bytes = path.stat().st_size
    path.unlink()
    path.write_bytes(b"?" * size_bytes)


def alter(path: Path) -> None:
    """One byte of each object in it."""
    with path.open("r+b") as file:
        for at in range(0, path.stat().st_size, PIECE_BYTES // 2):
            file.seek(at)
            file.write(b"?")


ways_to_lose = pytest.mark.parametrize("lose", [Path.unlink, empty, replace, alter])


def made_and_spilled(directory: Path) -> list[Any]:
    """More than the store holds."""
    references = [make_piece.remote(number) for number in range(40)]
    ready, _ = ray.wait(references, num_returns=len(references), timeout=60, fetch_local=False)
    assert len(ready) == len(references)
    wait_until(lambda: len(files_in(directory)) > 1, "more than the store holds is on disk")
    return references


@ways_to_lose
def test_what_is_lost_on_disk_is_made_again_by_its_task(spilled: Path, lose: Any) -> None:
    start_cluster(spilled)
    references = made_and_spilled(spilled)
    for path in files_in(spilled):
        lose(path)
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))


@ray.remote(num_returns=20)
def make_pieces(note: Path) -> list[Any]:
    with note.open("a") as file:
        file.write("run ")
    return [piece(number) for number in range(20)]


@ray.remote
def yield_pieces(note: Path) -> Any:
    with note.open("a") as file:
        file.write("run ")
    yield from map(piece, range(20))


@ways_to_lose
@pytest.mark.parametrize("task", [make_pieces, yield_pieces])
def test_one_run_makes_all_again_that_a_task_returned_and_that_is_lost_on_disk(
    spilled: Path, tmp_path: Path, task: Any, lose: Any
) -> None:
    start_cluster(spilled)
    note = tmp_path / "runs"
    references = list(task.remote(note))
    ready, _ = ray.wait(references, num_returns=20, timeout=60)
    others = [ray.put(piece(number)) for number in range(20)]
    assert len(ready) == 20
    wait_until(lambda: len(files_in(spilled)) > 10, "all of it is on disk")
    for path in files_in(spilled):
        lose(path)
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))
    assert len(note.read_text().split()) <= 3
    del others


@ways_to_lose
def test_who_waits_for_what_is_lost_on_disk_has_it_made_again(spilled: Path, lose: Any) -> None:
    start_cluster(spilled)
    references = made_and_spilled(spilled)
    for path in files_in(spilled):
        lose(path)
    ready, pending = ray.wait(references, num_returns=len(references), timeout=60)
    assert len(ready) == len(references) and not pending
    assert is_piece(get(references[0]), 0)


@ways_to_lose
def test_a_get_that_reads_in_place_what_is_lost_on_disk_has_it_made_again(spilled: Path, lose: Any) -> None:
    start_cluster(spilled)
    references = made_and_spilled(spilled)
    for path in files_in(spilled):
        lose(path)
    values = get(references)
    assert all(is_piece(value, number) for number, value in enumerate(values))


def test_a_lost_item_of_a_generator_without_an_end_is_made_again(spilled: Path) -> None:
    """Ray's `get` of such an item does not end."""
    start_cluster(spilled)

    @ray.remote(num_returns="streaming")
    def endless() -> Any:
        yield from map(piece, range(20))
        while True:
            time.sleep(0.01)
            yield "small"

    stream = endless.remote()
    references = [next(stream) for _ in range(20)]
    wait_until(lambda: len(files_in(spilled)) > 1, "more than the store holds is on disk")
    for path in files_in(spilled):
        path.unlink()
    assert is_piece(get(references[0]), 0)
    assert get(next(stream)) == "small"
    ray.cancel(stream)


@pytest.mark.parametrize("lose", [Path.unlink, empty])
def test_a_value_larger_than_the_store_that_is_lost_on_disk_is_made_again(spilled: Path, lose: Any) -> None:
    start_cluster(spilled)
    size_bytes = 2 * STORE_BYTES

    @ray.remote
    def make() -> Any:
        return piece(7, size_bytes)

    reference = make.remote()
    ray.wait([reference], timeout=60, fetch_local=False)
    (path,) = files_in(spilled)
    lose(path)
    assert is_piece(get(reference), 7, size_bytes)


@pytest.mark.parametrize("lose", [Path.unlink, alter])
def test_what_another_node_has_lost_on_its_disk_is_made_again(
    tmp_path: Path, session_base: Path, lose: Any
) -> None:
    cluster, other = head_and_other(tmp_path)
    make = make_piece.options(resources={"other": 0.001})
    references = [make.remote(number) for number in range(30)]
    ray.wait(references, num_returns=len(references), timeout=60, fetch_local=False)
    wait_until(lambda: len(files_in(tmp_path / "b")) > 1, "more than the store holds is on disk")
    for path in files_in(tmp_path / "b"):
        lose(path)
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))
    ray.shutdown()
    cluster.remove_node(other)
    cluster.shutdown()


def test_what_lay_on_the_disk_of_a_node_that_died_is_made_again(tmp_path: Path, session_base: Path) -> None:
    cluster = cluster_with_head(tmp_path / "a")
    settings: dict[str, Any] = {
        "num_cpus": 1,
        "resources": {"other": 1},
        "object_store_memory": STORE_BYTES,
        "_object_spilling_directory": str(tmp_path / "b"),
    }
    other = cluster.add_node(**settings)
    cluster.connect()
    make = make_piece.options(resources={"other": 0.001})
    references = [make.remote(number) for number in range(30)]
    ray.wait(references, num_returns=len(references), timeout=60, fetch_local=False)
    wait_until(lambda: len(files_in(tmp_path / "b")) > 1, "more than the store holds is on disk")
    cluster.remove_node(other, allow_graceful=False)
    cluster.add_node(**settings)
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))
    ray.shutdown()
    cluster.shutdown()


@ways_to_lose
def test_a_put_that_is_lost_on_disk_is_told_as_that(spilled: Path, lose: Any) -> None:
    start_cluster(spilled)
    references = [ray.put(piece(number)) for number in range(40)]
    for path in files_in(spilled):
        lose(path)
    num_lost = 0
    for number, reference in enumerate(references):
        try:
            assert is_piece(get(reference), number)
        except ray.exceptions.ObjectLostError as error:
            num_lost += 1
            assert reference.hex() in str(error)
    assert 0 < num_lost < len(references)

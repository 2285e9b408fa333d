"""Programs that read more from other nodes than their own node's store holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono.cluster_utils import Cluster
from tests.integration.bounded import get
from tests.integration.small_disks import file_system
from tests.waiting import wait_until

MIB = 1 << 20
STORE_BYTES = 64 * MIB
PIECE_BYTES = 4 * MIB
NUM_PIECES = 40
SETTINGS = {"object_manager": {"create_timeout_s": 3, "copy_to_disk_after_s": 1}}


def piece(value: int, size_bytes: int = PIECE_BYTES) -> Any:
    return np.full(size_bytes, value % 256, np.uint8)


def is_piece(array: Any, value: int, size_bytes: int = PIECE_BYTES) -> bool:
    return len(array) == size_bytes and bool((array == value % 256).all())


def start(spilled: Path) -> Cluster:
    """This process is a driver on a node with a small store. The other node, "far", has a large one."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": STORE_BYTES,
            "_object_spilling_directory": str(spilled),
            "_system_config": SETTINGS,
        },
    )
    cluster.add_node(num_cpus=1, resources={"far": 1}, object_store_memory=8 * STORE_BYTES)
    cluster.connect()
    return cluster


@ray.remote(resources={"far": 0.1})
def make(number: int, size_bytes: int = PIECE_BYTES) -> Any:
    return piece(number, size_bytes)


@pytest.fixture
def spilled(tmp_path: Path, session_base: Path) -> Iterator[Path]:
    directory = tmp_path / "spilled"
    cluster = start(directory)
    yield directory
    ray.shutdown()
    cluster.shutdown()
    assert os.listdir(directory) == []


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.glob("*/*") if path.name != "lock"]


def test_a_get_of_more_from_elsewhere_than_the_store_holds_gives_every_value(spilled: Path) -> None:
    references = [make.remote(number) for number in range(NUM_PIECES)]
    values = get(references)
    assert all(is_piece(value, number) for number, value in enumerate(values))
    assert files_in(spilled)
    del references
    assert all(is_piece(value, number) for number, value in enumerate(values))  # freed, and still mapped
    del values
    wait_until(lambda: not files_in(spilled), "the files go with their readers")


def test_values_that_are_kept_while_others_are_read_one_by_one_do_not_stop_these(spilled: Path) -> None:
    values = [get(make.remote(number)) for number in range(NUM_PIECES // 2)]
    assert all(is_piece(value, number) for number, value in enumerate(values))


def test_a_task_with_more_arguments_from_elsewhere_than_the_store_holds_runs(spilled: Path) -> None:
    @ray.remote(num_cpus=1)
    def add(*parts: Any) -> int:
        return sum(int(part[-1]) for part in parts)

    references = [make.remote(number) for number in range(NUM_PIECES)]
    ray.wait(references, num_returns=NUM_PIECES, fetch_local=False)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    assert get(add.options(scheduling_strategy=here).remote(*references)) == sum(range(NUM_PIECES))


def test_a_value_larger_than_the_store_comes_from_elsewhere(spilled: Path) -> None:
    size_bytes = 2 * STORE_BYTES
    assert is_piece(get(make.remote(7, size_bytes)), 7, size_bytes)


@pytest.fixture
def small_disk(tmp_path: Path, session_base: Path) -> Iterator[Path]:
    """A file system with room for 64 MiB of copies."""
    with file_system(tmp_path / "disk", 72) as place:
        cluster = start(place)
        yield place
        ray.shutdown()
        cluster.shutdown()


def test_a_get_for_which_the_disk_has_no_room_either_is_an_out_of_disk_error(small_disk: Path) -> None:
    references = [make.remote(number) for number in range(NUM_PIECES)]
    with pytest.raises(ray.exceptions.OutOfDiskError, match="over 95%"):
        get(references)
    assert all(is_piece(value, number) for number, value in enumerate(get(references[:10])))

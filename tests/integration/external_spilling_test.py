"""Programs with more data than the store holds, which goes to a storage elsewhere: a server that really
speaks S3."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private.node.reaper_client import ServiceStartError
from ray_mono.cluster_utils import Cluster
from tests.integration.bounded import get
from tests.integration.nothing_left import wait_for_nothing_left
from tests.object_manager.s3_server import BUCKET, S3Server, s3
from tests.waiting import wait_until

__all__ = ["s3"]

MIB = 1 << 20
STORE_BYTES = 64 * MIB
PIECE_BYTES = 4 * MIB
SETTINGS = {"min_spilling_size": 8 * MIB, "object_manager": {"create_timeout_s": 3}}
URI = f"s3://{BUCKET}/spilled"


@pytest.fixture
def storage(s3: S3Server, session_base: Path) -> Iterator[S3Server]:
    """Nothing is left in it at the end."""
    yield s3
    ray.shutdown()
    assert s3.keys() == s3.uploads() == []


def piece(value: int, size_bytes: int = PIECE_BYTES) -> Any:
    return np.full(size_bytes, value % 256, np.uint8)


def is_piece(array: Any, value: int, size_bytes: int = PIECE_BYTES) -> bool:
    return len(array) == size_bytes and bool((array == value % 256).all())


def start(uri: str | None = URI, **settings: Any) -> Any:
    return ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        _object_spilling_directory=uri,
        _system_config={**SETTINGS, **settings},
    )


def test_a_program_with_more_than_the_store_reads_it_back_in_any_order(storage: S3Server) -> None:
    start()
    references = [ray.put(piece(number)) for number in range(60)]
    assert storage.keys()
    order = list(range(60))
    random.Random(1).shuffle(order)
    for number in order:
        assert is_piece(get(references[number]), number)

    @ray.remote
    def add(*parts: Any) -> int:
        return sum(int(part[0]) for part in parts)

    sums = [add.remote(*references[first : first + 6]) for first in range(0, 60, 6)]
    assert get(sums) == [sum(range(first, first + 6)) for first in range(0, 60, 6)]
    del references, sums
    wait_for_nothing_left()
    wait_until(lambda: not storage.keys(), "what is freed is gone from the storage")
    kept = [ray.put(piece(number)) for number in range(30)]
    assert kept and storage.keys()


def test_a_get_of_more_than_the_store_holds_and_a_value_larger_than_it(storage: S3Server) -> None:
    start()
    references = [ray.put(piece(number)) for number in range(30)]
    large = ray.put(piece(7, 2 * STORE_BYTES))
    values = get(references)
    assert all(is_piece(value, number) for number, value in enumerate(values))
    assert is_piece(get(large), 7, 2 * STORE_BYTES)


def test_rays_setting_with_several_uris_counts_for_nodes_that_join(storage: S3Server) -> None:
    params = {"uri": [f"{URI}/a", f"{URI}/b"], "buffer_size": MIB}
    config = json.dumps({"type": "smart_open", "params": params})
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "object_store_memory": STORE_BYTES,
            "_system_config": {**SETTINGS, "object_spilling_config": config},
        },
    )
    cluster.add_node(num_cpus=1, resources={"other": 1}, object_store_memory=STORE_BYTES)
    cluster.connect()

    @ray.remote(resources={"other": 0.01})
    def make(number: int) -> Any:
        return piece(number)

    references = [make.remote(number) for number in range(30)]
    for number, reference in enumerate(references):
        assert is_piece(get(reference), number)
    assert {key.split("/")[1] for key in storage.keys()} == {"a", "b"}
    ray.shutdown()
    cluster.shutdown()
    assert storage.keys() == []


def test_a_storage_that_cannot_be_used_fails_the_start_with_a_sentence(storage: S3Server) -> None:
    sentence = "cannot be spilled to s3://other/a: .*bucket does not exist"
    with pytest.raises(ServiceStartError, match=sentence) as caught:
        start("s3://other/a")
    assert "objects cannot be spilled" in str(caught.value).splitlines()[1], "nothing stands before it"
    with pytest.raises(ValueError, match=r"no objects are spilled to 'memory://a'"):
        start("memory://a")


def test_a_server_that_is_gone_for_a_while_costs_nothing(storage: S3Server) -> None:
    start()
    references = [ray.put(piece(number)) for number in range(30)]

    @ray.remote
    def first(array: Any) -> int:
        return int(array[0])

    with storage.gone():
        reads = [first.remote(reference) for reference in references]
        # What finds no room meanwhile goes to a file on the node's disk.
        references += [ray.put(piece(30 + number)) for number in range(30)]
    assert get(reads) == list(range(30))
    assert all(is_piece(get(reference), number) for number, reference in enumerate(references))


def test_what_a_killed_object_manager_left_is_removed_by_the_next_node(storage: S3Server) -> None:
    context = start()
    references = [ray.put(piece(number)) for number in range(30)]
    (mark,) = Path(context.address_info["session_dir"]).glob("external_spilling_*")
    os.kill(object_manager_pid(mark), signal.SIGKILL)
    ray.shutdown()
    assert storage.keys() and references
    start()
    wait_until(lambda: not mark.exists(), "what is left is removed")
    assert storage.keys() == []


def object_manager_pid(mark: Path) -> int:
    """Who has the mark open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == str(mark) for fd in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"nobody has {mark} open")

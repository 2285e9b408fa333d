"""The object store when it is small and nothing is spilled: what never fits is an error that names sizes,
what may fit waits, what is read stays as it is."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono._private.node.node import Node
from ray_mono._private.node.parameter import RayParams
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

MIB = 1 << 20
STORE_BYTES = 64 * MIB
PIECE_BYTES = 10 * MIB
PIECES = STORE_BYTES // PIECE_BYTES
# How long a put waits in a full store: as long as a test here waits, and long enough that another thread gets
# to make room on a busy machine. Copies from another node wait only where a test has them fail.
WAIT_S = 5
COPY_WAIT_S = 2
SETTINGS = {
    "automatic_object_spilling_enabled": False,
    "object_manager": {
        "create_timeout_s": WAIT_S,
        "pull_memory_timeout_s": COPY_WAIT_S,
        "elsewhere_timeout_s": 0.1,
    },
}
NEVER_FITS = rf"wanted 1048\d+ bytes, more than the store can hold: capacity {STORE_BYTES} bytes"
NO_ROOM = rf"wanted 1048\d+ bytes, and no room after {WAIT_S} s: capacity {STORE_BYTES} bytes, used 629\d+"


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Any:
    """A node with a store of 64 MiB; this process is its driver."""
    return ray.init(address="local", num_cpus=2, object_store_memory=STORE_BYTES, _system_config=SETTINGS)


@pytest.fixture(autouse=True)
def leaves_nothing(cluster: Any) -> Iterator[None]:
    yield
    wait_for_nothing_left()
    assert internal_state.store_stats().used_bytes == 0


def piece(value: int, size_bytes: int = PIECE_BYTES) -> Any:
    return np.full(size_bytes, value, np.uint8)


def fill() -> list[Any]:
    """References that take so much of the store that no further piece fits."""
    return [ray.put(piece(value)) for value in range(PIECES)]


# ---------------------------------------------------------------- what does not fit


def test_what_is_larger_than_the_store_is_refused(cluster: Any) -> None:
    array = piece(1, 100 * MIB)
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match=NEVER_FITS):
        ray.put(array)

    @ray.remote
    def use(argument: Any) -> None: ...

    with pytest.raises(ray.exceptions.ObjectStoreFullError, match=NEVER_FITS):
        use.remote(array)
    get(use.remote(piece(1)))


def test_what_a_task_makes_too_large_is_its_error_and_its_worker_goes_on(cluster: Any) -> None:
    @ray.remote(max_retries=0)
    def make(size_bytes: int) -> Any:
        return np.zeros(size_bytes, np.uint8)

    @ray.remote(max_retries=0)
    def put(size_bytes: int) -> int:
        ray.put(np.zeros(size_bytes, np.uint8))
        return os.getpid()

    class Maker:
        def make(self, size_bytes: int) -> Any:
            return np.zeros(size_bytes, np.uint8)

    maker = ray.remote(Maker).remote()
    for method in (make, put, maker.make):
        with pytest.raises(ray.exceptions.ObjectStoreFullError, match=NEVER_FITS) as caught:
            get(method.remote(100 * MIB))
        assert isinstance(caught.value, ray.exceptions.RayTaskError)
        del caught
    assert len(get(maker.make.remote(PIECE_BYTES))) == len(get(make.remote(PIECE_BYTES))) == PIECE_BYTES
    assert get(put.remote(1))


def test_an_error_that_is_too_large_for_the_store_still_is_an_error(cluster: Any) -> None:
    @ray.remote(max_retries=0)
    def fail(size_bytes: int) -> None:
        raise ValueError("large", bytes(size_bytes))

    with pytest.raises(ray.exceptions.RayError, match=r"fail\(\) raised .* an error of \d+ MiB"):
        get(fail.remote(16 * MIB))
    kept = fill()
    with pytest.raises(ValueError, match="large"):
        get(fail.remote(MIB))
    del kept


def test_a_put_into_a_store_full_of_referenced_objects_fails_after_a_while_and_it_is_said_before(
    cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = fill()
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match=NO_ROOM):
        ray.put(piece(99))
    told = re.search("The object store is full: .*", capfd.readouterr().err)
    assert told and re.search(r"1 objects of together 1048\d+ bytes .* for 2 s\..* used 629\d+", told[0]), (
        told
    )
    # Nothing was lost for it, and smaller things still fit.
    assert [int(array[0]) for array in get(kept)] == list(range(PIECES))
    small = ray.put(piece(98, MIB))
    assert get(small)[0] == 98
    del kept[0]
    again = ray.put(piece(99))
    assert get(again)[0] == 99


# ---------------------------------------------------------------- what waits


def test_a_put_waits_until_another_thread_lets_go(cluster: Any) -> None:
    kept = fill()
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(ray.put(piece(99))))
    thread.start()
    wait_until(lambda: internal_state.store_stats().num_waiting_creates == 1, "the put waits")
    del kept[-1]
    thread.join(GET_TIMEOUT_S)
    assert get(made.pop())[0] == 99


def test_the_return_of_a_task_waits_until_the_driver_lets_go(cluster: Any) -> None:
    kept = fill()

    @ray.remote(max_retries=0)
    def make(value: int) -> Any:
        return piece(value)

    made = make.remote(7)
    wait_until(lambda: internal_state.store_stats().num_waiting_creates == 1, "the return waits")
    kept.pop()
    assert get(made)[0] == 7


def test_more_than_the_store_holds_passes_through_it_when_nothing_is_kept(cluster: Any) -> None:
    @ray.remote
    def first(array: Any) -> int:
        return int(array[0])

    for value in range(3 * PIECES):
        reference = ray.put(piece(value))
        assert get(reference)[0] == value
    del reference
    assert get([first.remote(piece(value)) for value in range(3)]) == [0, 1, 2]


# ---------------------------------------------------------------- what is read


def test_what_is_read_is_not_copied_and_cannot_be_written(cluster: Any) -> None:
    array = get(ray.put(piece(1)))
    assert not array.flags.writeable and not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    with pytest.raises(ValueError):
        array.flags.writeable = True
    assert internal_state.store_stats().num_pins == 1


def test_what_is_read_several_times_is_pinned_once_and_let_go_when_nobody_reads_any_more(
    cluster: Any,
) -> None:
    reference = ray.put(piece(7))
    first, second = get(reference), get(reference)
    assert first is not second
    assert np.shares_memory(first, second)
    assert internal_state.store_stats().num_pins == 1
    del first
    assert second[-1] == 7
    del second
    third = get(reference)
    assert (third[0], third.flags.writeable) == (7, False)
    assert internal_state.store_stats().num_pins == 1
    del third
    wait_until(lambda: internal_state.store_stats().num_pins == 0, "a pin that nobody uses is released")
    assert get(reference)[0] == 7


def test_what_is_read_stays_when_its_reference_and_the_store_around_it_go(cluster: Any) -> None:
    reference = ray.put({"pieces": [piece(1), piece(2)]})
    kept = get(reference)["pieces"][1][5:]
    view = memoryview(kept)[5:]
    del reference
    # All other memory of the store is written again and again.
    for value in range(3 * PIECES):
        ray.put(piece(value + 3))
    assert len(kept) == PIECE_BYTES - 5 and (kept == 2).all()
    del kept
    ray.put(piece(100))
    assert bytes(view[:3]) == b"\2\2\2"
    wait_until(lambda: internal_state.store_stats().num_objects == 1, "only what is read is left")


@pytest.fixture
def other_node(cluster: Any) -> Iterator[Node]:
    """Has 2 of "there" and a store that is large enough."""
    params = RayParams(
        gcs_address=cluster["address"],
        node_ip_address="127.0.0.1",
        num_cpus=1,
        resources={"there": 2},
        object_store_memory=4 * STORE_BYTES,
    )
    node = Node(params, session_dir=cluster["session_dir"])
    yield node
    wait_for_nothing_left()
    node.kill_all_processes()


def test_copies_make_room_for_others_unless_somebody_reads_them(cluster: Any, other_node: Node) -> None:
    @ray.remote(num_cpus=0, resources={"there": 1})
    def make(value: int) -> Any:
        return piece(value)

    evicted_before = internal_state.store_stats().num_evicted
    references = [make.remote(value) for value in range(2 * PIECES)]
    read = get(references[0])
    assert [int(get(reference)[0]) for reference in references] == list(range(2 * PIECES))
    assert internal_state.store_stats().num_evicted >= PIECES
    assert (read == 0).all()
    # Of what was evicted there is another copy where it was made, and puts evict as well.
    assert get(references[1])[0] == 1
    own = [ray.put(piece(100)) for _ in range(PIECES - 1)]
    assert (read == 0).all()
    # Now nothing can be evicted any more: a copy waits for room, and says so in the end.
    with pytest.raises(
        ray.exceptions.ObjectStoreFullError,
        match=rf"of 1048\d+ bytes.*no room to copy it to .* for {COPY_WAIT_S} s",
    ):
        get(references[2])
    del read, own
    assert get(references[2])[0] == 2
    assert internal_state.store_stats().num_evicted > evicted_before


def test_wait_brings_what_lies_elsewhere_here_only_where_it_shall(cluster: Any, other_node: Node) -> None:
    @ray.remote(num_cpus=0, resources={"there": 1})
    def make(value: int) -> Any:
        return piece(value)

    references = [make.remote(value) for value in range(3)]
    assert ray.wait(references, num_returns=3, timeout=GET_TIMEOUT_S, fetch_local=False) == (references, [])
    assert internal_state.store_stats().num_objects == 0
    assert ray.wait(references[:1], timeout=GET_TIMEOUT_S) == (references[:1], [])
    assert internal_state.store_stats().num_objects == 1
    # Who never waits gets it in the end as well.
    assert ray.wait(references[1:2], timeout=0, fetch_local=False) == (references[1:2], [])
    wait_until(
        lambda: ray.wait(references[1:2], timeout=0)[0] == references[1:2],
        "a copy comes by looking again and again",
    )
    assert internal_state.store_stats().num_objects == 2
    assert get(references[1])[0] == 1


@pytest.mark.parametrize("size_bytes", [PIECE_BYTES, 2 * STORE_BYTES])
def test_what_has_no_room_for_its_argument_here_runs_where_that_lies(
    cluster: Any, other_node: Node, size_bytes: int
) -> None:
    @ray.remote(num_cpus=0, resources={"there": 1})
    def make() -> Any:
        return piece(7, size_bytes)

    @ray.remote(max_retries=0)
    def use(array: Any, number: int) -> tuple[int, str]:
        return int(array[0]) + number, ray.get_runtime_context().get_node_id()

    @ray.remote
    class Use:
        def __init__(self, array: Any) -> None:
            self.length = len(array)

        def where(self, array: Any = None) -> tuple[int, str]:
            return self.length, ray.get_runtime_context().get_node_id()

    kept, far = fill(), make.remote()
    ray.wait([far], timeout=GET_TIMEOUT_S, fetch_local=False)
    # More than the other node has CPUs: they wait for it.
    assert get([use.remote(far, number) for number in range(3)]) == [
        (7 + n, other_node.node_id) for n in range(3)
    ]
    assert get(Use.remote(far).where.remote()) == (size_bytes, other_node.node_id)
    if size_bytes > STORE_BYTES:
        # What has to be here says which node lacks the room, and which has the object.
        here = {"scheduling_strategy": NodeAffinitySchedulingStrategy(cluster["node_id"], soft=False)}
        lies = f"lies on node {other_node.node_id} and cannot"
        told = rf"(?s){lies} .* node {cluster['node_id']}: wanted 134\d+ bytes"
        actor = Use.options(**here).remote([])
        bound = [use.options(**here).remote(far, 0), actor.where.remote(far), far]
        for failed in bound:
            with pytest.raises(ray.exceptions.ObjectStoreFullError, match=told):
                get(failed)
        with pytest.raises(ray.exceptions.ActorDiedError, match=told):
            get(Use.options(**here).remote(far).where.remote())
        assert ray.wait([far], timeout=GET_TIMEOUT_S) == ([far], [])
    del kept


# ---------------------------------------------------------------- who dies


def test_a_worker_that_is_killed_in_the_middle_of_a_copy_leaves_nothing(cluster: Any, tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def die_copying(copies: Path) -> None:
        import time

        from ray_mono.core_worker.store_provider import bulk_write

        def write_half(target: Any, offset: int, source: Any) -> None:
            write(target, offset, source[: len(source) // 2])
            copies.write_text(str(os.getpid()))
            time.sleep(3600)

        write, bulk_write.write = bulk_write.write, write_half
        ray.put(piece(1))

    copies = tmp_path / "copies"
    lost = die_copying.remote(copies)
    wait_until(lambda: copies.exists() and bool(copies.read_text()), "the worker copies")
    stats = internal_state.store_stats()
    assert stats.num_unsealed == 1 and stats.used_bytes >= PIECE_BYTES
    os.kill(int(copies.read_text()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        get(lost)
    wait_until(lambda: not internal_state.store_stats().used_bytes, "its memory is free again")
    assert len(get([ray.put(piece(value)) for value in range(PIECES)])) == PIECES


def test_a_worker_that_is_killed_while_it_reads_or_waits_leaves_nothing(
    cluster: Any, tmp_path: Path, touch_and_wait: Any
) -> None:
    @ray.remote(max_retries=0)
    def read(array: Any, name: str) -> int:
        (tmp_path / name).write_text(str(os.getpid()))
        touch_and_wait(None, f"{tmp_path}/never")
        return len(array)

    @ray.remote(max_retries=0)
    def wait_for_room() -> None:
        (tmp_path / "waits").write_text(str(os.getpid()))
        ray.put(piece(1))

    kept = fill()
    reading = read.remote(kept[0], "reads")
    wait_until(lambda: (tmp_path / "reads").exists(), "the worker reads")
    waiting = wait_for_room.remote()
    wait_until(lambda: internal_state.store_stats().num_waiting_creates == 1, "the other one waits for room")
    for name in ("reads", "waits"):
        os.kill(int((tmp_path / name).read_text()), signal.SIGKILL)
    for lost in (reading, waiting):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            get(lost)
    wait_until(lambda: internal_state.store_stats().num_pins == 0, "nobody reads")
    wait_until(lambda: internal_state.store_stats().num_waiting_creates == 0, "nobody waits")


def test_what_the_store_has_is_not_available_any_more(cluster: Any) -> None:
    total = ray.cluster_resources()["object_store_memory"]
    assert ray.available_resources()["object_store_memory"] == total == STORE_BYTES
    kept = ray.put(piece(1))
    assert PIECE_BYTES <= total - ray.available_resources()["object_store_memory"] < PIECE_BYTES + MIB
    del kept


def test_references_in_cycles_of_garbage_on_any_node_make_room_when_the_store_is_full(
    cluster: Any, other_node: Node
) -> None:
    @ray.remote(num_cpus=0)
    class Careless:
        def litter(self, references: list[Any]) -> None:
            import gc

            gc.disable()
            cycle: list[Any] = [references]
            cycle.append(cycle)

    actors = [Careless.remote(), Careless.options(resources={"there": 1}).remote()]
    kept = [ray.put(piece(value)) for value in range(PIECES)]
    get([actor.litter.remote(kept) for actor in actors])
    del kept
    assert internal_state.store_stats().used_bytes > PIECES * PIECE_BYTES
    assert len(get(ray.put(piece(1)))) == PIECE_BYTES

"""A head that keeps nothing (`gcs_server --storage memory`, started by hand) is killed again and again. The
next one at its address is told by node, workers and driver what there is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_mono as ray
from ray_mono.util import (
    get_placement_group,
    list_named_actors,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray_mono.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.gcs.gcs_process import MODULE
from tests.gcs.redis_servers import free_port
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.clusters import join_cluster
from tests.waiting import wait_until

SECRET = "a secret of this test"
DEATHS = 3


class MemoryHead:
    """Heads at one address, one after another."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        ready, ready_in_child = os.pipe()
        arguments = ["--storage", "memory", "--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--session-dir", str(self._directory), "--ready-fd", str(ready_in_child)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *arguments],
            env={**os.environ, "PYTHONPATH": path, "RAY_MONO_AUTH_TOKEN": SECRET},
            pass_fds=(ready_in_child,),
        )
        os.close(ready_in_child)
        with open(ready) as file:
            assert file.readline(), "the head did not start"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def head(session_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryHead]:
    """Of a cluster with one node more. This process is a driver there."""
    monkeypatch.setenv("RAY_MONO_AUTH_TOKEN", SECRET)
    directory = session_base / "session_by_hand"
    directory.mkdir()
    head = MemoryHead(directory)
    head.start()
    try:
        join_cluster(session_base, head.address, num_cpus=2, node_ip_address="127.0.0.1")
        ray.init(address=head.address, namespace="here")
        yield head
    finally:
        ray.shutdown()
        subprocess.run([sys.executable, "-m", "ray_mono.scripts", "stop"], check=True)
        head.kill()


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def when_there(self, path: str) -> int:
        wait_until(lambda: os.path.exists(path), "it may go on")
        return self.next()


@ray.remote
def add(one: int, other: int) -> int:
    return one + other


def test_a_head_in_memory_that_is_killed_again_and_again_loses_no_actor_name_or_job(
    head: MemoryHead, tmp_path: Path
) -> None:
    plain = Counter.remote()
    named = Counter.options(name="named", lifetime="detached").remote()
    job_id = ray.get_runtime_context().get_job_id()
    assert get([plain.next.remote(), named.next.remote(), add.remote(1, 2)]) == [1, 1, 3]
    for death in range(DEATHS):
        go_on = tmp_path / f"go on {death}"
        in_flight = plain.when_there.remote(str(go_on))
        head.kill()
        assert get(add.remote(death, 1)) == death + 1
        go_on.touch()
        assert get(in_flight) == death + 2
        head.start()
        assert get(ray.get_actor("named").next.remote()) == death + 2
        assert list_named_actors() == ["named"]
        assert get(Counter.remote().next.remote()) == 1
        assert ray.get_runtime_context().get_job_id() == job_id
    ray.kill(named)
    wait_until(lambda: list_named_actors() == [], "the name is free")


def test_groups_outlive_such_a_head_whether_they_have_their_places_or_wait_for_them(head: MemoryHead) -> None:
    placed = placement_group([{"CPU": 2}])
    assert placed.wait(GET_TIMEOUT_S)
    waiting = [placement_group([{"CPU": 1}, {"CPU": 1}], name=name) for name in ("", "named")]
    inside = Counter.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placed)).remote()
    assert get(inside.next.remote()) == 1
    for death in range(DEATHS):
        head.kill()
        head.start()
        assert get(inside.next.remote()) == death + 2
        for group, state in ((placed, "CREATED"), *((group, "PENDING") for group in waiting)):
            wait_until(lambda of=group, is_=state: placement_group_table(of)["state"] == is_, state)
    assert get_placement_group("named").id == waiting[1].id
    for before, group in zip([placed, *waiting], waiting, strict=False):
        remove_placement_group(before)
        assert group.wait(GET_TIMEOUT_S)

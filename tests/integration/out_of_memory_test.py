"""A node whose memory runs short: a worker is killed before the kernel kills what it likes. Its task runs
again, or the error says who used what.

The tasks really allocate, up to an amount that no machine minds.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import OutOfMemoryError
from tests.integration.bounded import GET_TIMEOUT_S, get, process_ends
from tests.integration.memory_limits import a_cgroup, joined, made_up
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

MIB = 1 << 20
LIMIT_BYTES = 2048 * MIB
ROOM_BYTES = 1100 * MIB
"""For the cluster, whose processes take 100 to 350 MiB, and for one hog, but not for two."""
HOG_BYTES = 650 * MIB
GREEDY_BYTES = 1500 * MIB
"""There is never room for it."""
PART_BYTES = 10 * MIB
RAYLET = {"memory_monitor_refresh_ms": 50, "task_oom_retry_delay_base_ms": 50}


@pytest.fixture(scope="module", params=["a cgroup", "a made-up one"])
def small_cluster(request: pytest.FixtureRequest, shared_base: Path) -> Iterator[None]:
    """In a cgroup; or said to be in one, by a setting, whose files the test writes."""
    settings = {**RAYLET, "memory_usage_threshold": ROOM_BYTES / LIMIT_BYTES}
    with contextlib.ExitStack() as stack:
        if request.param == "a cgroup":
            group = stack.enter_context(a_cgroup(LIMIT_BYTES))
            if group is None:
                pytest.skip("no cgroup that limits memory can be made here")
            with joined(group):
                start(settings)
        else:
            root = shared_base / "machine"
            stack.enter_context(made_up(root, LIMIT_BYTES))
            start({**settings, "memory_root": str(root)})
        yield
        ray.shutdown()


def start(settings: dict[str, Any]) -> None:
    ray.init(address="local", num_cpus=3, object_store_memory=64 * MIB, _system_config={"raylet": settings})


@pytest.fixture
def runs(tmp_path: Path, small_cluster: None, by_value: None) -> Iterator[Path]:
    """Where tasks note that they began. Nothing is left after the test."""
    yield tmp_path
    wait_for_nothing_left()


def take(size_bytes: int) -> list[bytes]:
    """So much memory, not all at once. Who has more than there is room for keeps it until that is seen."""
    held = []
    for _ in range(size_bytes // PART_BYTES):
        held.append(os.urandom(1 << 10) * (PART_BYTES >> 10))
        time.sleep(0.005)
    if size_bytes > ROOM_BYTES:
        time.sleep(GET_TIMEOUT_S)
    return held


def begin(runs: Path, name: str) -> int:
    """Notes it. How often it has begun so far."""
    with open(runs / name, "a") as file:
        file.write(f"{os.getpid()}\n")
    return len(pids(runs, name))


def pids(runs: Path, name: str) -> list[int]:
    file = runs / name
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@ray.remote
def hog(runs: Path, name: str, size_bytes: int, until: str = "", times: int = 1) -> str:
    """Takes memory and keeps it until there are so many notes of that name. Then it notes its own end."""
    begin(runs, name)
    held = take(size_bytes)
    while until and len(pids(runs, until)) < times:
        time.sleep(0.01)
    count = len(held)
    held.clear()
    begin(runs, f"{name} ends")
    return f"{name} had {count}"


@ray.remote
class Hog:
    def __init__(self, runs: Path, name: str) -> None:
        begin(runs, name)
        self.held: list[bytes] = []

    def take(self, size_bytes: int) -> int:
        self.held += take(size_bytes)
        return len(self.held)

    def pid(self) -> int:
        return os.getpid()


def test_the_newest_task_is_killed_and_runs_again_without_cost_until_there_is_room(
    runs: Path, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["small_cluster"] != "a cgroup":
        pytest.skip("what is measured from outside tells too late that a killed one's memory is back")
    bystander = Hog.options(num_cpus=0).remote(runs, "bystander")
    pid = get(bystander.pid.remote())
    first = hog.options(max_retries=1).remote(runs, "first", HOG_BYTES, until="second", times=4)
    wait_until(lambda: pids(runs, "first"), "the first has begun")
    # It has one retry, which a crash would cost.
    second = hog.options(max_retries=1).remote(runs, "second", HOG_BYTES, until="first ends")
    assert get([first, second]) == ["first had 65", "second had 65"]
    assert len(pids(runs, "first")) == 1 and len(pids(runs, "second")) >= 4
    assert get(bystander.pid.remote()) == pid


def test_a_task_for_which_there_is_never_room_fails_and_says_who_used_what(runs: Path) -> None:
    ref = hog.options(max_retries=3).remote(runs, "alone", GREEDY_BYTES)
    with pytest.raises(OutOfMemoryError) as caught:
        get(ref)
    (pid,) = pids(runs, "alone")
    text = str(caught.value)
    assert f"killed the worker with pid {pid}, which ran task hog and used" in text
    assert f"Node 127.0.0.1 ({ray.get_runtime_context().get_node_id()}) runs short of memory" in text
    assert re.search(rf"^ *{pid} +[\d.]+ [GM]iB  task hog$", text, re.MULTILINE), text
    assert "num_cpus" in text and "RAY_MONO_memory_monitor_refresh_ms=0" in text


def test_a_program_that_a_task_runs_counts_as_its_own_and_ends_with_it(runs: Path) -> None:
    code = f"import time; held = b'x' * {GREEDY_BYTES}; time.sleep(1000)"

    @ray.remote
    def run_program() -> int:
        with subprocess.Popen([sys.executable, "-c", code]) as program:
            (runs / "program").write_text(str(program.pid))
            return program.wait()

    with pytest.raises(OutOfMemoryError, match=r"which ran task run_program and used (\d{3}|1)"):
        get(run_program.remote())
    process_ends(int((runs / "program").read_text()))


def test_an_idle_worker_that_kept_much_goes_and_no_task_fails_for_it(runs: Path) -> None:
    @ray.remote
    def leave_behind() -> int:
        os.held = take(HOG_BYTES)  # type: ignore[attr-defined]
        return os.getpid()

    pid = get(leave_behind.remote())
    # It cannot run on that worker.
    elsewhere = hog.options(max_retries=0, runtime_env={"env_vars": {"ELSEWHERE": "1"}})
    assert get(elsewhere.remote(runs, "elsewhere", HOG_BYTES)) == "elsewhere had 65"
    process_ends(pid)


def test_a_task_without_retries_fails_the_first_time(runs: Path) -> None:
    with pytest.raises(OutOfMemoryError):
        get(hog.options(max_retries=0).remote(runs, "once", GREEDY_BYTES))
    assert len(pids(runs, "once")) == 1


def test_an_actor_starts_again_while_its_restarts_last(runs: Path) -> None:
    actor = Hog.options(max_restarts=1, max_task_retries=1).remote(runs, "actor")
    with pytest.raises(OutOfMemoryError, match=r"class_name: Hog(.|\n)*which ran actor Hog and used"):
        get(actor.take.remote(GREEDY_BYTES))
    assert len(set(pids(runs, "actor"))) == 2


def test_an_actor_that_may_not_start_again_is_dead(runs: Path) -> None:
    actor = Hog.remote(runs, "actor")
    with pytest.raises(OutOfMemoryError):
        get(actor.take.remote(GREEDY_BYTES))
    with pytest.raises(OutOfMemoryError, match="which ran actor Hog and used"):
        get(actor.pid.remote())
    assert len(pids(runs, "actor")) == 1


def test_an_actor_whose_constructor_takes_too_much_is_dead(runs: Path) -> None:
    @ray.remote
    class Greedy:
        def __init__(self) -> None:
            self.held = take(GREEDY_BYTES)

        def call(self) -> None: ...

    with pytest.raises(OutOfMemoryError, match="which ran actor Greedy and used"):
        get(Greedy.remote().call.remote())

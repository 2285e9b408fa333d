"""Leases: who has his turn beside whom, and workers that do not answer: frozen, stopped, or still setting
themselves up."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_mono as ray
from ray_mono.exceptions import TaskCancelledError, WorkerCrashedError
from tests.integration.bounded import get
from tests.integration.conftest import NUM_CPUS
from tests.integration.scripts import Script
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("by_value", "leaves_nothing")


@ray.remote(max_retries=0)
def note(folder: Path, number: int) -> int:
    """A short task that leaves one more byte in its file each time it runs; returns its process."""
    descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, b".")
    os.close(descriptor)
    return os.getpid()


@ray.remote(max_retries=0)
def freeze(folder: Path) -> str:
    """Holds the interpreter's lock until somebody writes to the pipe."""
    descriptor = os.open(folder / "pipe", os.O_RDWR)
    (folder / "freezes").touch()
    ctypes.PyDLL(None).read(descriptor, ctypes.create_string_buffer(1), 1)
    return "thawed"


def everything_is_free() -> bool:
    return ray.available_resources().get("CPU") == NUM_CPUS


def num_runs(folder: Path) -> list[int]:
    return sorted(path.stat().st_size for path in folder.iterdir() if path.name.isdecimal())


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


FLOOD = """
    import sys
    import ray_mono as ray
    ray.init(address=sys.argv[1])

    @ray.remote
    def f():
        pass

    references = [f.remote() for _ in range(1000)]
    print("runs", flush=True)
    while True:
        _, references = ray.wait(references, num_returns=100)
        references += [f.remote() for _ in range(100)]
"""


def test_a_driver_has_its_turns_beside_another_whose_queue_never_ends(
    tmp_path: Path, shared_cluster: Any, start_script: Callable[..., Script]
) -> None:
    flood = start_script(FLOOD, shared_cluster.address_info["gcs_address"])
    flood.wait_for_line("runs")

    @ray.remote
    class Actor:
        def hello(self) -> str:
            return "hello"

    for number in range(5):
        get(note.remote(tmp_path, number))
    # All CPUs at once, and an actor's creation.
    get(note.options(num_cpus=NUM_CPUS).remote(tmp_path, 5))
    assert get(Actor.remote().hello.remote()) == "hello"
    flood.kill()
    wait_until(everything_is_free, "the other driver's leases ended")


def test_large_tasks_have_their_turns_beside_small_ones_of_the_same_driver(tmp_path: Path) -> None:
    numbers = itertools.count()
    references = [note.remote(tmp_path, next(numbers)) for _ in range(2000)]
    large = [note.options(num_cpus=NUM_CPUS).remote(tmp_path, next(numbers)) for _ in range(5)]
    while ray.wait(large, num_returns=5, timeout=0)[1]:
        _, references = ray.wait(references, num_returns=100, timeout=60)
        references += [note.remote(tmp_path, next(numbers)) for _ in range(100)]
        assert next(numbers) < 50_000, "the large ones had no turn"
    get(references)


def test_short_tasks_do_not_wait_behind_one_that_keeps_the_interpreter_to_itself(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        # Known to the workers: it freezes them as soon as it runs.
        os.write(pipe, b"." * 10)
        get([freeze.remote(tmp_path) for _ in range(10)] + [note.remote(tmp_path, 0) for _ in range(50)])
        (tmp_path / "0").unlink()
        frozen = freeze.remote(tmp_path)
        # Pushed behind it, since tasks were short so far.
        get([note.remote(tmp_path, number) for number in range(100)])
        assert ray.wait([frozen], timeout=0)[0] == []
        get([note.remote(tmp_path, number) for number in range(100, 200)])
        os.write(pipe, b".")
        assert get(frozen) == "thawed"
    finally:
        os.write(pipe, b".")
        os.close(pipe)
    wait_until(everything_is_free, "its lease ended as well")
    assert num_runs(tmp_path) == [1] * 200


def test_tasks_run_elsewhere_and_once_while_workers_that_have_leases_are_stopped(tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    for _ in range(3):
        references = [note.remote(tmp_path, next(numbers)) for _ in range(200)]
        pid = get(references[0])
        with stopped(pid):
            # What it has begun waits with it; all else does not, whatever was pushed there.
            rest = [note.remote(tmp_path, next(numbers)) for _ in range(200)]
            ready, late = ray.wait(references + rest, num_returns=398, timeout=60)
            assert len(late) <= 2
        get(references + rest)
    wait_until(everything_is_free, "every lease ended")
    assert num_runs(tmp_path) == [1] * next(numbers)


def test_the_death_of_a_stopped_worker_costs_what_was_taken_back_no_retry(tmp_path: Path) -> None:
    pid = get(note.remote(tmp_path, 0))
    references = [note.remote(tmp_path, number) for number in range(1, 301)]
    os.kill(pid, signal.SIGSTOP)
    ready, late = ray.wait(references, num_returns=299, timeout=60)
    psutil.Process(pid).kill()
    get(ready)
    # The one that it had begun, if any, is lost, and nothing else.
    assert len(late) <= 1
    for reference in late:
        with contextlib.suppress(WorkerCrashedError):
            get(reference)
    runs = num_runs(tmp_path)
    # It may have died between making its note and writing it.
    assert sorted(runs) in ([1] * len(runs), [0] * len(late) + [1] * (len(runs) - 1)) and len(runs) >= 300


def test_a_stopped_worker_that_runs_nothing_holds_no_cpu(tmp_path: Path) -> None:
    with contextlib.ExitStack() as all_stopped:
        for pid in set(get([note.remote(tmp_path, number) for number in range(20)])):
            all_stopped.enter_context(stopped(pid))
        # Whoever gets them has all of it run by others.
        get(note.options(num_cpus=NUM_CPUS).remote(tmp_path, 20))
        get([note.remote(tmp_path, number) for number in range(21, 41)])
    wait_until(everything_is_free, "every lease ended")
    assert num_runs(tmp_path) == [1] * 41


@ray.remote(num_cpus=0)
class Submitter:
    """Has tasks and values of its own."""

    def submit(self, folder: Path) -> int:
        self.kept = [freeze.remote(folder) for number in range(NUM_CPUS)]
        self.kept += [note.remote(folder, number) for number in range(10)]
        return os.getpid()

    def own(self) -> tuple[int, list[Any]]:
        return os.getpid(), [ray.put("a value")]

    def finish(self) -> None:
        ray.get(self.kept)


def test_leases_of_a_holder_that_is_stopped_lend_their_cpus_when_their_tasks_are_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    submitter = Submitter.remote()
    pid = get(submitter.submit.remote(tmp_path))
    wait_until(lambda: not ray.available_resources().get("CPU"), "its tasks have all CPUs")
    with stopped(pid):
        large = note.options(num_cpus=NUM_CPUS).remote(tmp_path, 10)
        assert ray.wait([large], timeout=0)[0] == []
        os.write(pipe, b"." * NUM_CPUS)
        get(large)
    get(submitter.finish.remote())
    os.close(pipe)
    wait_until(everything_is_free, "every lease ended")
    assert num_runs(tmp_path) == [1] * 11


def test_a_task_whose_answer_waits_for_an_owner_that_is_stopped_holds_no_cpu(tmp_path: Path) -> None:
    @ray.remote(num_cpus=NUM_CPUS)
    def keep(references: list[Any], over: Path) -> None:
        keep.kept = references  # type: ignore[attr-defined]
        over.touch()

    submitter = Submitter.remote()
    pid, own = get(submitter.own.remote())
    with stopped(pid):
        keeping = keep.remote(own, tmp_path / "over")
        wait_until((tmp_path / "over").exists, "it is over, but for the registration with the owner")
        get(note.options(num_cpus=NUM_CPUS).remote(tmp_path, 0))
        assert ray.wait([keeping], timeout=0)[0] == []
    get(keeping)
    ray.kill(submitter)


def test_a_frozen_task_can_be_cancelled_by_force(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    frozen = freeze.remote(tmp_path)
    wait_until((tmp_path / "freezes").exists, "it runs")
    ray.cancel(frozen, force=True)
    with pytest.raises(TaskCancelledError):
        get(frozen)


def test_a_cancel_is_not_lost_while_the_worker_sets_itself_up(
    tmp_path: Path, touch_and_wait: Callable[[str | None, str | None], None]
) -> None:
    made, awaited = str(tmp_path / "sets up"), str(tmp_path / "go on")

    def set_up(info: Any) -> None:
        if "SLOW_SET_UP" in os.environ:
            touch_and_wait(made, awaited)

    ray.run_function_on_all_workers(set_up)
    task = note.options(runtime_env={"env_vars": {"SLOW_SET_UP": "1"}}).remote(tmp_path, 0)
    wait_until((tmp_path / "sets up").exists, "its worker sets itself up")
    ray.cancel(task)
    # Its answer to what comes later is one to the cancel too.
    state = note.options(runtime_env={"env_vars": {"SLOW_SET_UP": "1"}}, num_cpus=0).remote(tmp_path, 1)
    (tmp_path / "go on").touch()
    with pytest.raises(TaskCancelledError):
        get(task)
    get(state)
    assert not (tmp_path / "0").exists()

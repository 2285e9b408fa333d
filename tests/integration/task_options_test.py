"""What the options of a task promise, on a node that declares GPUs and a resource of its own: retries, names,
resources, recursion."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import RayTaskError, WorkerCrashedError
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

NUM_GPUS = 4
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VISIBLE, raising=False)
        return ray.init(address="local", num_cpus=2, num_gpus=NUM_GPUS, resources={"slot": 1})


@pytest.fixture(autouse=True)
def leaves_nothing(cluster: Any) -> Iterator[None]:
    yield
    wait_for_nothing_left()
    wait_until(lambda: ray.available_resources().get("GPU") == NUM_GPUS, "all GPUs are free")


@pytest.fixture
def attempts(tmp_path: Path) -> Callable[[], int]:
    """Tasks append a byte to tmp_path/attempts each time that they run."""
    return lambda: (tmp_path / "attempts").stat().st_size


# ---------------------------------------------------------------- retries


@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_task_whose_worker_dies_is_tried_as_often_as_it_may(
    max_retries: int, tmp_path: Path, attempts: Callable[[], int]
) -> None:
    @ray.remote(max_retries=max_retries)
    def dies(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        get(dies.remote(str(tmp_path / "attempts")))
    assert attempts() == 1 + max_retries


@pytest.mark.parametrize(
    ("retry_exceptions", "kind", "expected"),
    [
        (False, ValueError, 1),
        (True, ValueError, 3),
        ([OSError, ValueError], ValueError, 3),
        ([OSError], FileNotFoundError, 3),
        ([OSError], ValueError, 1),
        ([], ValueError, 1),
    ],
)
def test_exceptions_are_retried_where_they_are_named(
    retry_exceptions: Any, kind: type[Exception], expected: int, tmp_path: Path, attempts: Callable[[], int]
) -> None:
    @ray.remote(max_retries=2, retry_exceptions=retry_exceptions)
    def fails(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        raise kind("on purpose")

    with pytest.raises(kind) as caught:
        get(fails.remote(str(tmp_path / "attempts")))
    assert isinstance(caught.value, RayTaskError)
    assert attempts() == expected


def test_a_retry_keeps_the_id_of_its_task(tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    @ray.remote(max_retries=3, retry_exceptions=True)
    def note(path: str) -> str:
        with open(path, "a") as file:
            file.write(ray.get_runtime_context().get_task_id() + "\n")
        if len(Path(path).read_text().split()) < 3:
            raise ValueError("again")
        return ray.get_runtime_context().get_task_id()

    reference = note.remote(str(seen))
    task_id = get(reference)
    assert seen.read_text().split() == [task_id] * 3
    assert reference.task_id().hex() == task_id


def test_max_calls_recycles_the_worker() -> None:
    work = ray.remote(max_calls=2)(os.getpid)
    first, second, third, fourth = [get(work.remote()) for _ in range(4)]
    assert first == second != third == fourth
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "the first worker is gone")


def test_a_function_with_gpus_leaves_its_worker_after_one_call() -> None:
    gpu = ray.remote(num_gpus=1)(os.getpid)
    for work in (gpu, gpu.options(num_gpus=0)):
        assert len({get(work.remote()) for _ in range(3)}) == 3
    for work in (gpu.options(max_calls=0), ray.remote(os.getpid).options(num_gpus=1)):
        assert len({get(work.remote()) for _ in range(3)}) == 1


# ---------------------------------------------------------------- arguments, returns, names


def test_arguments_may_have_any_name() -> None:
    class Taker:
        def take(self, /, **named: int) -> dict[str, int]:
            return named

    named = {"self": 1, "args": 2, "kwargs": 3, "timeout": 4}
    assert get(ray.remote(lambda **named: named).remote(**named)) == named
    assert get(ray.remote(num_cpus=0)(Taker).remote().take.remote(**named)) == named


def test_a_task_may_return_nothing_one_or_several_values() -> None:
    @ray.remote
    def count(number: int) -> list[int]:
        return list(range(number))

    assert count.options(num_returns=0).remote(0) is None
    assert get(count.options(num_returns=3).remote(3)) == [0, 1, 2]
    for number in (2, 4):
        for reference in count.options(num_returns=3).remote(number):
            with pytest.raises(ValueError, match=f"num_returns=3 but returned {number} values"):
                get(reference)
    for reference in ray.remote(num_returns=2)(lambda: 5).remote():
        with pytest.raises(TypeError, match="num_returns=2 but returned a int"):
            get(reference)


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


def test_a_worker_bears_the_name_of_its_task_while_it_has_one() -> None:
    @ray.remote
    def work() -> tuple[int, str, str | None]:
        title = Path("/proc/self/cmdline").read_text().rstrip("\0")
        return os.getpid(), title, ray.get_runtime_context().get_task_name()

    assert get(work.remote())[1:] == ("ray_mono::work", "work")
    for _ in range(2):
        pid, *names = get(work.options(name="a nice name").remote())
        assert names == ["ray_mono::a nice name", "a nice name"]
        wait_until(lambda: title_of(pid) == "ray_mono::IDLE", "the worker rests")  # noqa: B023
    assert get(work.options(name="a\nb\0c").remote())[1:] == ("ray_mono::a b c", "a\nb\0c")


def test_an_actor_bears_the_name_of_its_call_while_it_has_one() -> None:
    class Worker:
        def work(self) -> tuple[int, str]:
            return os.getpid(), title_of(os.getpid())

    for max_concurrency in (1, 2):
        worker = ray.remote(num_cpus=0)(Worker).options(max_concurrency=max_concurrency).remote()
        for _ in range(2):
            pid, title = get(worker.work.remote())
            assert title == "ray_mono::Worker.work"
            assert get(worker.work.options(name="a nice name").remote()) == (pid, "ray_mono::a nice name")
        wait_until(lambda: title_of(pid) == "ray_mono::Worker", "the actor rests")  # noqa: B023


# ---------------------------------------------------------------- resources


def test_libraries_may_start_as_many_threads_as_a_task_has_cpus() -> None:
    @ray.remote
    def look() -> str | None:
        return os.environ.get("OMP_NUM_THREADS")

    class Worker:
        def look(self) -> str | None:
            return os.environ.get("OMP_NUM_THREADS")

    for cpus, threads in ((2, "2"), (0, "1"), (1, "1"), (0.5, "1")):
        assert get(look.options(num_cpus=cpus).remote()) == threads
        assert get(ray.remote(num_cpus=cpus)(Worker).remote().look.remote()) == threads
    env = {"env_vars": {"OMP_NUM_THREADS": "7"}}
    assert get(look.options(num_cpus=2, runtime_env=env).remote()) == "7"


def test_tasks_without_cpus_run_beside_any_number_of_each_other(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def meet(name: str) -> dict[str, float]:
        (tmp_path / name).touch()
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while len(list(tmp_path.iterdir())) < 6:
            assert time.monotonic() < deadline_s, "the others did not come"
            time.sleep(0.01)
        return ray.get_runtime_context().get_assigned_resources()

    assert get([meet.remote(str(number)) for number in range(6)]) == [{}] * 6


@pytest.mark.parametrize(("share", "most"), [(0.3, 3), (0.5, 2), (0.0001, 8), (0.51, 1)])
def test_shares_of_a_resource_are_never_more_than_it(share: float, most: int, tmp_path: Path) -> None:
    @ray.remote(num_cpus=0, resources={"slot": share})
    def work(name: str) -> int:
        mine, full = tmp_path / f"run-{name}", tmp_path / "full"
        mine.touch()
        highest, rounds_left = 0, 10
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while rounds_left:
            highest = max(highest, len(list(tmp_path.glob("run-*"))))
            if highest >= most:
                full.touch()
            rounds_left -= full.exists()
            assert time.monotonic() < deadline_s, f"never more than {highest} at a time"
            time.sleep(0.01)
        mine.unlink()
        return highest

    assert max(get([work.remote(str(number)) for number in range(8)])) == most


def test_a_task_sees_the_gpus_that_it_was_given_and_no_others(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def look(name: str, wanted: int) -> tuple[list[int], str | None, list[str]]:
        (tmp_path / name).touch()
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while len(list(tmp_path.iterdir())) < wanted:
            assert time.monotonic() < deadline_s, "the others did not come"
            time.sleep(0.01)
        return (
            ray.get_gpu_ids(),
            os.environ.get(VISIBLE),
            ray.get_runtime_context().get_accelerator_ids()["GPU"],
        )

    shapes = {"two": 2, "one": 1, "half": 0.5, "other half": 0.5, "none": 0}
    references = [look.options(num_gpus=gpus).remote(name, len(shapes)) for name, gpus in shapes.items()]
    found = get(references)
    for ids, visible, names in found[:-1]:
        assert visible == ",".join(names) == ",".join(map(str, ids))
    two, one, half, other_half = (ids for ids, _, _ in found[:-1])
    assert half == other_half and sorted([*two, *one, *half]) == [0, 1, 2, 3]
    assert found[-1] == ([], None, [])
    # A worker that had GPUs before has none in a task without.
    assert get([look.options(num_gpus=0).remote("again", 1) for _ in range(4)]) == [([], None, [])] * 4


def test_an_actor_keeps_its_gpus() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.at_first = os.environ[VISIBLE]

        def look(self) -> tuple[list[int], str, str]:
            return ray.get_gpu_ids(), self.at_first, os.environ[VISIBLE]

    first, second = [ray.remote(num_gpus=2, num_cpus=0)(Trainer).remote() for _ in range(2)]
    taken = []
    for actor in (first, second):
        ids, at_first, now = get(actor.look.remote())
        assert at_first == now == ",".join(map(str, ids))
        taken += ids
    assert sorted(taken) == list(range(NUM_GPUS))


def test_tasks_that_wait_for_tasks_go_as_deep_as_they_like() -> None:
    @ray.remote
    def dive(depth: int) -> int:
        return 1 + ray.get(dive.remote(depth - 1), timeout=GET_TIMEOUT_S) if depth else 0

    assert get(dive.remote(50)) == 50

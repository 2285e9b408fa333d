"""`cancel` of tasks: before they begin, while they run, after; with force; with what they submitted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import RayTaskError, TaskCancelledError
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@ray.remote
def run_until_interrupted(folder: Path, name: str, then: str = "raise", box: Any = ()) -> str:
    """Makes the file `name` when it runs, and `name`.interrupted when it is. box: kept alive meanwhile."""
    try:
        # In here: whoever sees the file may interrupt this before touch() has returned.
        (folder / name).touch()
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        while time.monotonic() < deadline_s:
            time.sleep(0.01)
        return "nobody came"
    except KeyboardInterrupt:
        (folder / f"{name}.interrupted").touch()
        if then == "return":
            return "interrupted"
        if then == "fail":
            raise ValueError("in the middle of it") from None
        if then == "ask":
            return str(ray.get_runtime_context().is_canceled())
        raise


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """start(name, then="raise", **options): a task that runs, and its reference."""

    def start(name: str = "task", then: str = "raise", **options: Any) -> Any:
        ref = run_until_interrupted.options(num_cpus=0, **options).remote(tmp_path, name, then)
        wait_until((tmp_path / name).exists, f"{name} runs")
        return ref

    return start


def check_cancelled(ref: Any) -> None:
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_a_task_that_waits_for_a_worker_never_runs(tmp_path: Path) -> None:
    ref = run_until_interrupted.options(num_cpus=1000).remote(tmp_path, "queued")
    ray.cancel(ref)
    check_cancelled(ref)
    assert not (tmp_path / "queued").exists()


def test_a_task_that_waits_for_its_arguments_never_runs(tmp_path: Path, start: Callable[..., Any]) -> None:
    argument = start("argument", "return")
    ref = run_until_interrupted.remote(tmp_path, "waiting", argument)
    ray.cancel(ref)
    check_cancelled(ref)
    ray.cancel(argument)
    assert get(argument) == "interrupted"
    assert not (tmp_path / "waiting").exists()


def test_a_task_that_was_pushed_ahead_never_runs_and_the_others_do(tmp_path: Path) -> None:
    @ray.remote
    def note(number: int) -> int:
        with (tmp_path / "notes").open("a") as file:
            file.write(f"{number}\n")
        return number

    get([note.remote(-1) for _ in range(50)])  # so that the next ones are known to be short
    refs = [note.remote(number) for number in range(200)]
    for ref in refs[::2]:
        ray.cancel(ref)
    for number, ref in enumerate(refs):
        try:
            assert get(ref) == number
        except TaskCancelledError:
            assert number % 2 == 0
    # What finished or was under way before it could be cancelled counts as run; nothing ran twice.
    ran = [line for line in (tmp_path / "notes").read_text().split() if line != "-1"]
    assert len(ran) == len(set(ran))
    assert {str(number) for number in range(1, 200, 2)} <= set(ran)


def test_keyboard_interrupt_is_raised_in_a_task_that_runs(tmp_path: Path, start: Callable[..., Any]) -> None:
    ref = start()
    ray.cancel(ref)
    with pytest.raises(RayTaskError, match="in run_until_interrupted") as caught:
        get(ref)
    assert isinstance(caught.value, TaskCancelledError)
    assert isinstance(caught.value.cause, TaskCancelledError)
    assert (tmp_path / "task.interrupted").exists()


def test_a_task_that_waits_in_get_is_interrupted(tmp_path: Path, start: Callable[..., Any]) -> None:
    @ray.remote(num_cpus=0)
    def wait_for(box: list[Any]) -> Any:
        (tmp_path / "waits").touch()
        return ray.get(box[0])

    other = start("other", "return")
    ref = wait_for.remote([other])
    wait_until((tmp_path / "waits").exists, "the task waits")
    ray.cancel(ref, recursive=False)
    check_cancelled(ref)
    ray.cancel(other)
    assert get(other) == "interrupted"


def test_a_task_that_catches_the_interrupt_has_its_own_value(start: Callable[..., Any]) -> None:
    ref = start(then="return")
    ray.cancel(ref)
    assert get(ref) == "interrupted"


def test_a_task_that_fails_in_its_own_way_has_its_own_error(start: Callable[..., Any]) -> None:
    ref = start(then="fail")
    ray.cancel(ref)
    with pytest.raises(ValueError, match="in the middle of it"):
        get(ref)


def test_a_task_can_ask_whether_it_was_cancelled(start: Callable[..., Any]) -> None:
    ref = start(then="ask")
    ray.cancel(ref)
    assert get(ref) == "True"
    with pytest.raises(RuntimeError, match="this process is a driver"):
        ray.get_runtime_context().is_canceled()


def test_the_worker_of_an_interrupted_task_runs_the_next_one(tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def pid() -> int:
        return os.getpid()

    @ray.remote
    def own_pid(name: str) -> None:
        (tmp_path / name).write_text(str(os.getpid()))
        time.sleep(GET_TIMEOUT_S)

    for round_ in range(10):
        path = tmp_path / str(round_)
        ref = own_pid.remote(path.name)
        wait_until(
            lambda path=path: path.exists() and path.read_text() != "",  # type: ignore[misc]
            "the task runs",
        )
        ray.cancel(ref)
        check_cancelled(ref)
        assert get([pid.remote() for _ in range(20)])


def test_a_finished_task_keeps_its_value() -> None:
    @ray.remote
    def five() -> int:
        return 5

    ref = five.remote()
    assert get(ref) == 5
    ray.cancel(ref)
    ray.cancel(ref, force=True)
    assert get(ref) == 5


def test_a_put_cannot_be_cancelled() -> None:
    ref = ray.put(5)
    ray.cancel(ref)
    assert get(ref) == 5


def test_force_ends_the_worker(tmp_path: Path, start: Callable[..., Any]) -> None:
    ref = start(max_retries=3)
    ray.cancel(ref, force=True)
    check_cancelled(ref)
    assert not (tmp_path / "task.interrupted").exists()


def test_a_cancelled_task_is_not_retried(tmp_path: Path, start: Callable[..., Any]) -> None:
    ref = start(max_retries=3, retry_exceptions=True)
    (tmp_path / "task").unlink()
    ray.cancel(ref)
    check_cancelled(ref)
    assert not (tmp_path / "task").exists()


def test_all_returns_are_cancelled(tmp_path: Path) -> None:
    refs = run_until_interrupted.options(num_cpus=1000, num_returns=2).remote(tmp_path, "queued")
    ray.cancel(refs[1])
    for ref in refs:
        check_cancelled(ref)


@pytest.mark.parametrize("force", [False, True])
def test_what_a_task_submitted_is_cancelled_with_it(tmp_path: Path, force: bool) -> None:
    @ray.remote(num_cpus=0)
    def parent(depth: int) -> Any:
        if depth:
            return ray.get(parent.remote(depth - 1))
        return ray.get(run_until_interrupted.options(num_cpus=0).remote(tmp_path, "child"))

    ref = parent.remote(2)
    wait_until((tmp_path / "child").exists, "the child runs")
    ray.cancel(ref, force=force)
    check_cancelled(ref)
    if not force:
        wait_until((tmp_path / "child.interrupted").exists, "the child is interrupted")


def test_without_recursive_what_a_task_submitted_goes_on(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def child() -> None:
        (tmp_path / "child").touch()
        wait_until((tmp_path / "go").exists, "the test lets the child go")
        (tmp_path / "child.done").touch()

    @ray.remote(num_cpus=0)
    def parent() -> Any:
        return ray.get(child.remote())

    ref = parent.remote()
    wait_until((tmp_path / "child").exists, "the child runs")
    ray.cancel(ref, recursive=False)
    check_cancelled(ref)
    (tmp_path / "go").touch()
    wait_until((tmp_path / "child.done").exists, "the child ends by itself")


def test_whoever_has_a_reference_can_cancel(start: Callable[..., Any]) -> None:
    @ray.remote(num_cpus=0)
    def cancel_for(box: list[Any]) -> None:
        ray.cancel(box[0])

    ref = start(then="return")
    get(cancel_for.remote([ref]))
    assert get(ref) == "interrupted"


def test_a_generator_ends_with_the_error(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0, num_returns="streaming")
    def count() -> Any:
        yield 0
        yield get(run_until_interrupted.options(num_cpus=0).remote(tmp_path, "inner"))

    items = count.remote()
    assert get(next(items)) == 0
    wait_until((tmp_path / "inner").exists, "the generator waits")
    ray.cancel(items)
    check_cancelled(next(items))
    with pytest.raises(StopIteration):
        next(items)


@pytest.mark.parametrize("bad", [5, "ref", None, []])
def test_only_references_are_taken(bad: Any) -> None:
    with pytest.raises(TypeError, match="takes an ObjectRef"):
        ray.cancel(bad)

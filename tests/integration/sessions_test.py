"""What of one session meets the next one, or its own end: nothing is read from the wrong cluster, and nothing
waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_mono as ray
from ray_mono.exceptions import RayError
from tests.integration.titles import processes_below

pytestmark = pytest.mark.usefixtures("session_base")

GET_TIMEOUT_S = 60


class Sleeper:
    def sleep(self) -> None:
        threading.Event().wait(GET_TIMEOUT_S)

    def ready(self) -> bool:
        return True


@ray.remote
def sleep() -> None:
    threading.Event().wait(GET_TIMEOUT_S)


@ray.remote
def echo(value: Any) -> Any:
    return value


def test_a_reference_of_an_earlier_session_is_refused_wherever_it_is_given() -> None:
    ray.init(address="local", num_cpus=1)
    old = ray.put("old")
    ray.shutdown()
    ray.init(address="local", num_cpus=1)
    # Both are the first object of the first job of their clusters: they have the same id.
    new = ray.put("new")
    assert old.binary() == new.binary()
    uses: list[Callable[[], Any]] = [
        lambda: ray.get(old),
        lambda: ray.wait([old]),
        lambda: ray.put([old]),
        lambda: echo.remote(old),
        lambda: echo.remote([old]),
    ]
    for use in uses:
        with pytest.raises((RayError, TypeError), match="session that is over"):
            use()
    assert ray.get(new, timeout=GET_TIMEOUT_S) == "new"
    ray.shutdown()


def test_every_wait_of_another_thread_ends_with_the_session() -> None:
    ray.init(address="local", num_cpus=1)
    actor = ray.remote(Sleeper).remote()
    assert ray.get(actor.ready.remote(), timeout=GET_TIMEOUT_S)
    task, call = sleep.remote(), actor.sleep.remote()
    futures = [task.future(), call.future()]
    ended: list[str] = []

    def wait(reference: Any) -> None:
        with pytest.raises(RayError):
            ray.get(reference, timeout=GET_TIMEOUT_S)
        ended.append("ended")

    threads = [threading.Thread(target=wait, args=(reference,)) for reference in (task, call)]
    for thread in threads:
        thread.start()
    ray.shutdown()
    for thread in threads:
        thread.join(GET_TIMEOUT_S)
    assert ended == ["ended"] * 2
    for future in futures:
        with pytest.raises(RayError):
            future.result(GET_TIMEOUT_S)


@pytest.mark.parametrize("service", ["raylet", "object_manager"])
def test_when_a_service_is_killed_everything_that_waits_is_told(service: str) -> None:
    ray.init(address="local", num_cpus=1)
    actor = ray.remote(Sleeper).remote()
    assert ray.get(actor.ready.remote(), timeout=GET_TIMEOUT_S)
    before = [sleep.remote(), actor.sleep.remote()]
    (victim,) = processes_below(f".{service} ")
    victim.kill()
    psutil.wait_procs([victim], timeout=GET_TIMEOUT_S)
    for reference in before:
        with pytest.raises(RayError, match="died|lost|gone|disconnected"):
            ray.get(reference, timeout=GET_TIMEOUT_S)
    for reference in (sleep.remote(), actor.ready.remote()):
        with pytest.raises(RayError, match="died|lost|gone|disconnected"):
            ray.get(reference, timeout=GET_TIMEOUT_S)
    ray.shutdown()


def test_a_session_can_end_and_begin_in_a_process_with_open_futures(session_base: Path) -> None:
    for number in range(3):
        ray.init(address="local", num_cpus=1)
        assert echo.remote(number).future().result(GET_TIMEOUT_S) == number
        ray.shutdown()
    assert (
        sum(thread.name == "ray_mono-futures" and thread.is_alive() for thread in threading.enumerate()) <= 1
    )

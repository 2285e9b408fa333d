"""Programs that go wrong, on one cluster that they share: each failure says what it was, and nothing is left
of it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.integration.bounded import get

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def test_an_error_is_of_the_original_type_and_shows_the_remote_traceback() -> None:
    class TooHot(Exception):
        def __init__(self, degrees: int, place: str) -> None:
            super().__init__(f"{degrees} degrees")
            self.degrees = degrees

    @ray.remote
    def measure() -> None:
        raise TooHot(451, "here")

    @ray.remote
    def relay(reference: Any) -> None:
        ray.get(reference[0])

    failed = measure.remote()
    for reference in (failed, relay.remote([failed])):
        with pytest.raises(TooHot, match="451 degrees") as caught:
            get(reference)
        assert isinstance(caught.value, ray.exceptions.RayTaskError)
        assert caught.value.degrees == 451
        assert "measure" in str(caught.value) and 'raise TooHot(451, "here")' in str(caught.value)
        del caught


def test_a_task_with_a_failed_argument_fails_the_same_way() -> None:
    @ray.remote
    def fail() -> None:
        raise KeyError("lost")

    @ray.remote
    def use(x: Any) -> Any:
        return x

    with pytest.raises(KeyError, match="lost"):
        get(use.remote(use.remote(fail.remote())))


def test_an_unpicklable_argument_is_named() -> None:
    @ray.remote
    def use(a: Any, b: Any = None) -> None: ...

    with pytest.raises(TypeError, match=r"b.*lock"):
        use.remote(1, b=threading.Lock())
    lock = threading.Lock()

    @ray.remote
    def captures() -> Any:
        return lock

    with pytest.raises(TypeError, match=r"captures.*lock"):
        captures.remote()


def test_a_call_without_remote_says_how() -> None:
    @ray.remote
    def f() -> None: ...

    class A:
        def m(self) -> None: ...

    actor_class: Any = ray.remote(A)
    with pytest.raises(TypeError, match=r"f\.remote\(\)"):
        f()
    with pytest.raises(TypeError, match=r"A\.remote\(\)"):
        actor_class()
    with pytest.raises(TypeError, match=r"\.m\.remote\(\)"):
        actor_class.remote().m()


def test_init_twice_is_refused_unless_it_is_allowed(shared_cluster: Any) -> None:
    with pytest.raises(RuntimeError, match="connected already"):
        ray.init()
    assert (
        ray.init(ignore_reinit_error=True)["node_id"] == shared_cluster["node_id"] == ray.nodes()[0]["NodeID"]
    )


def test_get_on_what_is_no_reference_says_what_it_was() -> None:
    with pytest.raises(ValueError, match="got 3 of type int"):
        ray.get(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="the list has 3 of type int"):
        ray.get([ray.put(1), 3])  # type: ignore[list-item]


def test_a_worker_that_exits_fails_its_task_and_nothing_else() -> None:
    @ray.remote(max_retries=0)
    def leave() -> None:
        os._exit(7)

    @ray.remote
    def stay() -> str:
        return "here"

    left = leave.remote()
    stayed = [stay.remote() for _ in range(4)]
    with pytest.raises(
        ray.exceptions.WorkerCrashedError, match=r"pid \d+ exited with code 7; node"
    ) as crashed:
        get(left)
    first_line = str(crashed.value).partition("\n")[0]
    assert Path(first_line.rpartition("output in ")[2].removesuffix(" and .err")).exists()
    assert get(stayed) == ["here"] * 4 and get(stay.remote()) == "here"


def test_a_task_whose_worker_exits_is_retried(tmp_path: Path) -> None:
    @ray.remote
    def second_time_lucky() -> str:
        flag = tmp_path / "tried"
        if not flag.exists():
            flag.touch()
            os._exit(1)
        return "lucky"

    assert get(second_time_lucky.remote()) == "lucky"


def test_an_actor_that_exits_fails_its_calls() -> None:
    class Fragile:
        def leave(self) -> None:
            os._exit(3)

        def answer(self) -> int:
            return 1

    fragile = ray.remote(Fragile).remote()
    assert get(fragile.answer.remote()) == 1
    with pytest.raises(ray.exceptions.RayActorError):
        get(fragile.leave.remote())
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(fragile.answer.remote())

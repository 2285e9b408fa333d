"""How actors are found by name, and how their handles are passed on."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.exceptions import ActorAlreadyExistsError, ActorDiedError
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, number: int) -> list[int]:
        self.seen.append(number)
        return self.seen

    def pid(self) -> int:
        return os.getpid()


def test_detached_actors_live_in_namespaces_until_they_are_killed() -> None:
    log: Any = ray.remote(Log)
    log.options(name="keeper", lifetime="detached").remote()
    log.options(name="keeper", lifetime="detached", namespace="other").remote()
    here, there = ray.get_actor("keeper"), ray.get_actor("keeper", namespace="other")
    assert get(here.pid.remote()) != get(there.pid.remote())
    with pytest.raises(ActorAlreadyExistsError):
        log.options(name="keeper").remote()
    assert ray.util.list_named_actors() == ["keeper"]
    everywhere = ray.util.list_named_actors(all_namespaces=True)
    assert [actor["name"] for actor in everywhere] == ["keeper"] * 2 and "other" in {
        actor["namespace"] for actor in everywhere
    }
    ray.kill(here)
    ray.kill(there)
    wait_until(lambda: not ray.util.list_named_actors(all_namespaces=True), "both names are free")
    with pytest.raises(ValueError, match="keeper"):
        ray.get_actor("keeper")
    # The name may be taken again.
    assert get(log.options(name="keeper").remote().note.remote(1)) == [1]


def test_fifty_callers_of_get_if_exists_make_one_actor() -> None:
    log: Any = ray.remote(Log).options(name="one", get_if_exists=True, lifetime="detached", num_cpus=0)
    processes: list[int] = []

    def call() -> None:
        processes.append(get(log.remote().pid.remote()))

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_TIMEOUT_S)
    assert len(processes) == 50 and len(set(processes)) == 1
    ray.kill(ray.get_actor("one"))


class Late:
    """Is given what is not there yet."""

    def __init__(self, given: int) -> None:
        self.given = given

    def get(self) -> int:
        return self.given


def make_later(path: Path, fails: bool) -> Any:
    """A value, or an error, that is there when the file is."""

    @ray.remote(num_cpus=0, max_retries=0)
    def make() -> int:
        wait_until(path.exists, "the value may be made")
        if fails:
            raise KeyError("no")
        return 7

    return make.remote()


@ray.remote(num_cpus=0)
def call_by_name(name: str, found: Path) -> int:
    ref = ray.get_actor(name).get.remote()
    found.touch()
    return get(ref)  # type: ignore[no-any-return]


def test_a_named_actor_is_found_and_called_before_its_arguments_are_there(tmp_path: Path) -> None:
    late: Any = ray.remote(Late).options(name="late", num_cpus=0)
    handle = late.remote(make_later(tmp_path / "now", fails=False))
    with pytest.raises(ActorAlreadyExistsError, match="late"):
        late.remote(8)
    others = [handle, ray.get_actor("late"), late.options(get_if_exists=True).remote(8)]
    refs = [*(each.get.remote() for each in others), call_by_name.remote("late", tmp_path / "found")]
    assert ray.util.list_named_actors() == ["late"] and not ray.wait(refs, timeout=0.1)[0]
    (tmp_path / "now").touch()
    assert get(refs) == [7] * 4


def test_whoever_has_a_handle_is_told_that_an_argument_failed(tmp_path: Path) -> None:
    late: Any = ray.remote(Late).options(name="late", num_cpus=0)
    handle = late.remote(make_later(tmp_path / "now", fails=True))
    found = tmp_path / "found"
    refs = [handle.get.remote(), ray.get_actor("late").get.remote(), call_by_name.remote("late", found)]
    wait_until(found.exists, "a task has found it by its name")
    (tmp_path / "now").touch()
    for ref in refs:
        with pytest.raises(ActorDiedError, match="KeyError: 'no'"):
            get(ref)
    # The name may be taken again, while there are handles of the dead one.
    assert get(late.remote(8).get.remote()) == 8


def test_a_named_actor_may_be_killed_and_let_go_of_before_its_arguments_are_there(tmp_path: Path) -> None:
    argument = make_later(tmp_path / "now", fails=False)
    late: Any = ray.remote(Late).options(name="late", num_cpus=0)
    handle = late.remote(argument)
    ref = ray.get_actor("late").get.remote()
    ray.kill(ray.get_actor("late"))
    with pytest.raises(ActorDiedError, match="killed by kill"):
        get(ref)
    handle = late.remote(argument)
    del handle
    wait_until(lambda: not ray.util.list_named_actors(), "the name is free")
    handle = late.remote(argument)
    (tmp_path / "now").touch()
    assert get(handle.get.remote()) == 7


def test_handles_travel_in_arguments_values_puts_and_closures() -> None:
    @ray.remote
    def use(handle: Any, boxed: list[Any]) -> list[int]:
        get(handle.note.remote(1))
        return list(get(boxed[0].note.remote(2)))

    class Holder:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def give(self) -> Any:
            return self.handle

    actor: Any = ray.remote(Log).remote()
    assert get(use.remote(actor, [actor])) == [1, 2]
    given = get(ray.remote(Holder).remote(actor).give.remote())
    assert given == actor and hash(given) == hash(actor)
    assert get(get(ray.put({"here": given}))["here"].note.remote(3)) == [1, 2, 3]

    @ray.remote
    def captures() -> list[int]:
        return list(get(actor.note.remote(4)))

    assert get(captures.remote()) == [1, 2, 3, 4]


def test_an_actor_lives_on_with_the_handle_that_its_maker_returned() -> None:
    @ray.remote
    def make() -> Any:
        return ray.remote(Log).options(num_cpus=0).remote()

    assert get(get(make.remote()).note.remote(1)) == [1]


def test_actors_make_actors_five_deep() -> None:
    class Deep:
        def __init__(self, more: int) -> None:
            self.child: Any = ray.remote(type(self)).options(num_cpus=0).remote(more - 1) if more else None

        def depth(self) -> int:
            return 1 + (int(get(self.child.depth.remote())) if self.child else 0)

    assert get(ray.remote(Deep).options(num_cpus=0).remote(4).depth.remote()) == 5


def test_a_worker_that_is_given_a_handle_again_and_again_keeps_one_actor_for_it() -> None:
    @ray.remote(num_cpus=0)
    class Called:
        def method(self) -> int:
            return 1

    @ray.remote
    def calls(handles: list[Any]) -> tuple[int, int]:
        import gc

        from ray_mono.core_worker.task_submission.called_actor import CalledActor

        assert ray.get(handles[0].method.remote()) == 1
        called_id = handles[0]._actor_id.binary()
        return os.getpid(), sum(
            isinstance(kept, CalledActor) and kept.actor_id == called_id for kept in gc.get_objects()
        )

    called = Called.remote()
    times: dict[int, int] = {}
    while max(times.values(), default=0) < 4:
        pid, count = get(calls.remote([called]))
        assert count == 1
        times[pid] = times.get(pid, 0) + 1

"""Who frees what, and when, with references that travel: every scene ends with an empty store and an empty
table.

Values are larger than what travels in messages, so that an object freed too early cannot be read.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ray_mono as ray
from ray_mono._private import internal_state
from ray_mono.exceptions import OwnerDiedError, RayActorError, RayTaskError
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

ROUNDS = 10


def large(number: int) -> np.ndarray:
    return np.full(50_000, number)


class Keeper:
    """An actor that owns, keeps and hands out references."""

    def __init__(self, boxed: Any = None) -> None:
        self.kept = boxed

    def make(self, number: int) -> Any:
        return [ray.put(large(number))]

    def keep(self, boxed: Any) -> None:
        self.kept = boxed

    def give(self) -> Any:
        boxed, self.kept = self.kept, None
        return boxed

    def show(self) -> Any:
        return self.kept

    def read(self) -> list[int]:
        return [int(value[0]) for value in ray.get(list(self.kept), timeout=GET_TIMEOUT_S)]

    def pass_to(self, other: Any) -> None:
        ray.get(other.keep.remote(self.kept), timeout=GET_TIMEOUT_S)

    def pid(self) -> int:
        return os.getpid()


def keeper(*args: Any, **options: Any) -> Any:
    return ray.remote(Keeper).options(**options).remote(*args)


def settled() -> None:
    """What was dropped here is counted; what it set off is under way."""
    internal_state.num_references()


@ray.remote
def read_all(boxed: Any) -> int:
    return sum(int(value[0]) for value in ray.get(boxed, timeout=GET_TIMEOUT_S))


# ---------------------------------------------------------------- lending


def test_an_actor_keeps_what_its_caller_has_dropped() -> None:
    actor = keeper()
    for number in range(ROUNDS):
        get(actor.keep.remote([ray.put(large(number))]))
        settled()
        assert get(actor.read.remote()) == [number]


def test_references_come_back_to_their_owner_with_the_last_one_that_knew_them() -> None:
    actor, other = keeper(), keeper()
    for number in range(ROUNDS):
        # One owned here and one owned elsewhere: handing over the second takes the actor a round trip.
        get(actor.keep.remote([ray.put(large(number)), *get(other.make.remote(number))]))
        settled()
        assert [int(value[0]) for value in get(get(actor.give.remote()))] == [number, number]


def test_a_reference_outlives_the_actor_that_passed_it_on() -> None:
    first, second = keeper(), keeper()
    get(first.keep.remote([ray.put(large(7))]))
    get(first.pass_to.remote(second))
    ray.kill(first)
    settled()
    assert get(second.read.remote()) == [7]


def test_references_go_round_a_ring_of_processes() -> None:
    ring = [keeper() for _ in range(3)]
    get(ring[0].keep.remote([ray.put(large(number)) for number in range(3)]))
    settled()
    for lap in range(ROUNDS):
        giver, taker = ring[lap % 3], ring[(lap + 1) % 3]
        # By way of this driver, and straight.
        if lap % 2:
            get(taker.keep.remote(get(giver.give.remote())))
        else:
            get(giver.pass_to.remote(taker))
            get(giver.keep.remote(None))
        settled()
    assert get(ring[ROUNDS % 3].read.remote()) == [0, 1, 2]


def test_a_reference_is_returned_while_its_receiver_drops_another_copy_of_it() -> None:
    actor = keeper()
    (kept,) = get(actor.make.remote(3))
    get(actor.keep.remote([kept]))
    for _ in range(ROUNDS):
        coming = actor.show.remote()
        del kept
        settled()
        (kept,) = get(coming)
        assert get(kept)[0] == 3


def test_references_nest_in_containers_results_and_each_other() -> None:
    @ray.remote
    def wrap(boxed: Any) -> Any:
        return {"inner": [ray.put(boxed)]}

    boxed: Any = [ray.put(large(5))]
    for _ in range(4):
        boxed = get(wrap.remote(boxed))["inner"]
        settled()
    while not isinstance(value := get(boxed[0]), np.ndarray):
        boxed = value
    assert value[0] == 5


def test_results_of_unfinished_tasks_are_passed_on_and_dropped_by_who_made_them() -> None:
    @ray.remote
    def number() -> np.ndarray:
        return large(2)

    @ray.remote
    def start() -> Any:
        return [number.remote() for _ in range(3)]

    @ray.remote
    def start_and_pass(actor: Any) -> None:
        ray.get(actor.keep.remote([number.remote()]), timeout=GET_TIMEOUT_S)

    assert get(read_all.remote(get(start.remote()))) == 6
    actor = keeper()
    get(start_and_pass.remote(actor))
    assert get(actor.read.remote()) == [2]


def test_a_function_brings_the_references_it_captured() -> None:
    captured = ray.put(large(9))

    @ray.remote
    def read() -> int:
        return int(ray.get(captured, timeout=GET_TIMEOUT_S)[0])

    assert get([read.remote() for _ in range(ROUNDS)]) == [9] * ROUNDS


def test_a_reference_that_was_dropped_while_it_was_awaited_can_come_again(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    gate = str(tmp_path / "gate")

    @ray.remote
    def later() -> int:
        touch_and_wait(None, gate)
        return 4

    class Reader:
        def look(self, boxed: Any) -> int:
            return len(ray.wait(boxed, timeout=0.05)[0])

        def read(self, boxed: Any) -> Any:
            return ray.get(boxed[0], timeout=GET_TIMEOUT_S)

    reader = ray.remote(Reader).remote()
    pending = later.remote()
    assert get(reader.look.remote([pending])) == 0
    value = reader.read.remote([pending])
    Path(gate).touch()
    assert get(value) == 4


# ---------------------------------------------------------------- failures on the way


def test_what_an_owner_took_with_it_is_said_and_counts_as_ready() -> None:
    actor = keeper()
    (reference,) = get(actor.make.remote(1))
    process = get(actor.pid.remote())
    os.kill(process, signal.SIGKILL)
    with pytest.raises(RayActorError):
        get(actor.pid.remote())
    boxed = [reference]

    assert ray.wait(boxed, timeout=GET_TIMEOUT_S)[0] == boxed
    with pytest.raises(OwnerDiedError):
        get(read_all.remote(boxed))


def test_what_a_failed_attempt_keeps_is_borrowed() -> None:
    class Failing(Keeper):
        attempts = 0

        def keep_at_second(self, boxed: Any) -> None:
            self.attempts += 1
            if self.attempts == 1:
                self.kept = boxed
                raise ValueError("once")

    actor = ray.remote(Failing).remote()
    get(actor.keep_at_second.options(max_task_retries=1, retry_exceptions=True).remote([ray.put(large(6))]))
    settled()
    assert get(actor.read.remote()) == [6]


@pytest.mark.parametrize("size", [1, 50_000])
def test_an_attempt_that_failed_with_a_large_error_leaves_nothing_in_the_way(
    size: int, tmp_path: Path
) -> None:
    marker = tmp_path / "tried"

    @ray.remote(max_retries=1, retry_exceptions=True)
    def second_time() -> np.ndarray:
        if not marker.exists():
            marker.touch()
            raise ValueError(b"x" * 300_000)
        return np.ones(size)

    assert len(get(second_time.remote())) == size


def test_of_several_results_none_stays_when_one_cannot_be_sent() -> None:
    @ray.remote(num_returns=2, max_retries=0)
    def half() -> Any:
        return large(1), threading.Lock()

    for reference in half.remote():
        with pytest.raises(TypeError):
            get(reference)


def test_a_worker_that_counts_its_calls_answers_before_it_ends() -> None:
    owner = keeper()
    boxed = get(owner.make.remote(8))

    @ray.remote(max_calls=1, max_retries=0)
    def echo(boxed: Any) -> Any:
        return list(boxed)

    @ray.remote(max_calls=1, max_retries=0, num_returns=20)
    def many() -> list[bytes]:
        return [bytes(90_000)] * 20

    assert get(get(echo.remote(boxed))[0])[0] == 8
    assert [len(value) for value in get(many.remote())] == [90_000] * 20


def test_an_actor_that_restarts_gets_its_arguments_again() -> None:
    actor = keeper([ray.put(large(3))], max_restarts=1)
    settled()
    assert get(actor.read.remote()) == [3]
    process = get(actor.pid.remote())
    os.kill(process, signal.SIGKILL)

    def reads_again() -> bool:
        try:
            return bool(get(actor.read.remote()) == [3])
        except RayActorError:
            return False

    wait_until(reads_again, "the actor is back")
    assert get(actor.pid.remote()) != process


def test_a_borrower_that_is_killed_lets_go() -> None:
    actor = keeper()
    get(actor.keep.remote([ray.put(large(1))]))
    settled()
    wait_until(lambda: internal_state.store_stats().num_objects == 1, "the actor alone keeps the object")
    os.kill(get(actor.pid.remote()), signal.SIGKILL)
    wait_until(lambda: internal_state.store_stats().num_objects == 0, "nobody keeps the object")


# ---------------------------------------------------------------- actors and threads


def test_an_actor_lives_as_long_as_somebody_has_its_handle() -> None:
    holder, held = keeper(), keeper()
    process = get(held.pid.remote())
    get(holder.keep.remote([held]))
    del held
    settled()
    (back,) = get(holder.show.remote())
    assert get(back.pid.remote()) == process
    get(holder.keep.remote(None))
    del back
    settled()
    wait_until(lambda: not Path(f"/proc/{process}").exists(), "the actor ends with its last handle")


def test_an_actor_that_calls_itself_gets_the_reference_it_returns() -> None:
    class Own:
        def __init__(self) -> None:
            self.handle = ray.get_runtime_context().current_actor

        async def make(self) -> Any:
            return [ray.put(large(2))]

        async def run(self) -> int:
            boxed = await self.handle.make.remote()
            return int((await boxed[0])[0])

    actor = ray.remote(Own).remote()
    assert get([actor.run.remote() for _ in range(ROUNDS)]) == [2] * ROUNDS


def test_threads_of_tasks_make_objects_of_their_own() -> None:
    @ray.remote
    def from_thread(number: int) -> int:
        found: list[int] = []

        def run() -> None:
            found.append(int(ray.get(ray.put(large(number)), timeout=GET_TIMEOUT_S)[0]))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return found[0]

    mine = [ray.put(large(-1)) for _ in range(3)]
    assert get([from_thread.remote(number) for number in range(1, 5)]) == [1, 2, 3, 4]
    assert [int(value[0]) for value in get(mine)] == [-1] * 3


def test_two_calls_at_once_borrow_the_same_reference() -> None:
    class Shared:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def keep(self, boxed: Any) -> None:
            self.kept.append(boxed[0])

        def read(self) -> int:
            return sum(int(value[0]) for value in ray.get(self.kept, timeout=GET_TIMEOUT_S))

        def clear(self) -> None:
            self.kept.clear()

    actor = ray.remote(Shared).options(max_concurrency=4).remote()
    for _ in range(ROUNDS):
        reference = ray.put(large(1))
        calls = [actor.keep.remote([reference]) for _ in range(8)]
        del reference
        settled()
        get(calls)
        assert get(actor.read.remote()) == 8
        get(actor.clear.remote())


def test_errors_do_not_keep_what_the_failed_call_was_given() -> None:
    @ray.remote(max_retries=0)
    def fails(boxed: Any) -> None:
        kept_by_the_frame = boxed  # noqa: F841
        raise ValueError("on purpose")

    with pytest.raises(RayTaskError):
        get(fails.remote([ray.put(large(1))]))


def test_an_error_that_its_own_frame_holds_keeps_nothing_when_the_worker_rests() -> None:
    @ray.remote(max_retries=0)
    def fails() -> None:
        error = ValueError("on purpose")
        error.detail = ray.put(large(3))  # type: ignore[attr-defined]
        raise error

    with pytest.raises(ValueError) as caught:
        get(fails.remote())
    assert get(caught.value.detail)[0] == 3  # type: ignore[attr-defined]

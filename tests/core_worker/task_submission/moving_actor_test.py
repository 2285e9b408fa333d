"""Calls to an actor that is moved off a node that is drained."""

from __future__ import annotations

import pytest

from ray_mono.common.exceptions import ActorUnavailableError, TaskCancelledError
from tests.core_worker.called_actor import (
    Call,
    CalledActor,
    call_ids,
    is_pending,
    lose_actor,
    running_actor,
    sent,
)
from tests.core_worker.scene import Reply


def give_back(world: CalledActor, call: Call) -> None:
    (call_sent,) = [each for each in world.line.to_run if call_ids(call) == [each.task_id]]
    world.line.to_run.remove(call_sent)
    with world.scene.env.lock:
        call_sent.said.answer(Reply(status=Reply.NOT_STARTED))
    world.look()


def test_calls_that_were_given_back_run_in_order_in_the_next_process_and_cost_no_retry() -> None:
    world = running_actor(calls_in_flight_max=3)
    runs, *others = [world.submit() for _ in range(5)]
    world.run(world.line)
    give_back(world, others[0])
    give_back(world, others[1])
    assert world.story["state"] == "DISCONNECTED" and not world.probes
    new = world.submit()
    world.deliver(world.line)
    assert world.outcome(runs) == "1, run 1"
    world.die(will_restart=True)
    world.tell(is_moving=True)
    new_too = world.submit()
    world.starts()
    assert sent(world, world.lines[-1])[:3] == call_ids(*others)[:3]
    world.run_all()
    for number, call in enumerate([*others, new, new_too], 2):
        assert world.outcome(call) == f"{number}, run 1"


def test_news_that_it_still_lives_there_change_nothing() -> None:
    """As a head on an empty store tells them."""
    world = running_actor()
    runs, first, second = world.submit(), world.submit(), world.submit()
    world.run(world.line)
    give_back(world, first)
    world.gcs.version += 1
    world.tell()
    give_back(world, second)
    assert not world.line.to_run and world.gcs.watch is not None
    world.deliver(world.line)
    assert world.outcome(runs) == "1, run 1"
    world.die(will_restart=True)
    world.tell(is_moving=True)
    world.starts()
    assert sent(world, world.lines[-1]) == call_ids(first, second)


def test_one_who_hears_first_that_the_actor_moves_waits() -> None:
    world = CalledActor()
    call = world.submit()
    world.die(will_restart=True)
    world.tell(is_moving=True)
    assert is_pending(world, call)
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 1"


def test_a_call_that_runs_when_the_process_of_an_actor_that_moves_is_killed_is_lost() -> None:
    world = running_actor()
    runs, waits = world.submit(), world.submit()
    give_back(world, waits)
    lose_actor(world, will_restart=True)
    assert isinstance(world.outcome(runs), ActorUnavailableError) and is_pending(world, waits)


@pytest.mark.parametrize("is_told", [True, False])
def test_calls_that_reach_the_process_after_the_actor_has_left_it_never_began_there(is_told: bool) -> None:
    """Nobody reads them, and the process ends. Where its raylet does not know, they may have begun."""
    world = running_actor()
    calls = [world.submit() for _ in range(3)]
    world.last_answers.is_known = world.last_answers.has_moved = is_told
    world.end_line(world.line)
    world.die(will_restart=True)
    world.tell(is_moving=True)
    world.starts()
    world.run_all()
    if is_told:
        assert [world.outcome(call) for call in calls] == ["1, run 1", "2, run 1", "3, run 1"]
    else:
        assert all(isinstance(world.outcome(call), ActorUnavailableError) for call in calls)


def test_calls_run_in_order_also_where_a_later_one_was_given_back_before_the_others_were_lost() -> None:
    world = running_actor()
    calls = [world.submit(max_retries=1) for _ in range(4)]
    give_back(world, calls[1])
    world.last_answers.is_known = False
    world.end_line(world.line)
    world.die(will_restart=True)
    world.tell()
    world.starts()
    assert sent(world, world.lines[-1]) == call_ids(*calls)


def test_a_call_that_is_cancelled_before_or_after_it_is_given_back_is_over() -> None:
    world = running_actor()
    world.submit()
    first, second = world.submit(), world.submit()
    give_back(world, first)
    world.cancel(first)
    world.cancel(second)
    give_back(world, second)
    for call in (first, second):
        assert isinstance(world.outcome(call), TaskCancelledError)

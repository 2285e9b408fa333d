"""Calls to one actor: in order, and held back where they have to be."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    ActorDiedError,
    PendingCallsLimitExceeded,
    RayTaskError,
    TaskCancelledError,
)
from ray_mono.core_worker.options import CallRules
from ray_mono.protobuf import common_pb2
from tests.core_worker.called_actor import (
    Call,
    CalledActor,
    call_ids,
    is_pending,
    lose_actor,
    running_actor,
    sent,
)
from tests.core_worker.task_submission.tasks import id_of

# ---- its usual life


def test_calls_go_to_the_actor_in_order() -> None:
    world = running_actor()
    calls = [world.submit() for _ in range(3)]
    assert sent(world) == call_ids(*calls)
    assert world.story["state"] == "CONNECTED" and world.story["in_flight"] == 3
    world.run_all()
    assert [world.outcome(call) for call in calls] == ["1, run 1", "2, run 1", "3, run 1"]
    assert world.story["in_flight"] == 0


def test_calls_wait_until_the_actor_lives() -> None:
    world = CalledActor()
    assert world.gcs.watch is None and world.story["state"] == "UNKNOWN"
    calls = [world.submit(), world.submit()]
    assert world.gcs.watch is not None and not world.lines
    world.gcs.change(common_pb2.PENDING_CREATION, None)
    world.tell(pending_reason="no node has room")
    assert world.story["state"] == "PENDING_CREATION" and world.story["why"] == "no node has room"
    # It asks for what is news to it.
    assert world.gcs.watch is not None and world.gcs.watch.request.after_version == 2
    world.starts()
    assert world.gcs.watch is None
    world.run_all()
    assert [world.outcome(call) for call in calls] == ["1, run 1", "2, run 1"]


def test_a_call_that_waits_for_its_argument_holds_those_behind_it_back() -> None:
    world = running_actor()
    first = world.submit(has_argument=True)
    second = world.submit()
    assert not world.lines and world.story["queued"] == 2
    world.argument_arrives(first)
    assert sent(world) == call_ids(first, second)


def test_a_call_whose_argument_failed_is_not_made_and_holds_back_none() -> None:
    world = running_actor()
    failing = world.submit(max_retries=1, has_argument=True)
    behind = world.submit()
    world.argument_fails(failing)
    error = world.scene.state_of(failing.ref)
    assert isinstance(error, RayTaskError) and "Actor.method" in str(error)
    world.run_all()
    assert world.outcome(behind) == "2, run 1" and not failing.runs


def unordered_actor() -> tuple[CalledActor, Call]:
    """One whose calls may overtake each other, and a call that waits for its argument."""
    world = running_actor(CallRules(is_unordered=True))
    return world, world.submit(has_argument=True)


def test_a_call_that_waits_for_its_argument_holds_nothing_back_where_order_does_not_matter() -> None:
    world, waiting = unordered_actor()
    overtakes = world.submit()
    world.run_all()
    assert world.outcome(overtakes) == "2, run 1" and is_pending(world, waiting)


def test_a_call_that_was_overtaken_is_sent_when_its_argument_is_there() -> None:
    world, waiting = unordered_actor()
    world.argument_arrives(waiting)
    world.run_all()
    assert world.outcome(waiting) == "1, run 1"
    assert not world.scene.core.describe()["tasks_pending"] and not world.held.actor.num_waiting


@pytest.mark.parametrize("end", ["its actor", "a cancel", "its argument"])
def test_a_call_that_waits_outside_of_the_queue_ends_with(end: str) -> None:
    world, waiting = unordered_actor()
    behind = world.submit()
    if end == "its actor":
        lose_actor(world, will_restart=False)
    elif end == "a cancel":
        world.cancel(waiting)
    else:
        world.argument_fails(waiting)
    expected = {"its actor": ActorDiedError, "a cancel": TaskCancelledError, "its argument": RayTaskError}
    assert isinstance(world.outcome(waiting), expected[end])
    assert world.held.actor.num_waiting == (0 if end == "its actor" else 1)
    assert is_pending(world, behind) == (end != "its actor")


# ---- cancel


def test_a_call_that_waits_here_is_dropped_and_those_behind_it_go() -> None:
    world = running_actor()
    first, second = world.submit(has_argument=True), world.submit()
    world.cancel(first)
    assert isinstance(world.outcome(first), TaskCancelledError) and sent(world) == call_ids(second)
    assert not world.scene.wire.all("CancelTask")


def test_the_actor_is_asked_to_drop_a_call_that_was_sent() -> None:
    world = running_actor()
    first, second = world.submit(), world.submit()
    world.cancel(first)
    (asked,) = world.scene.wire.all("CancelTask")
    assert asked.to == "unix:worker1" and asked.request.task_id == id_of(first.ref)
    assert is_pending(world, first)
    world.run_all()
    assert isinstance(world.outcome(first), TaskCancelledError) and not first.runs
    assert world.outcome(second) == "2, run 1"


def test_a_cancelled_call_makes_room_for_another_one() -> None:
    world = running_actor(calls_in_flight_max=1)
    first, second = world.submit(), world.submit()
    world.cancel(first)
    assert sent(world) == call_ids(first)
    world.run(world.line)
    world.deliver(world.line)
    assert sent(world) == call_ids(second)


def test_a_cancelled_call_of_an_actor_that_dies_was_cancelled() -> None:
    world = running_actor()
    call = world.submit(max_retries=1)
    world.cancel(call)
    lose_actor(world, will_restart=False)
    assert isinstance(world.outcome(call), TaskCancelledError)


def test_a_cancelled_call_of_an_actor_that_restarts_is_not_sent_again() -> None:
    world = running_actor()
    call = world.submit(max_retries=1)
    world.cancel(call)
    lose_actor(world, will_restart=True)
    assert isinstance(world.outcome(call), TaskCancelledError) and not world.held.actor.num_waiting


# ---- how many are with the actor


def test_calls_of_an_actor_that_runs_one_at_a_time_wait_here_beyond_a_number() -> None:
    world = running_actor(calls_in_flight_max=3)
    calls = [world.submit() for _ in range(5)]
    assert sent(world) == call_ids(*calls[:3]) and world.story["queued"] == 2
    world.run(world.line)
    world.deliver(world.line)
    assert sent(world) == call_ids(*calls[1:4])
    world.scene.pass_time(100)
    assert len(sent(world)) == 3


def concurrent_actor(**limits: Any) -> CalledActor:
    return running_actor(
        CallRules(is_concurrent=True),
        calls_in_flight_max=2,
        excess_bytes_each=1000,
        no_answer_s=1.0,
        **limits,
    )


def test_calls_that_may_wait_for_each_other_are_held_back_by_their_bytes_and_not_by_their_number() -> None:
    world = concurrent_actor(excess_bytes_max=3000)
    calls = [world.submit() for _ in range(6)]
    # Two, and three of more than 1,000 bytes each.
    assert sent(world) == call_ids(*calls[:5]) and world.story["queued"] == 1
    for _ in range(2):
        world.run(world.line)
        world.deliver(world.line)
    assert sent(world) == call_ids(*calls[2:])[: len(sent(world))]
    world.run_all()
    assert all(world.outcome(call) for call in calls)
    # The next time it begins anew.
    for _ in range(6):
        world.submit()
    assert len(sent(world)) == 5


def test_the_bytes_of_what_was_answered_count_no_more() -> None:
    world = concurrent_actor(excess_bytes_max=1000)
    calls = [world.submit() for _ in range(4)]
    assert len(sent(world)) == 3
    world.line.to_run.rotate(-2)  # The third is answered first.
    world.run(world.line)
    world.deliver(world.line)
    assert sorted(sent(world)) == sorted([*call_ids(*calls[:2]), id_of(calls[3].ref)])


def test_calls_held_back_by_their_bytes_are_sent_after_all_where_nothing_is_answered() -> None:
    world = concurrent_actor(excess_bytes_max=1000)
    for _ in range(6):
        world.submit()
    assert len(sent(world)) == 3
    world.scene.pass_time(0.9)
    world.look()
    assert len(sent(world)) == 3
    world.scene.pass_time(0.2)
    world.look()
    assert len(sent(world)) == 4
    # Each time that nothing was answered for so long.
    world.scene.pass_time(1)
    world.look()
    assert len(sent(world)) == 5
    world.scene.pass_time(5)
    world.look()
    assert len(sent(world)) == 6 and not world.timers
    world.run_all()
    for _ in range(6):
        world.submit()
    assert len(sent(world)) == 3


def test_while_answers_come_calls_stay_held_back_by_their_bytes() -> None:
    world = concurrent_actor(excess_bytes_max=3000)
    for _ in range(12):
        world.submit()
    assert len(sent(world)) == 5
    for _ in range(3):
        world.scene.pass_time(0.9)
        world.run(world.line)
        world.deliver(world.line)
        assert len(sent(world)) <= 5


def test_no_more_calls_wait_than_the_actor_allows() -> None:
    world = running_actor(CallRules(max_pending_calls=2))
    world.submit()
    world.submit(has_argument=True)
    with pytest.raises(PendingCallsLimitExceeded, match="max_pending_calls=2"):
        world.submit()
    world.run_all()
    world.submit()
    assert len(world.scene.core.describe()["tasks_pending"]) == 2


def test_the_driver_is_told_when_thousands_of_calls_wait_and_again_when_they_have_doubled() -> None:
    world = CalledActor(calls_waiting_warned=50)
    told = []
    for number in range(1, 250):
        world.submit()
        if len(world.warnings) > len(told):
            told.append(number)
    assert told == [51, 101, 201]
    assert "100 calls" in world.warnings[1] and world.held.actor_id.hex() in world.warnings[1]


# ---- handles


def test_an_actor_that_only_its_name_led_to_is_forgotten_with_its_handle() -> None:
    core = CalledActor().scene.core
    held = core.hold_actor(b"named".ljust(16), None, CallRules())
    again = core.hold_actor(b"named".ljust(16), None, CallRules(max_pending_calls=3))
    assert again.actor is held.actor and held.actor.rules.max_pending_calls == 3
    assert b"named".ljust(16).hex() in core.describe()["actors"]
    del held, again
    assert b"named".ljust(16).hex() not in core.describe()["actors"]

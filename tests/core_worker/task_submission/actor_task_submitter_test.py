"""What a process keeps of the actors that it calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.common.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayTaskError,
    TaskCancelledError,
)
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import EXCESS_BYTES_MAX, IN_FLIGHT_MAX, WAITING_WARNED
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from tests.core_worker.called_actor import Call, CalledActor, Line


def test_an_actor_that_only_its_name_led_to_is_forgotten_with_its_handle() -> None:
    core: Any = SimpleNamespace()
    submitter = ActorTaskSubmitter(core)
    handle = submitter.actor(b"an actor")
    assert submitter.actor(b"an actor") is handle
    del handle
    assert not len(submitter.actors)


def running_actor() -> CalledActor:
    """Alive, and its caller knows where."""
    world = CalledActor()
    world.submitter.watch(world.actor)
    world.gcs.start_actor()
    world.gcs.answer()
    return world


def outcome(world: CalledActor, call: Call) -> Any:
    entry = world.memory_store.get(call.task.return_ids[0])
    assert entry is not None and entry.ready
    return (
        entry.data
        if entry.metadata == serialization.PLAIN
        else serialization.deserialize(entry.metadata, entry.data)
    )


def lose_actor(world: CalledActor, will_restart: bool) -> None:
    """The caller hears of it from the GCS, before it has read what the process had answered."""
    world.submitter.watch(world.actor)
    world.die(will_restart)
    world.gcs.answer()


def test_an_answer_that_the_news_of_the_actors_death_overtook_changes_nothing() -> None:
    world = running_actor()
    call = world.submit(max_retries=0, has_argument=False)
    (line,) = world.lines
    world.run(line)
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, call), ActorDiedError)
    line.deliver()
    assert isinstance(outcome(world, call), ActorDiedError)


def test_an_answer_that_the_news_of_a_restart_overtook_does_not_end_a_call_that_is_sent_again() -> None:
    world = running_actor()
    call = world.submit(max_retries=1, has_argument=False)
    (line,) = world.lines
    world.run(line)
    lose_actor(world, will_restart=True)
    line.deliver()
    world.gcs.start_actor()
    world.gcs.answer()
    world.run(world.lines[-1])
    world.lines[-1].deliver()
    assert outcome(world, call) == b"1, run 2"
    assert not world.tasks.pending and not world.actor.queue
    assert world.warnings == [
        "method() failed and is run again (retries left: 0): its actor is unavailable: it is restarting"
    ]


def test_a_cancelled_call_of_an_actor_that_dies_was_cancelled() -> None:
    world = running_actor()
    call = world.submit(max_retries=1, has_argument=False)
    world.cancel(call)
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, call), TaskCancelledError)


def test_a_call_whose_argument_failed_is_not_made_and_holds_back_none() -> None:
    world = running_actor()
    failing = world.submit(max_retries=1, has_argument=True)
    behind = world.submit(max_retries=0, has_argument=False)
    assert not world.lines[0].to_run
    world.argument_fails(failing)
    assert isinstance(outcome(world, failing), RayTaskError) and world.actor.num_waiting == 1
    (line,) = world.lines
    world.run(line)
    line.deliver()
    assert outcome(world, behind) == b"2, run 1" and not failing.runs


def unordered_actor() -> tuple[CalledActor, Call]:
    """One whose calls may overtake each other, and a call that waits for its argument."""
    world = running_actor()
    world.actor.rules = CallRules(is_unordered=True)
    return world, world.submit(max_retries=0, has_argument=True)


def test_a_call_that_waits_for_its_argument_holds_nothing_back_where_order_does_not_matter() -> None:
    world, waiting = unordered_actor()
    overtakes = world.submit(max_retries=0, has_argument=False)
    (line,) = world.lines
    world.run(line)
    line.deliver()
    assert outcome(world, overtakes) == b"2, run 1" and list(world.actor.unresolved.values()) == [
        waiting.task
    ]


def test_a_call_that_waits_outside_of_the_queue_fails_with_its_actor() -> None:
    world, waiting = unordered_actor()
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, waiting), ActorDiedError)
    assert not world.actor.unresolved and not world.tasks.pending


def test_a_call_that_waits_outside_of_the_queue_can_be_cancelled() -> None:
    world, waiting = unordered_actor()
    world.cancel(waiting)
    assert isinstance(outcome(world, waiting), TaskCancelledError)
    assert not world.actor.unresolved and not world.tasks.pending


def send_many(world: CalledActor, count: int) -> Line:
    for _ in range(count):
        world.submit(max_retries=0, has_argument=False)
    (line,) = world.lines
    return line


def test_calls_that_may_wait_for_each_other_are_held_back_by_their_bytes_and_not_by_their_number() -> None:
    world = running_actor()
    world.actor.rules = CallRules(is_concurrent=True)
    line = send_many(world, IN_FLIGHT_MAX + 100)
    assert len(line.to_run) == IN_FLIGHT_MAX + 100 and not world.actor.queue
    world.actor.excess_bytes += EXCESS_BYTES_MAX
    last = world.submit(max_retries=0, has_argument=False)
    assert last.task in world.actor.queue
    world.actor.excess_bytes -= EXCESS_BYTES_MAX
    while line.to_run or line.answers:
        world.run(line)
        line.deliver()
    assert outcome(world, last) and not world.actor.excess and not world.actor.excess_bytes


def test_calls_held_back_by_their_bytes_are_sent_after_all_where_nothing_is_answered() -> None:
    world = running_actor()
    world.actor.rules = CallRules(is_concurrent=True)
    line = send_many(world, IN_FLIGHT_MAX + 10)
    world.actor.excess_bytes += 2 * EXCESS_BYTES_MAX
    last = world.submit(max_retries=0, has_argument=False)
    sent = len(line.to_run)
    # An answer has come: it looks again.
    world.run(line)
    line.deliver()
    fire(world)
    assert last.task in world.actor.queue
    for _ in range(2):
        assert len(line.to_run) == sent - 1
        fire(world)
    assert len(line.to_run) == sent and not world.actor.queue and not world.timers
    # The next time it begins anew.
    while line.to_run or line.answers:
        world.run(line)
        line.deliver()
    assert world.actor.excess_bytes_max == EXCESS_BYTES_MAX


def fire(world: CalledActor) -> None:
    (timer,) = world.timers
    world.timers.clear()
    timer()


def test_calls_of_an_actor_that_runs_one_at_a_time_wait_here_beyond_a_number() -> None:
    world = running_actor()
    assert len(send_many(world, IN_FLIGHT_MAX + 100).to_run) == IN_FLIGHT_MAX


def restarting_actor(rules: CallRules) -> CalledActor:
    world = running_actor()
    world.actor.rules = rules
    lose_actor(world, will_restart=True)
    return world


def test_a_call_to_an_actor_that_restarts_fails_unless_it_may_run_again() -> None:
    world = restarting_actor(CallRules())
    fails, waits = (world.submit(max_retries=retries, has_argument=False) for retries in (0, 1))
    late = world.submit(max_retries=0, has_argument=True)
    assert isinstance(outcome(world, fails), ActorUnavailableError)
    assert list(world.actor.queue) == [waits.task, late.task]
    # What could not be sent anyway fails if the restart is not over by then.
    world.argument_arrives(late)
    assert isinstance(outcome(world, late), ActorUnavailableError)
    world.gcs.start_actor()
    world.gcs.answer()
    world.run(world.lines[-1])
    world.lines[-1].deliver()
    assert outcome(world, waits) == b"2, run 1"


def test_a_call_to_an_actor_with_task_retries_waits_for_its_restart() -> None:
    world = restarting_actor(CallRules(waits_for_restart=True))
    call = world.submit(max_retries=0, has_argument=False)
    assert list(world.actor.queue) == [call.task]


def test_calls_wait_for_the_first_creation_though_a_process_dies_in_it() -> None:
    world = CalledActor()
    world.actor.state = common_pb2.PENDING_CREATION
    call = world.submit(max_retries=0, has_argument=False)
    world.die(will_restart=True)
    world.gcs.answer()
    assert list(world.actor.queue) == [call.task]


def test_the_calls_of_one_who_first_hears_that_the_actor_restarts_fail() -> None:
    world = CalledActor()
    call = world.submit(max_retries=0, has_argument=False)
    world.die(will_restart=True)
    world.gcs.answer()
    assert isinstance(outcome(world, call), ActorUnavailableError)


def test_the_driver_is_told_when_thousands_of_calls_wait_and_again_when_they_have_doubled() -> None:
    world = CalledActor()
    told = []
    for number in range(1, 4 * WAITING_WARNED):
        world.submit(max_retries=0, has_argument=False)
        if len(world.warnings) > len(told):
            told.append(number)
    assert told == [WAITING_WARNED + 1, 2 * WAITING_WARNED + 1]
    assert "10,000 calls" in world.warnings[1] and world.actor.actor_id.hex() in world.warnings[1]

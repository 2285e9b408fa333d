"""Calls to an actor whose connection broke while it lives: it is asked whether it can be reached."""

from __future__ import annotations

import pytest

from ray_mono.common.exceptions import ActorUnavailableError, TaskCancelledError
from ray_mono.protobuf import core_worker_pb2
from tests.core_worker.called_actor import call_ids, is_pending, running_actor, sent

NONE_TAKEN_BACK = core_worker_pb2.TakeBackCallsReply()


def test_an_actor_whose_connection_broke_is_reached_again_though_the_gcs_has_no_news() -> None:
    world = running_actor(probe_s=1.0)
    lost = world.submit()
    again = world.submit(max_retries=1)
    world.end_line(world.line)
    world.scene.pass_time(0.9)
    assert not world.probes
    world.scene.pass_time(0.2)
    (probe,) = world.probes
    assert probe.to == "unix:worker1"
    probe.answer(NONE_TAKEN_BACK)
    world.look()
    error = world.outcome(lost)
    assert isinstance(error, ActorUnavailableError) and "the connection to it broke" in str(error)
    world.run_all()
    assert world.outcome(again) == "2, run 1" and world.story["state"] == "CONNECTED"


def test_calls_that_had_not_begun_there_are_sent_again_in_their_order_and_pay_no_retry() -> None:
    world = running_actor(probe_s=1.0)
    first, second = world.submit(max_retries=1), world.submit(max_retries=1)
    third, fourth, cancelled = (world.submit() for _ in range(3))
    world.end_line(world.line)
    world.cancel(cancelled)
    new = world.submit()
    world.scene.pass_time(1.05)
    (probe,) = world.probes
    assert probe.request.caller_worker_id == world.caller_id
    (not_begun,) = call_ids(second)
    probe.answer(core_worker_pb2.TakeBackCallsReply(first_task_id=not_begun))
    world.look()
    assert sent(world, world.lines[-1]) == call_ids(first, second, third, fourth, new)
    requests = [each.said.request for each in world.lines[-1].to_run]
    assert [request.attempt for request in requests] == [1, 0, 0, 0, 0]
    assert isinstance(world.outcome(cancelled), TaskCancelledError)
    world.run_all()
    assert world.outcome(fourth) == "4, run 1"


@pytest.mark.parametrize("outcome", ["it has begun", "it has not", "the actor is gone"])
def test_a_call_that_is_cancelled_while_the_actor_cannot_be_reached_holds_its_arguments_until_that_is_known(
    outcome: str,
) -> None:
    """It may run there, and keep what it was given; and say so on the connection that broke."""
    world = running_actor(probe_s=1.0)
    call = world.submit(max_retries=1)
    world.end_line(world.line)
    world.cancel(call)
    assert is_pending(world, call)
    world.scene.pass_time(1.05)
    if outcome == "the actor is gone":
        world.die(will_restart=False)
        world.tell()
    else:
        first = call_ids(call)[0] if outcome == "it has not" else b""
        world.probes[0].answer(core_worker_pb2.TakeBackCallsReply(first_task_id=first))
    world.look()
    assert isinstance(world.outcome(call), TaskCancelledError)
    assert all(call_ids(call)[0] not in sent(world, line) for line in world.lines[1:])


def test_an_actor_that_does_not_answer_is_tried_again_and_again() -> None:
    world = running_actor(probe_s=1.0)
    call = world.submit()
    world.end_line(world.line)
    for number in range(1, 4):
        world.scene.pass_time(1.05)
        assert len(world.scene.wire.all("TakeBackCalls")) == number
        world.probes[0].fail()
    assert is_pending(world, call)


def test_an_answer_to_a_probe_that_the_gcs_overtook_changes_nothing() -> None:
    world = running_actor()
    world.submit()
    world.end_line(world.line)
    world.scene.pass_time(1.05)
    world.starts()
    call = world.submit()
    world.probes[0].answer(NONE_TAKEN_BACK)
    world.run_all()
    assert world.outcome(call) == "2, run 1"


def test_no_probe_goes_to_an_actor_that_the_gcs_has_spoken_of() -> None:
    world = running_actor()
    world.submit()
    world.end_line(world.line)
    world.die(will_restart=True)
    world.tell()
    world.scene.pass_time(10)
    assert not world.scene.wire.all("TakeBackCalls")

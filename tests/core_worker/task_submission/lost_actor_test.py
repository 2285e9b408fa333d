"""Calls to an actor that is lost, restarts or is dead, and what the GCS says of it."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayTaskError,
)
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.called_actor import (
    USUAL,
    CalledActor,
    Status,
    call_ids,
    is_pending,
    lose_actor,
    running_actor,
    sent,
)
from tests.core_worker.scene import ELSEWHERE, LOST, Reply, failure, in_store, status_in_stores

NONE_TAKEN_BACK = core_worker_pb2.TakeBackCallsReply()
NOT_FOUND = RpcError(StatusCode.NOT_FOUND, "no such actor")


# ---- the actor is lost


def test_an_answer_that_the_news_of_the_actors_death_overtook_changes_nothing() -> None:
    world = running_actor()
    call = world.submit()
    world.run(world.line)
    lose_actor(world, will_restart=False)
    assert isinstance(world.outcome(call), ActorDiedError)
    world.deliver(world.line)
    assert isinstance(world.outcome(call), ActorDiedError)


def test_a_large_return_in_an_answer_that_was_overtaken_leaves_its_store() -> None:
    world = running_actor()
    call = world.submit()
    (said,) = (each.said for each in world.line.to_run)
    lose_actor(world, will_restart=False)
    with world.scene.env.lock:
        said.answer(in_store(call.ref.binary(), ELSEWHERE))
    world.scene.turn()
    (freed,) = world.scene.wire.last("Free").request.objects
    assert (freed.object_id, freed.location_node_ids) == (call.ref.binary(), [ELSEWHERE])
    assert isinstance(world.outcome(call), ActorDiedError)


def test_one_in_an_answer_of_a_call_that_is_sent_again_stays_for_the_next_attempt() -> None:
    world = running_actor()
    call = world.submit(max_retries=1)
    (said,) = (each.said for each in world.line.to_run)
    lose_actor(world, will_restart=True)
    with world.scene.env.lock:
        said.answer(in_store(call.ref.binary(), ELSEWHERE))
    world.scene.turn()
    assert is_pending(world, call) and not world.scene.wire.all("Free")


@pytest.mark.parametrize("is_same_store", [True, False])
def test_a_late_answer_frees_nothing_that_the_next_attempt_has_named(is_same_store: bool) -> None:
    world = running_actor()
    call = world.submit(max_retries=1)
    (late,) = (each.said for each in world.line.to_run)
    lose_actor(world, will_restart=True)
    world.starts()
    (again,) = (each.said for each in world.lines[-1].to_run)
    node_id = ELSEWHERE if is_same_store else b"another".ljust(28)
    with world.scene.env.lock:
        again.answer(in_store(call.ref.binary(), ELSEWHERE))
        late.answer(in_store(call.ref.binary(), node_id))
    world.scene.turn()
    freed = [
        each.location_node_ids[0] for said in world.scene.wire.all("Free") for each in said.request.objects
    ]
    assert freed == ([] if is_same_store else [node_id])


def test_an_answer_that_the_news_of_a_restart_overtook_does_not_end_a_call_that_is_sent_again() -> None:
    world = running_actor()
    call = world.submit(max_retries=1)
    world.run(world.line)
    lose_actor(world, will_restart=True)
    world.deliver(world.line)
    assert is_pending(world, call)
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 2"
    assert not world.held.actor.num_waiting
    assert world.warnings == [
        "Actor.method() failed and is run again (retries left: 0): its actor is unavailable: it is restarting"
    ]


def test_after_a_restart_those_that_are_sent_again_come_first() -> None:
    world = running_actor()
    again = [world.submit(max_retries=1) for _ in range(2)]
    world.kill(no_restart=False)
    later = world.submit(max_retries=1)
    world.die(will_restart=True)
    world.tell()
    world.starts()
    assert sent(world, world.lines[-1]) == call_ids(*again, later)
    requests = [each.said.request for each in world.lines[-1].to_run]
    assert [request.attempt for request in requests] == [1, 1, 0]


def test_a_call_that_was_sent_waits_for_what_the_gcs_says_of_the_actor() -> None:
    world = running_actor()
    call = world.submit()
    world.end_line(world.line)
    assert is_pending(world, call) and world.story["state"] == "DISCONNECTED"
    watch = world.gcs.watch
    assert watch is not None and watch.request.after_version == world.gcs.version
    world.gcs.cause = common_pb2.DeathCause(message="signal 9")
    world.die(will_restart=False)
    world.tell(class_name="Actor", pid=7)
    error = world.outcome(call)
    assert (
        isinstance(error, ActorDiedError) and "signal 9" in str(error) and "class_name: Actor" in str(error)
    )
    assert world.gcs.watch is None and world.story["state"] == "DEAD"


def test_a_call_that_is_made_while_the_actor_cannot_be_reached_goes_to_its_next_process() -> None:
    world = running_actor()
    world.submit()
    world.end_line(world.line)
    call = world.submit()
    world.starts()
    world.run_all()
    assert world.outcome(call) == "2, run 1"


def test_a_process_that_is_gone_when_the_gcs_names_it_is_not_sent_anything() -> None:
    world = CalledActor()
    call = world.submit()
    world.gcs.start_actor().end()
    world.tell()
    assert world.story["state"] == "DISCONNECTED" and is_pending(world, call)
    assert world.gcs.watch is not None
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 1"


def test_the_same_news_twice_breaks_no_connection() -> None:
    world = CalledActor()
    call = world.submit()
    world.gcs.change(common_pb2.PENDING_CREATION, None)
    world.tell()
    world.starts()
    assert len(sent(world)) == 1
    world.run_all()
    assert world.outcome(call) == "1, run 1"


def test_after_a_kill_nothing_more_is_sent_to_the_process_that_is_about_to_end() -> None:
    world = running_actor()
    world.submit()
    world.kill(no_restart=True)
    request = world.scene.wire.last("KillActor").request
    assert request.actor_id == world.held.actor_id and request.no_restart and request.force
    world.submit()
    assert len(sent(world)) == 1 and world.gcs.watch is not None


def test_what_was_sent_before_a_kill_is_not_sent_again_to_a_process_that_lives_on() -> None:
    world = running_actor(probe_s=0.1)
    call = world.submit(max_retries=1)
    world.kill(no_restart=False)
    waits = world.submit()
    world.scene.pass_time(0.15)
    world.probes[0].answer(NONE_TAKEN_BACK)
    assert sent(world) == call_ids(call, waits)
    world.run_all()
    assert (world.outcome(call), world.outcome(waits)) == ("1, run 1", "2, run 1")
    last = world.submit()
    world.end_line(world.line)
    assert is_pending(world, last) and world.gcs.watch is not None


def test_what_was_sent_before_a_kill_is_sent_again_where_the_connection_breaks_too() -> None:
    world = running_actor(probe_s=0.1)
    call, fails = world.submit(max_retries=1), world.submit()
    world.kill(no_restart=False)
    world.end_line(world.line)
    world.scene.pass_time(0.15)
    world.probes[0].answer(NONE_TAKEN_BACK)
    world.look()
    assert isinstance(world.outcome(fails), ActorUnavailableError)
    assert [sent(world, line) for line in world.lines[1:]] == [call_ids(call)]


def test_a_call_that_the_worker_refuses_waits_for_news() -> None:
    world = running_actor()
    call = world.submit()
    world.line.to_run[0].said.answer(Reply(status=Reply.WRONG_WORKER))
    assert world.story["state"] == "DISCONNECTED" and is_pending(world, call)


# ---- it restarts


def restarting_actor(rules: CallRules = USUAL) -> CalledActor:
    world = running_actor(rules)
    lose_actor(world, will_restart=True)
    return world


def test_a_call_to_an_actor_that_restarts_fails_unless_it_may_run_again() -> None:
    world = restarting_actor()
    fails, waits = world.submit(), world.submit(max_retries=1)
    late = world.submit(has_argument=True)
    error = world.outcome(fails)
    assert isinstance(error, ActorUnavailableError) and "it is restarting" in str(error)
    assert is_pending(world, waits) and is_pending(world, late)
    # What could not be sent anyway fails if the restart is not over by then.
    world.argument_arrives(late)
    assert isinstance(world.outcome(late), ActorUnavailableError)
    world.starts()
    world.run_all()
    assert world.outcome(waits) == "2, run 1"


def test_a_call_to_an_actor_with_task_retries_waits_for_its_restart() -> None:
    world = restarting_actor(CallRules(waits_for_restart=True))
    call = world.submit()
    assert is_pending(world, call)
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 1"


def test_a_call_that_is_sent_again_names_once_where_its_argument_lies() -> None:
    world = running_actor()
    call = world.submit(max_retries=1, has_argument=True, retry_exceptions=True)
    assert call.argument is not None
    with world.scene.env.lock:
        call.argument.answer(status_in_stores(ELSEWHERE))
    world.scene.wire.last("PushTask").answer(failure(ValueError("no"), call.ref.binary()))
    named = [list(said.request.args[0].location_node_ids) for said in world.scene.wire.all("PushTask")]
    assert named == [[ELSEWHERE], [ELSEWHERE]]


def test_what_waits_in_the_queue_when_the_actor_restarts_fails_unless_it_may_wait() -> None:
    world = running_actor(calls_in_flight_max=1)
    with_actor = world.submit()
    fails, waits, late = world.submit(), world.submit(max_retries=1), world.submit(has_argument=True)
    lose_actor(world, will_restart=True)
    for call in (with_actor, fails):
        assert isinstance(world.outcome(call), ActorUnavailableError)
    assert is_pending(world, waits) and is_pending(world, late) and world.story["queued"] == 2


def test_calls_wait_for_the_first_creation_though_several_processes_die_in_it() -> None:
    world = CalledActor(is_created_here=True)
    calls = [world.submit()]
    for _ in range(2):
        world.die(will_restart=True)
        world.tell()
        calls.append(world.submit())
    assert all(is_pending(world, call) for call in calls)
    world.starts()
    world.run_all()
    assert [world.outcome(call) for call in calls] == ["1, run 1", "2, run 1", "3, run 1"]


def test_the_calls_of_one_who_first_hears_that_the_actor_restarts_fail() -> None:
    world = CalledActor()
    call = world.submit()
    world.die(will_restart=True)
    world.tell()
    assert isinstance(world.outcome(call), ActorUnavailableError)
    assert world.gcs.watch is not None


# ---- it is dead


def test_every_later_call_to_a_dead_actor_fails_with_the_cause_at_once() -> None:
    world = running_actor()
    world.gcs.cause = common_pb2.DeathCause(message="it was killed")
    lose_actor(world, will_restart=False)
    call = world.submit(has_argument=True)
    error = world.outcome(call)
    assert isinstance(error, ActorDiedError) and "it was killed" in str(error)
    assert world.gcs.watch is None and not world.held.actor.num_waiting


def test_an_actor_that_no_node_can_run_says_so_to_its_callers() -> None:
    world = CalledActor()
    call = world.submit()
    world.gcs.cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.UNSCHEDULABLE, message="no GPU")
    world.die(will_restart=False)
    world.tell()
    error = world.outcome(call)
    assert isinstance(error, ActorUnschedulableError) and "no GPU" in str(error)


def test_an_actor_that_was_killed_for_memory_says_so_to_its_callers() -> None:
    world = running_actor()
    kind = common_pb2.DeathCause.OUT_OF_MEMORY
    world.gcs.cause = common_pb2.DeathCause(kind=kind, message="node 7 runs short of memory")
    lose_actor(world, will_restart=False)
    error = world.outcome(world.submit())
    assert isinstance(error, OutOfMemoryError) and "node 7 runs short of memory" in str(error)


def died_of(data: bytes, message: str = "") -> Any:
    world = CalledActor()
    call = world.submit()
    error = common_pb2.SerializedObject(metadata=serialization.ERROR, data=data)
    kind = common_pb2.DeathCause.CREATION_FAILED
    world.gcs.cause = common_pb2.DeathCause(kind=kind, message=message, error=error)
    world.die(will_restart=False)
    world.tell()
    return world.outcome(call)


def test_the_error_of_the_constructor_is_what_its_callers_get() -> None:
    raised = RayTaskError("Actor.__init__", "its traceback", ValueError("no"))
    error = died_of(serialization.serialize_error(raised).to_bytes())
    assert isinstance(error, ActorDiedError) and error.actor_init_failed and "its traceback" in str(error)


def test_an_error_of_the_constructor_that_cannot_be_read_here_is_told_of() -> None:
    assert "cannot be read here" in str(died_of(b"not a pickle"))
    assert "so it says" in str(died_of(b"not a pickle", "so it says"))


def test_the_callers_of_an_actor_that_died_of_another_ones_death_get_that_ones_error() -> None:
    other = ActorDiedError("another actor is dead", "ab")
    error = died_of(serialization.serialize_error(other).to_bytes())
    assert (str(error), error.actor_id) == (str(other), "ab")


# ---- the GCS


def test_a_gcs_that_is_lost_is_asked_again_and_calls_wait() -> None:
    world = CalledActor(watch_retry_s=0.2)
    world.submit()
    world.tell(RpcError(StatusCode.RESOURCE_EXHAUSTED, "busy"))
    assert world.gcs.watch is None
    world.scene.pass_time(0.3)
    assert world.gcs.watch is not None


def test_where_the_gcs_is_gone_calls_that_wait_for_it_fail() -> None:
    world = CalledActor(watch_retry_s=0.2)
    call = world.submit()
    world.tell(LOST)
    assert is_pending(world, call)
    world.scene.pass_time(0.3)
    error = world.outcome(call)
    assert isinstance(error, ActorUnavailableError) and "GCS" in str(error)


def test_where_the_gcs_is_gone_an_actor_that_is_connected_by_then_is_left_alone() -> None:
    world = running_actor(probe_s=0.1, watch_retry_s=0.2)
    world.submit()
    world.end_line(world.line)
    world.tell(LOST)
    world.scene.pass_time(0.15)
    world.probes[0].answer(NONE_TAKEN_BACK)
    call = world.submit()
    world.scene.pass_time(1)
    assert is_pending(world, call)


def test_an_actor_that_the_gcs_does_not_know_is_of_another_session() -> None:
    world = CalledActor()
    call = world.submit()
    world.tell(NOT_FOUND)
    (asked,) = world.scene.wire.open("GetObjectStatus")
    assert is_pending(world, call)
    # Its owner knows nothing of it.
    asked.answer(Status(status=Status.OUT_OF_SCOPE))
    world.scene.pass_time(0.3)
    world.tell(NOT_FOUND)
    assert isinstance(world.outcome(call), ActorDiedError)


@pytest.mark.parametrize("has_lived", [False, True])
def test_an_actor_of_its_own_that_the_gcs_has_lost_is_dead_and_not_waited_for(has_lived: bool) -> None:
    world = running_actor() if has_lived else CalledActor(is_created_here=True)
    call = world.submit()
    if has_lived:
        world.end_line(world.line)
    world.tell(NOT_FOUND)
    error = world.outcome(call)
    assert isinstance(error, ActorDiedError) and "lost its data" in str(error)


def test_an_actor_whose_owner_lives_is_registered_later() -> None:
    world = CalledActor(watch_retry_s=0.2)
    call = world.submit()
    for _ in range(3):
        world.tell(NOT_FOUND)
        world.scene.pass_time(0.3)
    assert is_pending(world, call) and len(world.scene.wire.all("GetObjectStatus")) == 1
    world.starts()
    world.run_all()
    assert world.outcome(call) == "1, run 1"

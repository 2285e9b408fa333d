"""Calls that an actor's process had answered when it died: its raylet is asked for them."""

from __future__ import annotations

import pytest

from ray_mono.common.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError
from ray_mono.common.start_board import cell_of
from ray_mono.core_worker.options import CallRules
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.called_actor import Call, CalledActor, call_ids, is_pending, running_actor, sent
from tests.core_worker.scene import ELSEWHERE, value
from tests.core_worker.task_submission.tasks import id_of


def answer_of(call: Call, text: str) -> raylet_pb2.LastAnswer:
    return raylet_pb2.LastAnswer(task_id=id_of(call.ref), reply=value(text).SerializeToString())


@pytest.mark.parametrize("will_restart", [False, True])
def test_what_its_process_had_answered_when_it_died_counts_and_does_not_run_again(will_restart: bool) -> None:
    world = running_actor()
    calls = [world.submit(max_retries=1) for _ in range(3)]
    world.last_answers.answers.extend(answer_of(call, "kept") for call in calls[:2])
    world.end_line(world.line)
    world.die(will_restart)
    world.tell()
    assert [world.outcome(call) for call in calls[:2]] == ["kept", "kept"]
    asked = world.scene.wire.last("LastAnswers")
    assert asked.request.worker_id == b"worker1"
    if will_restart:
        world.starts()
        assert sent(world, world.lines[-1]) == call_ids(calls[2])
    else:
        assert isinstance(world.outcome(calls[2]), ActorDiedError)


def test_what_is_under_way_when_the_gcs_tells_of_its_end_counts() -> None:
    world = running_actor()
    answered, lost = world.submit(), world.submit()
    world.run(world.line)
    world.kill(no_restart=True)
    world.die(will_restart=False)
    world.tell(waits=False)
    assert is_pending(world, answered) and not world.scene.wire.all("LastAnswers")
    world.deliver(world.line)
    world.end_line(world.lines[0])
    assert world.outcome(answered) == "1, run 1"
    assert isinstance(world.outcome(lost), ActorDiedError)


def test_a_raylet_that_says_nothing_is_not_waited_for_long() -> None:
    world = running_actor()
    del world.scene.wire.replies["LastAnswers"]
    call = world.submit()
    world.end_line(world.line)
    world.die(will_restart=False)
    world.tell(waits=False)
    assert is_pending(world, call)
    world.scene.pass_time(world.scene.env.config.last_answers_s)
    assert isinstance(world.outcome(call), ActorDiedError)


@pytest.mark.parametrize("is_alive", [True, False])
def test_of_a_process_elsewhere_the_raylet_there_is_asked(is_alive: bool) -> None:
    world = CalledActor(is_created_here=True)
    world.starts(ELSEWHERE)
    call = world.submit()
    world.last_answers.answers.append(answer_of(call, "kept"))
    state = common_pb2.NODE_ALIVE if is_alive else common_pb2.NODE_DEAD
    node = common_pb2.NodeInfo(node_id=ELSEWHERE, host="there", node_manager_port=9, state=state)
    nodes = gcs_pb2.GetAllNodesReply(nodes=[node])
    world.scene.wire.replies["GetAllNodes"] = lambda request: nodes
    world.end_line(world.line)
    world.die(will_restart=False)
    world.tell()
    if is_alive:
        assert world.scene.wire.last("LastAnswers").to == "there:9"
        assert world.outcome(call) == "kept"
    else:
        assert isinstance(world.outcome(call), ActorDiedError)


def dies_again(world: CalledActor) -> None:
    world.end_line(world.lines[-1])
    world.die(will_restart=True)
    world.tell()
    world.starts()


def test_calls_that_wait_behind_one_that_ends_the_process_again_and_again_pay_no_retry() -> None:
    world = running_actor()
    deadly, *behind = [world.submit(max_retries=1) for _ in range(3)]
    dies_again(world)
    assert sent(world, world.lines[-1]) == call_ids(deadly, *behind)
    dies_again(world)
    assert isinstance(world.outcome(deadly), ActorUnavailableError)
    assert sent(world, world.lines[-1]) == call_ids(*behind)
    dies_again(world)
    assert sent(world, world.lines[-1]) == call_ids(*behind)
    world.run_all()
    assert [world.outcome(call) for call in behind] == ["2, run 1", "3, run 1"]


@pytest.mark.parametrize("rules", [CallRules(is_concurrent=True), CallRules(is_unordered=True)])
def test_where_any_of_them_may_have_begun_each_pays_one(rules: CallRules) -> None:
    world = running_actor(rules)
    calls = [world.submit(max_retries=1) for _ in range(2)]
    dies_again(world)
    dies_again(world)
    assert all(isinstance(world.outcome(call), ActorUnavailableError) for call in calls)


def test_where_the_raylet_does_not_say_what_was_answered_each_pays_one() -> None:
    world = running_actor()
    del world.scene.wire.replies["LastAnswers"]
    calls = [world.submit(max_retries=1) for _ in range(2)]
    for _ in range(2):
        world.end_line(world.lines[-1])
        world.die(will_restart=True)
        world.tell(waits=False)
        world.scene.wire.last("LastAnswers").fail(RpcError(StatusCode.UNAVAILABLE, "gone"))
        world.starts()
    assert all(isinstance(world.outcome(call), ActorUnavailableError) for call in calls)


@pytest.mark.parametrize("nobody_knows", ["its board was not read", "its connection ended before"])
def test_where_answers_may_be_lost_each_that_was_sent_pays_one(nobody_knows: str) -> None:
    world = running_actor()
    if nobody_knows == "its board was not read":
        world.last_answers.is_known = False
    else:
        world.last_answers.lost_callers.extend([cell_of(b"another".ljust(28)), cell_of(world.caller_id)])
    calls = [world.submit(max_retries=1) for _ in range(2)]
    dies_again(world)
    dies_again(world)
    assert all(isinstance(world.outcome(call), ActorUnavailableError) for call in calls)


def test_connections_of_other_callers_that_ended_cost_this_one_nothing() -> None:
    world = running_actor()
    world.last_answers.lost_callers.append(cell_of(b"another".ljust(28)))
    calls = [world.submit(max_retries=1) for _ in range(2)]
    dies_again(world)
    dies_again(world)
    assert isinstance(world.outcome(calls[0]), ActorUnavailableError)
    assert sent(world, world.lines[-1]) == call_ids(calls[1])


def test_a_call_that_was_cancelled_is_not_made_again() -> None:
    world = running_actor()
    first, cancelled, last = [world.submit(max_retries=1) for _ in range(3)]
    world.cancel(cancelled)
    dies_again(world)
    assert isinstance(world.outcome(cancelled), TaskCancelledError)
    assert sent(world, world.lines[-1]) == call_ids(first, last)

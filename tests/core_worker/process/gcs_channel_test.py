"""The GCS as a core worker calls it: heads come and go, and no call is lost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ray_mono.core_worker.process.gcs_channel import BACK_AFTER_S, NOTICES_MAX, WARN_AFTER_S, GcsChannel
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import Said, Wire
from tests.core_worker.scene_time import SceneReactor

PATIENCE_S = 60.0
WORKER_ID = b"w" * 28


def key(name: bytes) -> gcs_pb2.KvGetRequest:
    return gcs_pb2.KvGetRequest(key=name)


class Scene:
    """A process, its raylet, and the heads, which are at "gcs", "gcs2" and so on."""

    def __init__(self, is_driver: bool = True, gone: tuple[str, ...] = (), registered: bool = True) -> None:
        self.reactor = SceneReactor()
        self.wire = Wire()
        self.wire.gone |= set(gone)
        self.number = 0
        self.cluster_id = b"cluster"
        self.channel = GcsChannel(
            self.reactor,
            self.reactor,
            lambda address, name: self.wire.connect(address),  # type: ignore[arg-type,return-value]
            self.await_head,
            "gcs",
            WORKER_ID,
            is_driver,
        )
        self.channel.joined(PATIENCE_S, b"" if gone else self.cluster_id)
        self.gcs = GcsServiceStub(self.channel)
        self.answers: list[tuple[Any, RpcError | None]] = []
        if registered and not gone:
            self.raylet_says("gcs")

    def await_head(self, number: int, done: Any) -> None:
        stub = RayletServiceStub(self.wire.connect("raylet"))  # type: ignore[arg-type]
        stub.AwaitHead.start(raylet_pb2.AwaitHeadRequest(after_head_number=number), done)

    def get(self, name: bytes) -> None:
        self.gcs.KvGet.start(key(name), lambda reply, error: self.answers.append((reply, error)))

    def head_dies(self, address: str = "gcs") -> None:
        self.wire.channels[address].close()

    def raylet_says(self, address: str) -> None:
        """It is registered at this head, the next one."""
        self.number += 1
        for said in self.wire.open("AwaitHead"):
            if said.request.after_head_number < self.number:
                place = common_pb2.HeadPlace(
                    address=address, head_number=self.number, cluster_id=self.cluster_id
                )
                said.answer(place)

    def head_answers(self, address: str, cluster_id: bytes = b"cluster") -> None:
        self.wire.last("GetClusterInfo", address).answer(gcs_pb2.ClusterInfo(cluster_id=cluster_id))

    def head_is_back(self, address: str = "gcs2") -> None:
        self.raylet_says(address)
        self.head_answers(address)

    def said_to(self, address: str) -> list[Said]:
        return [each for each in self.wire.said if each.to == address]

    def keys_asked(self, address: str) -> list[bytes]:
        return [each.request.key for each in self.wire.all("KvGet", address)]

    def pass_time(self, seconds: float) -> None:
        self.reactor.fire(self.reactor.now_s + seconds)


def test_a_process_that_starts_asks_nothing_before_its_raylet_is_registered_at_a_head() -> None:
    scene = Scene(registered=False)
    scene.channel.on_other_cluster(lambda: scene.get(b"told first"))
    scene.get(b"asked")
    assert scene.keys_asked("gcs") == []
    scene.cluster_id = b"other"
    scene.raylet_says("gcs")
    assert scene.keys_asked("gcs") == [b"told first", b"asked"]
    scene.get(b"later")
    assert scene.keys_asked("gcs") == [b"told first", b"asked", b"later"]


def test_one_whose_head_dies_before_that_asks_the_next() -> None:
    scene = Scene(registered=False)
    scene.get(b"asked")
    scene.head_dies()
    scene.head_is_back()
    assert scene.keys_asked("gcs") == [] and scene.keys_asked("gcs2") == [b"asked"]


def test_one_whose_raylet_cannot_say_so_asks_all_the_same() -> None:
    scene = Scene(registered=False)
    scene.get(b"asked")
    scene.wire.last("AwaitHead").fail()
    assert scene.keys_asked("gcs") == [b"asked"]


def test_what_had_no_answer_is_asked_of_the_next_head_in_its_order_after_the_subscriptions() -> None:
    scene = Scene()
    scene.get(b"answered")
    scene.wire.last("KvGet").answer(gcs_pb2.KvGetReply(value=b"1"))
    items: list[Any] = []
    scene.get(b"before")
    scene.gcs.Subscribe.start(gcs_pb2.SubscribeRequest(), items.append, lambda error: None)
    scene.head_dies()
    scene.get(b"while away")
    assert [reply.value for reply, _ in scene.answers] == [b"1"]
    scene.head_is_back()
    assert [each.method for each in scene.said_to("gcs2")] == [
        "GetClusterInfo",
        "Subscribe",
        "KvGet",
        "KvGet",
    ]
    assert scene.keys_asked("gcs2") == [b"before", b"while away"]
    for said in scene.wire.open("KvGet", "gcs2"):
        said.answer(gcs_pb2.KvGetReply(value=said.request.key))
    assert [reply.value for reply, _ in scene.answers] == [b"1", b"before", b"while away"]
    scene.wire.last("Subscribe", "gcs2").part(gcs_pb2.PubMessage(key=b"news"))
    assert [item.key for item in items] == [b"news"]


def test_what_must_not_be_done_twice_is_asked_again_with_its_number_and_says_what_has_been_answered() -> None:
    scene = Scene()

    def put(name: bytes) -> None:
        scene.gcs.KvPut.start(gcs_pb2.KvPutRequest(key=name), lambda reply, error: None)

    def ids(address: str) -> list[tuple[bytes, int, int]]:
        asked = [each.request.request_id for each in scene.wire.all("KvPut", address)]
        return [(each.caller, each.number, each.answered_below) for each in asked]

    put(b"1")
    put(b"2")
    first, second = ids("gcs")
    assert first == (WORKER_ID, first[1], first[1]) and second == (WORKER_ID, second[1], first[1])
    assert second[1] > first[1]
    scene.wire.all("KvPut")[0].answer(gcs_pb2.KvPutReply())
    scene.head_dies()
    scene.head_is_back("gcs2")
    assert ids("gcs2") == [second]
    put(b"3")
    [_, third] = ids("gcs2")
    assert third[1] > second[1] and third[2] == second[1]
    # Others have none.
    scene.gcs.KvGet.start(key(b"k"), lambda reply, error: None)
    assert not gcs_pb2.KvGetRequest.DESCRIPTOR.fields_by_name.get("request_id")


def test_a_head_that_lost_its_store_is_told_what_there_is_before_what_had_no_answer() -> None:
    scene = Scene()
    told: list[bytes] = []

    def tell() -> None:
        told.append(b"told")
        scene.gcs.Adopt.start(gcs_pb2.AdoptRequest(worker_id=b"w"), lambda reply, error: None)

    scene.channel.on_other_cluster(tell)
    scene.get(b"k")
    scene.head_dies()
    scene.head_is_back("gcs2")
    assert told == []
    scene.head_dies("gcs2")
    scene.cluster_id = b"another cluster"
    scene.raylet_says("gcs3")
    scene.head_answers("gcs3", b"another cluster")
    assert [each.method for each in scene.said_to("gcs3")] == ["GetClusterInfo", "Adopt", "KvGet"]
    # Once for each such head.
    scene.head_dies("gcs3")
    scene.raylet_says("gcs4")
    scene.head_answers("gcs4", b"another cluster")
    assert told == [b"told"]
    assert [each.method for each in scene.said_to("gcs4")] == ["GetClusterInfo", "KvGet", "Adopt"]


def test_a_head_that_lost_its_store_is_told_nothing_before_the_raylet_has_told_it_of_this_process() -> None:
    scene = Scene()
    told: list[bytes] = []
    scene.channel.on_other_cluster(lambda: told.append(b"told"))
    scene.get(b"k")
    scene.head_dies()
    # The raylet has not seen that yet, and the next head is in the same place.
    scene.raylet_says("gcs")
    scene.head_answers("gcs", b"another cluster")
    assert not told and scene.keys_asked("gcs") == [b"k"]
    scene.cluster_id = b"another cluster"
    scene.pass_time(1)
    scene.raylet_says("gcs")
    scene.head_answers("gcs", b"another cluster")
    assert told == [b"told"] and scene.keys_asked("gcs") == [b"k", b"k"]


def test_a_process_that_joined_under_a_head_and_first_hears_of_the_next_one_tells_that_one() -> None:
    scene = Scene()
    told: list[bytes] = []
    # Its raylet found another head before it answered where the head is.
    late = GcsChannel(
        scene.reactor,
        scene.reactor,
        lambda address, name: scene.wire.connect(address),  # type: ignore[arg-type,return-value]
        scene.await_head,
        "gcs",
        WORKER_ID,
        is_driver=False,
    )
    late.joined(PATIENCE_S, b"cluster")
    scene.cluster_id = b"another cluster"
    scene.raylet_says("gcs")
    late.on_other_cluster(lambda: told.append(b"told"))
    assert told == [b"told"]


def test_a_head_that_cannot_be_reached_is_asked_for_again() -> None:
    scene = Scene()
    scene.wire.gone.add("gcs2")
    scene.get(b"k")
    scene.head_dies()
    scene.raylet_says("gcs2")
    scene.pass_time(1)
    scene.raylet_says("gcs3")
    # It takes the connection and dies before it answers.
    scene.head_dies("gcs3")
    scene.pass_time(1)
    scene.head_is_back("gcs4")
    assert scene.keys_asked("gcs4") == [b"k"]


def test_a_head_that_took_over_from_one_that_was_stopped_is_followed() -> None:
    scene = Scene()
    scene.get(b"k")
    # The old one holds the connection, and says nothing.
    scene.raylet_says("gcs2")
    scene.head_is_back("gcs2")
    assert scene.keys_asked("gcs2") == [b"k"]
    assert scene.wire.channels["gcs"].is_closed


def test_a_head_that_came_back_to_its_place_is_no_reason_to_leave_it() -> None:
    scene = Scene()
    scene.head_dies()
    scene.head_is_back("gcs")
    scene.raylet_says("gcs")
    scene.get(b"k")
    assert scene.keys_asked("gcs") == [b"k"] and not scene.wire.channels["gcs"].is_closed


def test_a_process_that_starts_without_a_head_waits_for_one() -> None:
    scene = Scene(gone=("gcs",))
    scene.get(b"k")
    scene.head_is_back()
    assert scene.keys_asked("gcs2") == [b"k"]


def test_a_head_that_dies_once_more_is_waited_for_once_more() -> None:
    scene = Scene()
    scene.get(b"k")
    for number in range(2, 6):
        scene.head_dies("gcs" if number == 2 else f"gcs{number - 1}")
        scene.pass_time(PATIENCE_S - 1)
        scene.head_is_back(f"gcs{number}")
        assert scene.keys_asked(f"gcs{number}") == [b"k"]
    assert scene.answers == []


def test_a_head_that_could_not_store_a_change_is_about_to_end_and_the_next_one_is_asked() -> None:
    scene = Scene()
    scene.get(b"k")
    scene.wire.last("KvGet").fail(RpcError(StatusCode.UNAVAILABLE, "the GCS could not store the change"))
    assert scene.answers == []
    scene.head_dies()
    scene.head_is_back()
    assert scene.keys_asked("gcs2") == [b"k"]


def test_other_errors_are_answers() -> None:
    scene = Scene()
    scene.get(b"k")
    scene.wire.last("KvGet").fail(RpcError(StatusCode.NOT_FOUND, "there is none"))
    [(_, error)] = scene.answers
    assert error is not None and error.code is StatusCode.NOT_FOUND


def test_the_user_is_told_once_what_waits_and_nothing_where_nobody_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    watch = gcs_pb2.WatchActorRequest(actor_id=b"a")
    scene.gcs.WatchActor.start(watch, lambda reply, error: None)
    scene.head_dies()
    scene.pass_time(2 * WARN_AFTER_S)
    assert not caplog.records
    scene.get(b"k")
    scene.gcs.KillActor.start(gcs_pb2.KillActorRequest(), lambda reply, error: None)
    scene.pass_time(5 * WARN_AFTER_S)
    scene.get(b"another")
    scene.pass_time(5 * WARN_AFTER_S)
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    for part in ("the GCS at gcs", "is away", "60 s at most", "keys, and the code of functions, kill()"):
        assert part in warning.getMessage(), part


def test_a_head_that_is_silent_is_told_of_and_that_it_answers_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.get(b"k")
    scene.pass_time(WARN_AFTER_S)
    [warning] = caplog.records
    assert "has not answered for 2 s" in warning.getMessage()
    scene.wire.last("KvGet").answer(gcs_pb2.KvGetReply())
    assert "answers again" in caplog.records[1].getMessage()


def test_a_group_that_has_no_place_yet_waits_for_the_head_only_while_that_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.gcs.RegisterPlacementGroup.start(gcs_pb2.RegisterPlacementGroupRequest(settled=True), print)
    scene.pass_time(10 * WARN_AFTER_S)
    assert not caplog.records
    scene.head_dies()
    scene.pass_time(WARN_AFTER_S)
    assert "These wait for it: new placement groups" in caplog.records[0].getMessage()
    scene.head_is_back()
    assert "answers again" in caplog.records[1].getMessage()


def test_a_worker_tells_no_user(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(is_driver=False)
    scene.get(b"k")
    scene.head_dies()
    scene.pass_time(2 * WARN_AFTER_S)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_when_patience_ends_calls_fail_and_say_why_and_a_head_that_comes_later_is_taken() -> None:
    scene = Scene()
    ends: list[RpcError | None] = []
    scene.get(b"k")
    scene.gcs.Subscribe.start(gcs_pb2.SubscribeRequest(), lambda item: None, ends.append)
    scene.head_dies()
    scene.pass_time(PATIENCE_S)
    scene.get(b"later")
    errors = [error for _, error in scene.answers] + ends
    assert len(errors) == 3
    for error in errors:
        assert error is not None and error.code is StatusCode.UNAVAILABLE
        assert "the GCS at gcs is gone: it has been away for 60.0 s (lost)" in error.message
    scene.head_is_back()
    scene.get(b"at last")
    assert scene.keys_asked("gcs2") == [b"at last"]


def test_without_a_raylet_nobody_looks_for_the_head() -> None:
    scene = Scene()
    scene.get(b"k")
    scene.wire.gone.add("raylet")
    scene.wire.channels["raylet"].close()
    scene.head_dies()
    scene.channel.raylet_lost("its node was drained")
    scene.pass_time(0)
    [(_, error)] = scene.answers
    assert error is not None and error.code is StatusCode.UNAVAILABLE
    assert "its node was drained" in error.message


def test_a_calls_own_time_does_not_run_while_the_head_is_away() -> None:
    scene = Scene()

    def away_for_long() -> None:
        scene.head_dies()
        scene.pass_time(PATIENCE_S - 1)
        scene.head_is_back()
        scene.wire.last("KvGet", "gcs2").answer(gcs_pb2.KvGetReply(value=b"v"))

    scene.reactor.meanwhile.append(away_for_long)
    assert scene.gcs.KvGet(key(b"k"), timeout_s=5).value == b"v"


def test_a_head_that_is_there_and_silent_has_the_calls_own_time() -> None:
    scene = Scene()
    started_s = scene.reactor.now_s
    with pytest.raises(RpcError, match="the GCS at gcs did not answer .*KvGet within 5 s") as caught:
        scene.gcs.KvGet(key(b"k"), timeout_s=5)
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    assert scene.reactor.now_s == started_s + 5


def finish(scene: Scene) -> None:
    scene.gcs.MarkJobFinished(gcs_pb2.MarkJobFinishedRequest(), timeout_s=5)


@pytest.mark.parametrize("away_s", [0.5, 30.0])
def test_a_process_that_leaves_waits_for_a_head_only_as_long_as_one_needs_to_be_started_again(
    away_s: float,
) -> None:
    scene = Scene()
    scene.head_dies()
    scene.pass_time(away_s)
    scene.channel.leave()
    with pytest.raises(RpcError, match=f"is gone: .* away for {max(away_s, BACK_AFTER_S):g}") as caught:
        finish(scene)
    assert caught.value.code is StatusCode.UNAVAILABLE
    now_s = scene.reactor.now_s
    with pytest.raises(RpcError, match="the GCS at gcs is gone"):
        finish(scene)
    assert scene.reactor.now_s == now_s
    # Nobody waits for it any more, so it is not sent.
    scene.head_is_back()
    assert scene.wire.all("MarkJobFinished") == []


def test_a_process_whose_head_dies_while_it_leaves_waits_no_longer() -> None:
    scene = Scene()
    scene.channel.leave()
    scene.reactor.meanwhile.append(scene.head_dies)
    with pytest.raises(RpcError, match=f"the GCS at gcs is gone: .* away for {BACK_AFTER_S:g}"):
        finish(scene)


def test_a_process_that_leaves_finds_a_head_that_is_started_again_at_once() -> None:
    scene = Scene()
    scene.head_dies()
    scene.channel.leave()

    def back() -> None:
        scene.head_is_back()
        scene.wire.last("MarkJobFinished", "gcs2").answer(common_pb2.Empty())

    scene.reactor.meanwhile.append(back)
    finish(scene)


def test_a_call_whose_wait_was_interrupted_is_not_made_again() -> None:
    scene = Scene()

    def interrupt() -> None:
        scene.reactor.interrupted = True

    scene.reactor.meanwhile.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        scene.gcs.KvGet(key(b"k"), timeout_s=5)
    scene.head_dies()
    scene.head_is_back()
    assert scene.keys_asked("gcs2") == []


def test_a_subscription_that_was_ended_is_not_made_again() -> None:
    scene = Scene()
    end = scene.gcs.Subscribe.start(gcs_pb2.SubscribeRequest(), lambda item: None, lambda error: None)
    end()
    scene.head_dies()
    scene.head_is_back()
    assert scene.wire.all("Subscribe", "gcs2") == []


def test_notices_are_kept_for_the_next_head_up_to_a_limit() -> None:
    scene = Scene()
    scene.head_dies()
    for number in range(NOTICES_MAX + 3):
        scene.gcs.AddTaskEvents.notify(gcs_pb2.TaskEvents(pid=number))
    scene.get(b"k")
    scene.head_is_back()
    pids = [each.request.pid for each in scene.wire.all("AddTaskEvents", "gcs2")]
    assert pids == list(range(3, NOTICES_MAX + 3))
    assert scene.keys_asked("gcs2") == [b"k"]


def test_who_asked_to_hear_of_the_return_is_told_after_the_subscriptions_were_made() -> None:
    scene = Scene()
    scene.gcs.Subscribe.start(gcs_pb2.SubscribeRequest(), lambda item: None, lambda error: None)
    seen: list[list[str]] = []
    scene.channel.on_return(lambda: seen.append([each.method for each in scene.said_to("gcs2")]))
    scene.head_dies()
    scene.head_is_back()
    assert seen == [["GetClusterInfo", "Subscribe"]]


def test_when_this_process_disconnects_every_call_fails_once() -> None:
    scene = Scene()
    scene.get(b"k")
    scene.head_dies()
    scene.channel.close("this process disconnected")
    scene.raylet_says("gcs2")
    scene.pass_time(2 * PATIENCE_S)
    [(_, error)] = scene.answers
    assert error is not None and error.message == "this process disconnected"

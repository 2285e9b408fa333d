"""What a driver shows at its end, and what it says of what it cannot show."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.core_worker.process import driver_messages
from ray_mono.core_worker.process.driver_messages import DriverMessages
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import Said, Scene
from tests.waiting import wait_until

JOB = b"\x01\0\0\0"
TIMEOUT_S = 30.0


class Cluster(Scene):
    """The driver, the GCS behind it, and log monitors of which `answers` tell what they have."""

    def __init__(self, *answers: tuple[list[str], int]) -> None:
        super().__init__()
        self.answers = answers
        self.reached = len(answers)
        self.refusal: RpcError | None = None
        self.silent_asks = 2
        """How often nobody listens at first."""
        self.num_asked = 0
        self.during_wait: Callable[[], None] = lambda: None
        self.holds: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.token = b""
        self.wire.replies["Publish"] = self._publish
        self.wire.heard = self._heard
        self.reactor.wait = self._wait  # type: ignore[method-assign]

    def _publish(self, request: Any) -> Any:
        self.num_asked += 1
        if self.refusal is not None:
            raise self.refusal
        assert request.message.channel == gcs_pb2.LOG_FLUSH and request.message.key == JOB
        if self.num_asked <= self.silent_asks:
            return gcs_pb2.PublishReply(reached=0)
        self.token = token = common_pb2.LogFlush.FromString(request.message.payload).token
        for number, (lines, unread_bytes) in enumerate(self.answers):
            flushed = common_pb2.LogFlushed(token=token, unread_bytes=unread_bytes)
            self.send(common_pb2.LogBatch(job_id=JOB, lines=lines))
            self.send(common_pb2.LogBatch(job_id=JOB, node_id=bytes([number]), flushed=flushed))
        return gcs_pb2.PublishReply(reached=self.reached)

    def _heard(self, said: Said) -> None:
        if said.method == "Publish":
            flush = common_pb2.LogFlush.FromString(said.request.message.payload)
            if not flush.token:
                assert said.request.message.channel == gcs_pb2.LOG_FLUSH
                self.holds.put(flush.hold)

    def publish(self, message: gcs_pb2.PubMessage) -> None:
        self.wire.last("Subscribe").part(message)

    def send(self, batch: common_pb2.LogBatch) -> None:
        self.publish(gcs_pb2.PubMessage(channel=gcs_pb2.LOG, key=JOB, payload=batch.SerializeToString()))

    def _wait(self, waiter: Any, timeout_s: float) -> bool:
        self.reactor.now_s += self.wait_s(timeout_s)
        self.during_wait()
        return True

    def wait_s(self, timeout_s: float) -> float:
        """How long a wait takes."""
        return 0.0


def leave(cluster: Cluster, show: Callable[[str], None]) -> list[str]:
    """Has a driver of the cluster leave; returns the errors that it shows."""
    errors: list[str] = []
    messages = DriverMessages(
        cluster.env,
        JOB,
        lambda error: errors.append(error.message),
        lambda batch: [show(line) for line in batch.lines],
    )
    messages.subscribe()
    try:
        messages.flush()
    finally:
        messages.stop()
    return errors


def test_every_line_of_every_node_is_shown_before_the_end() -> None:
    shown: list[str] = []
    everything = threading.Event()
    cluster = Cluster((["one", "two"], 0), (["three"], 0))
    cluster.during_wait = lambda: everything.wait(TIMEOUT_S) if cluster.num_asked == 3 else None

    def show(line: str) -> None:
        shown.append(line)
        if line == "three":
            everything.set()

    assert leave(cluster, show) == [] and shown == ["one", "two", "three"]
    # Nobody listened at first.
    assert cluster.num_asked == 3


def test_lines_that_a_monitor_tells_again_are_shown_once() -> None:
    shown: list[str] = []
    cluster = Cluster()
    messages = DriverMessages(cluster.env, JOB, lambda error: None, lambda batch: shown.extend(batch.lines))
    messages.subscribe()
    for node_id, sequence, line in (
        (b"1", 5, "one"),
        (b"2", 5, "of another node"),
        (b"1", 5, "one"),
        (b"1", 6, "two"),
        (b"1", 5, "one"),
        (b"1", 6, "two"),
        (b"1", 7, "three"),
    ):
        cluster.send(common_pb2.LogBatch(job_id=JOB, node_id=node_id, sequence=sequence, lines=[line]))
    messages.stop()
    assert shown == ["one", "of another node", "two", "three"]


def test_a_driver_that_leaves_asks_again_where_the_gcs_was_away_meanwhile() -> None:
    cluster = Cluster((["one"], 7))
    errors: list[str] = []
    messages = DriverMessages(
        cluster.env, JOB, lambda error: errors.append(error.message), lambda batch: None
    )
    messages.subscribe()

    def wait(waiter: Any, timeout_s: float) -> bool:
        if cluster.num_asked == 3:
            cluster.answers = ((["one"], 0),)
            messages.gcs_is_back()
        elif cluster.num_asked > 3:
            wait_until(lambda: waiter.done, "the answer is shown")
        return True

    cluster.reactor.wait = wait  # type: ignore[method-assign]
    messages.flush()
    messages.stop()
    assert errors == [] and cluster.num_asked == 4


def test_what_does_not_come_is_told_with_its_size_and_place() -> None:
    cluster = Cluster((["one"], 12345))
    (error,) = leave(cluster, lambda line: None)
    assert "12,345 bytes that were not sent yet" in error and "/session/logs" in error
    assert f"within {driver_messages.SILENCE_S:g} s" in error


def test_output_that_nobody_follows_is_told_when_a_monitor_had_time_to_start() -> None:
    cluster = Cluster()
    cluster.wait_s = lambda timeout_s: timeout_s  # type: ignore[method-assign]
    began_s = cluster.reactor.now_s
    (error,) = leave(cluster, lambda line: None)
    assert "no log monitor has answered for 3 s" in error and "/session/logs" in error
    assert 0 <= cluster.reactor.now_s - began_s - driver_messages.NO_MONITOR_S < 0.1


def test_a_standard_output_that_takes_nothing_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_messages, "STOP_TIMEOUT_S", 0.0)
    cluster = Cluster((["hangs"], 1))
    hangs, released = threading.Event(), threading.Event()
    cluster.during_wait = lambda: hangs.wait(TIMEOUT_S) if cluster.num_asked == 3 else None

    def show(line: str) -> None:
        hangs.set()
        released.wait(TIMEOUT_S)

    (error,) = leave(cluster, show)
    released.set()
    assert "standard output did not take it within 5 s" in error


def test_what_came_and_cannot_be_shown_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_messages, "STOP_TIMEOUT_S", 0.0)
    cluster = Cluster((["blocks"], 1), (["is", "left out"], 0))
    hangs, released = threading.Event(), threading.Event()

    def interrupted() -> None:
        if cluster.num_asked == 3:
            hangs.wait(TIMEOUT_S)
            raise KeyboardInterrupt

    def show(batch: common_pb2.LogBatch) -> None:
        hangs.set()
        released.wait(TIMEOUT_S)

    cluster.during_wait = interrupted
    errors: list[str] = []
    messages = DriverMessages(
        cluster.env,
        JOB,
        lambda error: errors.append(error.message),
        show,
    )
    messages.subscribe()
    waits: list[float | None] = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: waits.append(timeout))
    with pytest.raises(KeyboardInterrupt):
        messages.flush()
    messages.stop()
    assert len(waits) == 1, "whoever hangs is not waited for twice"
    released.set()
    (error,) = errors
    assert "it was interrupted" in error and "2 lines" in error


def test_a_gcs_that_is_gone_is_told_and_not_waited_for() -> None:
    cluster = Cluster()
    cluster.refusal = RpcError(StatusCode.UNAVAILABLE, "it is gone")
    (error,) = leave(cluster, lambda line: None)
    assert "it is gone" in error and "/session/logs" in error and cluster.num_asked == 1


def test_a_driver_that_shows_no_output_asks_for_none() -> None:
    cluster = Cluster()
    messages = DriverMessages(cluster.env, JOB, lambda error: None, None)
    messages.subscribe()
    messages.flush()
    messages.stop()
    assert cluster.num_asked == 0


def test_a_driver_that_cannot_keep_up_asks_for_no_more_and_then_for_more_again() -> None:
    cluster = Cluster()
    goes_on = threading.Event()
    messages = DriverMessages(cluster.env, JOB, None, lambda batch: goes_on.wait(TIMEOUT_S))
    messages.subscribe()
    for _ in range(driver_messages.WAITING_MAX + 50):
        cluster.send(common_pb2.LogBatch(job_id=JOB, lines=["line"]))
    assert cluster.holds.get(timeout=TIMEOUT_S) and cluster.holds.empty()
    goes_on.set()
    assert not cluster.holds.get(timeout=TIMEOUT_S)
    messages.stop()
    assert cluster.holds.empty()


def test_the_end_waits_for_the_slowest_node_and_for_no_answer_to_another_question() -> None:
    shown: list[str] = []
    second_shown = threading.Event()
    cluster = Cluster((["one"], 0))
    cluster.reached = 2
    late = [
        common_pb2.LogFlushed(token=b"an earlier question", unread_bytes=0),
        common_pb2.LogFlushed(unread_bytes=5),
        common_pb2.LogFlushed(unread_bytes=0),
    ]

    def answer() -> None:
        if cluster.num_asked < 3:
            return
        flushed = late.pop(0)
        flushed.token = flushed.token or cluster.token
        second_shown.clear()
        cluster.send(common_pb2.LogBatch(job_id=JOB, node_id=b"\x01", flushed=flushed))
        cluster.send(common_pb2.LogBatch(job_id=JOB, lines=[f"before {len(late)}"]))
        assert second_shown.wait(TIMEOUT_S)

    def show(line: str) -> None:
        shown.append(line)
        second_shown.set()

    cluster.during_wait = answer
    assert leave(cluster, show) == []
    assert shown == ["one", "before 2", "before 1", "before 0"] and late == []


def test_a_monitor_that_has_told_all_is_not_taken_for_the_silence_of_another() -> None:
    cluster = Cluster()
    cluster.reached = 2
    nodes = [b"\x01", b"\x02"]
    noted, goes_on = threading.Semaphore(0), threading.Event()

    def wake() -> None:
        noted.release()
        goes_on.wait(TIMEOUT_S)

    def answer() -> None:
        if cluster.num_asked < 3:
            return
        node_id = nodes.pop(0)
        if not nodes:
            goes_on.set()
        flushed = common_pb2.LogFlushed(token=cluster.token, unread_bytes=0)
        cluster.send(common_pb2.LogBatch(job_id=JOB, node_id=node_id, flushed=flushed))
        # The driver wakes before the thread that woke it goes on.
        assert noted.acquire(timeout=TIMEOUT_S)

    cluster.reactor.wake, cluster.during_wait = wake, answer
    try:
        assert leave(cluster, lambda line: None) == [] and nodes == []
    finally:
        goes_on.set()


def test_the_end_is_not_waited_for_longer_than_its_bound_though_something_comes_all_the_time() -> None:
    shown = threading.Semaphore(0)
    cluster = Cluster((["one"], 10))
    cluster.wait_s = lambda timeout_s: min(timeout_s, 4.0)  # type: ignore[method-assign]

    def more() -> None:
        cluster.send(common_pb2.LogBatch(job_id=JOB, lines=["more"]))
        assert shown.acquire(timeout=TIMEOUT_S)

    cluster.during_wait = lambda: more() if cluster.num_asked == 3 else None
    began_s = cluster.reactor.now_s
    (error,) = leave(cluster, lambda line: shown.release() if line == "more" else None)
    assert f"it did not come within {driver_messages.FLUSH_TIMEOUT_S:g} s" in error
    assert (
        driver_messages.FLUSH_TIMEOUT_S
        <= cluster.reactor.now_s - began_s
        < driver_messages.FLUSH_TIMEOUT_S + 1
    )


def test_a_gcs_that_goes_while_the_last_lines_come_is_told() -> None:
    cluster = Cluster((["one"], 5))
    cluster.during_wait = lambda: cluster.wire.last("Subscribe").fail() if cluster.num_asked == 3 else None
    (error,) = leave(cluster, lambda line: None)
    assert "the connection to the GCS is lost" in error and "5 bytes" in error


def test_nothing_is_asked_for_by_a_driver_that_has_left() -> None:
    cluster = Cluster((["one"], 0))
    cluster.reactor.is_closed = True
    assert leave(cluster, lambda line: None) == [] and cluster.num_asked == 0


@pytest.mark.parametrize(
    ("errors", "log", "channels"),
    [
        (True, True, [(gcs_pb2.ERROR, [JOB, b""]), (gcs_pb2.LOG, [JOB])]),
        (True, False, [(gcs_pb2.ERROR, [JOB, b""])]),
        (False, True, [(gcs_pb2.LOG, [JOB])]),
        (False, False, None),
    ],
)
def test_only_what_is_shown_is_subscribed_to(errors: bool, log: bool, channels: Any) -> None:
    cluster = Cluster()
    messages = DriverMessages(
        cluster.env, JOB, (lambda error: None) if errors else None, (lambda batch: None) if log else None
    )
    messages.subscribe()
    asked = [
        [(each.channel, list(each.keys)) for each in said.request.channels]
        for said in cluster.wire.all("Subscribe")
    ]
    assert asked == ([channels] if channels else [])
    messages.stop()


def test_errors_of_the_job_and_of_the_cluster_are_shown_and_one_that_cannot_be_stops_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = Cluster()
    shown: list[str] = []
    logged: list[common_pb2.LogBatch] = []

    def show(error: common_pb2.ErrorInfo) -> None:
        shown.append(error.message)
        if error.message == "first":
            raise LookupError("no screen")

    messages = DriverMessages(cluster.env, JOB, show, logged.append)
    messages.subscribe()
    for text in ("first", "second"):
        payload = common_pb2.ErrorInfo(message=text).SerializeToString()
        cluster.publish(gcs_pb2.PubMessage(channel=gcs_pb2.ERROR, key=JOB, payload=payload))
    messages.stop()
    assert shown == ["first", "second"] and logged == []
    assert capsys.readouterr().err == "(ray_mono) a message of the cluster could not be shown: no screen\n"

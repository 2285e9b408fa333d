"""The connections of one process to others: by the nearest way, one each, anew where one was lost."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.missing_peers import ASK_PERIOD_S
from ray_mono.core_worker.peers import IN_A_ROW_S, LOST_MAX, UNREACHED_PAUSE_S, PeerPool
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.rpc.surface import OutOfReach, StatusCode
from tests.core_worker.scene import ELSEWHERE, LOST, NODE_ID, Wire, address_of
from tests.core_worker.scene_time import SceneReactor


class Pool:
    def __init__(self) -> None:
        self.wire, self.head = Wire(), Wire()
        self.opened: list[str] = []

        def connect(address: str) -> object:
            self.opened.append(address)
            return self.wire.connect(address)

        self.watches: list[Callable[[raylet_pb2.DeadNode], None]] = []
        """Who hears of nodes that died."""
        watch = SimpleNamespace(start=lambda request, on_item, on_end: self.watches.append(on_item))
        raylet: Any = SimpleNamespace(WatchDeadNodes=watch)
        gcs: Any = GcsServiceStub(self.head.connect("gcs"))  # type: ignore[arg-type]
        clock = self.clock = SceneReactor()
        self.peers = PeerPool(connect, NODE_ID, [], raylet, gcs, clock, clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (address_of(b"near"), "unix:near"),
        (address_of(b"far", ELSEWHERE), "far:1"),
        (common_pb2.Address(worker_id=b"w", node_id=NODE_ID, host="host", port=7), "host:7"),
    ],
)
def test_a_peer_is_reached_by_its_unix_socket_on_this_node_and_by_its_port_elsewhere(
    address: common_pb2.Address, target: str
) -> None:
    pool = Pool()
    assert pool.peers.peer(address) is pool.peers.peer(address)
    assert pool.opened == [target]
    assert pool.peers.stub_of(address.SerializeToString()) is pool.peers.stub_for(address)
    assert pool.opened == [target]


def test_a_peer_that_was_lost_is_connected_to_anew() -> None:
    pool = Pool()
    first = pool.peers.peer(address_of(b"near"))
    other = pool.peers.peer(address_of(b"other"))
    pool.wire.channels["unix:near"].close()
    assert pool.peers.peer(address_of(b"near")) is not first
    assert pool.peers.peer(address_of(b"other")) is other
    assert pool.opened == ["unix:near", "unix:other", "unix:near"]


def test_a_peer_that_cannot_be_reached_is_tried_again_the_next_time() -> None:
    pool = Pool()
    pool.wire.gone.add("unix:near")
    assert pool.peers.peer(address_of(b"near")).channel.is_closed
    pool.wire.gone.clear()
    assert not pool.peers.peer(address_of(b"near")).channel.is_closed


def test_a_call_that_loses_its_connection_again_and_again_is_given_up() -> None:
    pool = Pool()
    pool.wire.replies["CheckAlive"] = lambda request: common_pb2.Empty()
    failed: list[Any] = []

    def call(stub: Any, answered: Any) -> None:
        stub.GetObjectStatus.start(core_worker_pb2.GetObjectStatusRequest(), answered)
        pool.wire.channels["unix:near"].close()

    pool.peers.insist(address_of(b"near"), call, lambda reply, error: failed.append(error))
    assert [error.code for error in failed] == [StatusCode.UNAVAILABLE]
    assert len(pool.wire.all("GetObjectStatus")) == 1 + LOST_MAX


def test_connections_that_lasted_are_not_lost_in_a_row() -> None:
    pool = Pool()
    pool.wire.replies["CheckAlive"] = lambda request: common_pb2.Empty()
    failed: list[Any] = []
    pool.peers.insist(
        address_of(b"near"),
        lambda stub, answered: stub.DumpState.start(common_pb2.Empty(), answered),
        lambda reply, error: failed.append(error),
    )
    for _ in range(2 * LOST_MAX):
        pool.clock.now_s += 2 * IN_A_ROW_S
        pool.wire.channels["unix:near"].close()
    assert not failed and len(pool.wire.open("DumpState")) == 1


def lose_a_call(pool: Pool) -> list[Any]:
    """Returns what becomes of it."""
    ends: list[Any] = []
    pool.peers.insist(
        address_of(b"near"),
        lambda stub, answered: stub.DumpState.start(common_pb2.Empty(), answered),
        lambda reply, error: ends.append(error or reply),
    )
    pool.wire.channels["unix:near"].close()
    return ends


def test_a_question_that_is_lost_as_well_is_asked_again() -> None:
    pool = Pool()
    ends = lose_a_call(pool)
    pool.wire.channels["unix:near"].close()
    pool.wire.open("CheckAlive")[0].answer(common_pb2.Empty())
    pool.wire.open("DumpState")[0].answer(common_pb2.DumpStateReply())
    assert ends == [common_pb2.DumpStateReply()]


def test_who_cannot_be_reached_for_long_is_not_asked_again() -> None:
    pool = Pool()
    ends = lose_a_call(pool)
    pool.clock.now_s += IN_A_ROW_S
    pool.wire.channels["unix:near"].close()
    assert [error.code for error in ends] == [StatusCode.UNAVAILABLE] and not pool.wire.open("CheckAlive")


def cut_off_from_a_peer(pool: Pool) -> list[Any]:
    """Far away; it is asked again and again. Returns what becomes of the call."""
    ends: list[Any] = []
    pool.peers.insist(
        address_of(b"far", ELSEWHERE),
        lambda stub, answered: stub.DumpState.start(common_pb2.Empty(), answered),
        lambda reply, error: ends.append(error or reply),
    )
    pool.wire.channels["far:1"].close()
    for _ in range(2 * LOST_MAX):
        pool.clock.now_s += 2 * IN_A_ROW_S
        pool.wire.open("CheckAlive")[0].fail(OutOfReach("no answer within 10 s"))
        pool.clock.fire(pool.clock.now_s + UNREACHED_PAUSE_S)
    assert not ends
    return ends


def test_who_is_cut_off_is_waited_for() -> None:
    pool = Pool()
    ends = cut_off_from_a_peer(pool)
    pool.wire.open("CheckAlive")[0].answer(common_pb2.Empty())
    pool.wire.open("DumpState")[0].answer(common_pb2.DumpStateReply())
    assert ends == [common_pb2.DumpStateReply()]


def test_who_is_cut_off_is_gone_when_he_is_reached_and_nobody_listens_or_his_node_is_dead() -> None:
    for error in (LOST, OutOfReach("no answer within 10 s")):
        pool = Pool()
        ends = cut_off_from_a_peer(pool)
        if error is not LOST:
            pool.watches[0](raylet_pb2.DeadNode(node_id=ELSEWHERE, host="far", port=9))
        else:
            pool.clock.now_s += IN_A_ROW_S
            pool.wire.open("CheckAlive")[0].fail(error)
        assert [end.code for end in ends] == [StatusCode.UNAVAILABLE]


FAR = common_pb2.WorkerInfo(worker_id=b"far", is_alive=True)


@pytest.mark.parametrize(
    ("row", "dead_after_s", "is_gone"), [(None, 65, True), (None, 0, False), (FAR, 65, False)]
)
def test_who_is_cut_off_is_gone_when_the_head_has_not_had_him_for_as_long_as_he_may_live(
    row: common_pb2.WorkerInfo | None, dead_after_s: float, is_gone: bool
) -> None:
    """His node died before this node's raylet was there, and the head has lost its store since."""
    pool = Pool()
    ends = cut_off_from_a_peer(pool)
    reply = gcs_pb2.GetAllWorkersReply(workers=[row] if row else [], missing_dead_after_s=dead_after_s)
    for _ in range(20):
        for asked in pool.head.open("GetAllWorkers"):
            asked.answer(reply)
        pool.clock.now_s += ASK_PERIOD_S / 3
        for probed in pool.wire.open("CheckAlive"):
            probed.fail(OutOfReach("no answer within 10 s"))
        pool.clock.fire(pool.clock.now_s + UNREACHED_PAUSE_S)
    assert [end.code for end in ends] == [StatusCode.UNAVAILABLE] * is_gone


def test_who_is_on_a_node_that_is_known_to_be_dead_is_not_waited_for() -> None:
    pool = Pool()
    pool.peers.raylet_at("far:9")
    pool.watches[0](raylet_pb2.DeadNode(node_id=ELSEWHERE, host="far", port=9))
    ends: list[Any] = []
    pool.peers.insist(
        address_of(b"far", ELSEWHERE),
        lambda stub, answered: stub.DumpState.start(common_pb2.Empty(), answered),
        lambda reply, error: ends.append(error),
    )
    pool.wire.open("DumpState")[0].fail(OutOfReach("no answer within 10 s"))
    assert len(ends) == 1 and not pool.wire.open("CheckAlive")


def test_at_the_end_nobody_is_asked_whether_he_lives() -> None:
    pool = Pool()
    failed: list[Any] = []
    pool.peers.insist(
        address_of(b"near"),
        lambda stub, answered: stub.CheckAlive.start(common_pb2.Empty(), answered),
        lambda reply, error: failed.append(error),
    )
    pool.peers.close("over")
    assert len(failed) == 1 and len(pool.wire.all("CheckAlive")) == 1


def test_another_nodes_raylet_has_one_connection_until_it_is_lost() -> None:
    pool = Pool()
    first = pool.peers.raylet_at("far:7")
    assert pool.peers.raylet_at("far:7") is first
    pool.wire.channels["far:7"].close()
    assert pool.peers.raylet_at("far:7") is not first
    assert pool.opened == ["far:7", "far:7"]


def test_at_the_end_every_connection_is_closed() -> None:
    pool = Pool()
    pool.peers.peer(address_of(b"near"))
    pool.peers.raylet_at("far:7")
    pool.peers.close("this process disconnected")
    assert all(channel.is_closed for channel in pool.wire.channels.values()) and len(pool.opened) == 2


def test_what_leads_to_a_node_that_died_is_closed() -> None:
    pool = Pool()
    pool.peers.peer(address_of(b"near"))
    assert not pool.watches
    far, other = (
        pool.peers.peer(address_of(b"far", ELSEWHERE)),
        pool.peers.peer(address_of(b"more", b"m" * 28)),
    )
    raylet = pool.peers.raylet_at("far:9")
    [hear] = pool.watches
    hear(raylet_pb2.DeadNode(node_id=ELSEWHERE, host="far", port=9))
    assert far.channel.is_closed and not other.channel.is_closed
    assert pool.peers.raylet_at("far:9") is not raylet
    assert pool.peers.peer(address_of(b"far", ELSEWHERE)) is not far
    hear(raylet_pb2.DeadNode(node_id=b"unknown", host="unknown", port=9))

"""Where the head of a cluster answers: who is asked, who is right, and when somebody is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import head_finder
from ray_mono._private.node.bootstrap import ClusterAddress
from ray_mono._private.node.gcs_query import SecretRefusedError
from ray_mono._private.node.head_finder import locate_head
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc, raylet_pb2, raylet_rpc
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import CallContext, Listener
from tests.waiting import wait_until

SECRET = "the secret"


class Head(gcs_rpc.GcsServiceServicer):
    def __init__(self, number: int, cluster_id: bytes = b"cluster") -> None:
        self.info = gcs_pb2.ClusterInfo(cluster_id=cluster_id, head_number=number)

    async def GetClusterInfo(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.ClusterInfo:
        return self.info


class Raylet(raylet_rpc.RayletServiceServicer):
    """Finds a head when the test says so."""

    def __init__(self) -> None:
        self.found = asyncio.Event()
        self.address = ""
        self.num_asked = 0

    async def AwaitHead(
        self, request: raylet_pb2.AwaitHeadRequest, context: CallContext
    ) -> common_pb2.HeadPlace:
        self.num_asked += 1
        await self.found.wait()
        return common_pb2.HeadPlace(address=self.address)


class Services:
    """On a loop of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._listeners: list[Listener] = []

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def serve(self, address: str, handlers: Any) -> str:
        listener: Listener = self.do(FramedTransport(SECRET).serve(address, handlers))
        self._listeners.append(listener)
        return listener.address

    def head(self, number: int, cluster_id: bytes = b"cluster") -> str:
        head = Head(number, cluster_id)
        address = self.serve("127.0.0.1:0", gcs_rpc.gcs_service_handlers(head))
        host, _, port = address.rpartition(":")
        head.info.host, head.info.port = host, int(port)
        return address

    def nobody(self) -> str:
        """An address at which nobody listens."""
        address = self.head(1)
        self.do(self._listeners.pop().close())
        return address

    def stop(self) -> None:
        for listener in self._listeners:
            self.do(listener.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setenv("RAY_MONO_AUTH_TOKEN", SECRET)
    made = Services()
    yield made
    made.stop()


@contextlib.contextmanager
def in_thread(call: Callable[[], Any]) -> Iterator[list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    yield results
    thread.join(30)
    assert results, "it did not end"


def test_one_address_and_no_node_here_is_left_to_whoever_asks_there() -> None:
    cluster = ClusterAddress("127.0.0.1:1", None)
    assert locate_head(cluster, None) is cluster


def test_of_several_heads_of_a_cluster_the_newest_is_right(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, nobody = services.head(1), services.head(2), services.nobody()
    for addresses in ([old, new, nobody], [nobody, new, old]):
        found = locate_head(ClusterAddress(addresses[0], None, tuple(addresses[1:])), None)
        assert found == ClusterAddress(new, None)
        assert f"head 1 at {old} was replaced by head 2 at {new}" in caplog.text


def test_heads_of_different_clusters_are_refused(services: Services) -> None:
    one, other = services.head(1), services.head(1, b"another")
    with pytest.raises(ConnectionError, match="heads of different clusters"):
        locate_head(ClusterAddress(one, None, (other,)), None)


def test_where_nobody_answers_and_no_node_is_here_that_is_told_at_once(services: Services) -> None:
    one, other = services.nobody(), services.nobody()
    with pytest.raises(ConnectionError, match=f"no head of the cluster at {one} answers: .*refused"):
        locate_head(ClusterAddress(one, None, (other,)), None)


def test_another_secret_is_refused_and_not_waited_for(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = services.head(1)
    monkeypatch.setenv("RAY_MONO_AUTH_TOKEN", "another secret")
    with pytest.raises(SecretRefusedError, match="refused"):
        locate_head(ClusterAddress(address, None, raylet_socket=str(tmp_path / "none")), None)


def test_a_head_that_is_away_is_waited_for_where_the_raylet_finds_it_and_one_line_says_so(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(head_finder, "WARN_AFTER_S", 0.1)
    caplog.set_level(logging.WARNING)
    raylet, socket = Raylet(), str(tmp_path / "raylet")
    services.serve(f"unix:{socket}", raylet_rpc.raylet_service_handlers(raylet))
    before = services.nobody()
    with in_thread(lambda: locate_head(ClusterAddress(before, "dir", raylet_socket=socket), None)) as results:
        wait_until(lambda: raylet.num_asked > 2, "it asks again")
        assert not results
        raylet.address = services.head(2)
        services.loop.call_soon_threadsafe(raylet.found.set)
    assert results == [ClusterAddress(raylet.address, "dir")]
    [told] = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert before in told and "60 s at most" in told


def test_a_head_that_stays_away_is_told_after_the_bound(services: Services, tmp_path: Path) -> None:
    raylet, socket = Raylet(), str(tmp_path / "raylet")
    services.serve(f"unix:{socket}", raylet_rpc.raylet_service_handlers(raylet))
    address = services.nobody()
    # It is still registered, as it thinks, at one that is gone.
    raylet.address = address
    services.loop.call_soon_threadsafe(raylet.found.set)
    with pytest.raises(
        ConnectionError, match=f"no head of the cluster at {address} answers, and has not for"
    ):
        locate_head(ClusterAddress(address, None, raylet_socket=socket), None, patience_s=0.5)

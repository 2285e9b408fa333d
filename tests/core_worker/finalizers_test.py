"""What ends of references, of views and of owned objects leave is seen to while this process sleeps and nothing comes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.rpc.lead import Lead
from ray_mono.rpc.reactor import Reactor

WAIT_S = 30.0
OBJECT = b"o" * 28
FOUND = object_manager_pb2.ObjectFound(object_id=OBJECT, size_bytes=5)


class Channel:
    """To a service that answers ConnectClient, and notes what it is told."""

    def __init__(self, reactor: Reactor, store_file: Path) -> None:
        self.reactor = reactor
        self.is_closed = False
        self.told: list[tuple[str, Any]] = []
        self.news = threading.Event()
        self._hello = object_manager_pb2.ConnectClientReply(store_file=str(store_file), capacity_bytes=4096)

    def unary_unary(self, path: str, **_: Any) -> Any:
        call: Any = partial(self._call, path)
        call.notify = call.start = call
        return call

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(start=lambda *_: None)

    def on_close(self, callback: Callable[[str], None]) -> None: ...

    def close(self, reason: str) -> None: ...

    def _call(self, path: str, request: Any, *_: Any, **__: Any) -> Any:
        self.told.append((path.rpartition("/")[2], request))
        self.news.set()
        return self._hello


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[CoreWorker, Channel]]:
    """A core worker whose background thread sleeps without end, and the channel to its store."""
    store_file = tmp_path / "store"
    store_file.write_bytes(bytes(4096))
    reactor = Reactor("sleeper")
    channel: Any = Channel(reactor, store_file)
    core = CoreWorker(
        reactor=reactor,
        address=common_pb2.Address(worker_id=b"w" * 28),
        node=common_pb2.NodeInfo(node_id=b"n" * 28),
        gcs_channel=channel,
        raylet_channel=channel,
        store_channel=channel,
        secret="",
        session_dir="",
        is_driver=True,
        server=SimpleNamespace(close=lambda: None),  # type: ignore[arg-type]
    )
    sleeps(core)
    yield core, channel
    core.shutdown()


def sleeps(core: CoreWorker) -> None:
    lead = core.reactor._lead
    while not (lead.nap and lead.leader == core.reactor._thread.ident):
        threading.Event().wait(0.001)


def told(core: CoreWorker, channel: Channel, name: str) -> Any:
    """What the store is told, in the end."""
    while True:
        with core.lock:
            channel.news.clear()
            found = [request for told, request in channel.told if told == name]
        if found:
            return found[0]
        assert channel.news.wait(WAIT_S), f"nobody was told of {name}"


def own(core: CoreWorker) -> None:
    """This process owns the object, which lies in its node's store, and has one reference to it."""
    with core.lock:
        core.references.add_owned(OBJECT)
        core.memory_store.put_in_store(OBJECT, [core.node_id], 5)


def drop(core: CoreWorker) -> None:
    own(core)
    ref: Any = ObjectRef(OBJECT, core)
    sleeps(core)
    del ref
    gc.collect()


def end_view(core: CoreWorker) -> None:
    view = core.store.view(FOUND)
    sleeps(core)
    del view
    gc.collect()


@pytest.mark.parametrize(
    ("leave", "name"),
    [
        (drop, "Free"),
        (lambda core: core.free_in_stores(OBJECT, [core.node_id]), "Free"),
        (end_view, "Release"),
        (lambda core: core.store.release(OBJECT), "Release"),
    ],
)
def test_what_is_left_while_nobody_waits_is_seen_to(
    process: tuple[CoreWorker, Channel], leave: Callable[[CoreWorker], None], name: str
) -> None:
    core, channel = process
    leave(core)
    assert told(core, channel, name)


@pytest.mark.parametrize(
    ("leave", "name"),
    [
        (lambda core: core.reference_dropped(OBJECT), "Free"),
        (lambda core: core.free_in_stores(OBJECT, [core.node_id]), "Free"),
        (lambda core: core.store._view_ended(FOUND), "Release"),
        (lambda core: core.store.release(OBJECT), "Release"),
    ],
)
def test_what_is_left_by_garbage_of_the_thread_that_is_about_to_sleep_is_seen_to(
    process: tuple[CoreWorker, Channel],
    leave: Callable[[CoreWorker], None],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core, channel = process
    own(core)
    if name == "Release":
        core.references.remove_local(OBJECT)
    doze, left = Lead.doze, []

    def leave_once(lead: Lead) -> None:
        if not left:
            left.append(None)
            leave(core)
        doze(lead)

    monkeypatch.setattr(Lead, "doze", leave_once)
    core.reactor.wake()
    assert told(core, channel, name)

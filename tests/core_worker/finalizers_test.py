"""What ends of references, of views and of owned objects leave is seen to while this process sleeps and
nothing comes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mono.common.world import SystemClock
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.protobuf import core_worker_pb2, object_manager_pb2
from ray_mono.rpc.lead import Lead
from ray_mono.rpc.reactor import Reactor
from tests.core_worker.scene import ELSEWHERE, OWNER, Scene, SceneServer, Served, Wire, status_in_stores
from tests.waiting import wait_until

WAIT_S = 30.0
OBJECT = b"o" * 28


class Process:
    """A core worker whose background thread sleeps without end, and what it says to its store."""

    def __init__(self, store_file: Path) -> None:
        scene = Scene(store_file=store_file)
        self.scene = scene
        self.wire: Wire = scene.wire
        self.reactor = Reactor("sleeper")
        self.core = CoreWorker(
            replace(scene.env, reactor=self.reactor, clock=SystemClock()),
            scene.context,
            self.wire.connect,  # type: ignore[arg-type]
            self.wire.connect("store"),  # type: ignore[arg-type]
            SceneServer(),  # type: ignore[arg-type]
            [],
        )

    def told(self, name: str) -> Any:
        """What the store is told, in the end."""
        wait_until(lambda: self.wire.all(name), name)
        return self.wire.last(name).request


class Turning(Process):
    """A process whose background thread does at once what it is woken for."""

    def __init__(self, store_file: Path) -> None:
        self.scene = Scene(store_file=store_file)
        self.wire = self.scene.wire
        self.reactor: Any = self.scene.reactor
        self.core = self.scene.core
        self.reactor.wake = self.scene.turn


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path / "store")
    yield made
    made.core.shutdown()


def last_reference(process: Process) -> Callable[[], object]:
    """To an object of ours, which lies in the node's store."""
    process.wire.replies["Create"] = lambda request: object_manager_pb2.CreateReply()
    refs = [process.core.put(bytes(200_000))]
    return refs.clear


def late_copy(process: Process) -> Callable[[], object]:
    """Somebody made a copy of what is freed already."""
    request = core_worker_pb2.ObjectLocationRequest(object_id=OBJECT, node_id=ELSEWHERE)

    def comes() -> None:
        with process.reactor.lock:
            process.core.resolver.AddObjectLocation(request, Served())  # type: ignore[arg-type]

    return comes


def reference_elsewhere(process: Process, **found: Any) -> Any:
    """To what others own, and what a Get of it finds."""
    item = process.scene.lay(OBJECT, np.arange(1000), **found)
    process.wire.replies["GetObjectStatus"] = lambda request: status_in_stores(ELSEWHERE)
    process.wire.replies["Get"] = lambda request: object_manager_pb2.GetReply(objects=[item])
    return process.core.reference_arrived(OBJECT, OWNER.SerializeToString(deterministic=True))


def last_view(process: Process) -> Callable[[], object]:
    """Of an object that is not referenced any more."""
    arrays = process.core.get([reference_elsewhere(process)], None)
    wait_until(lambda: not process.core.reference_counts(), "no references")
    return arrays.clear


def copy_on_its_way(process: Process) -> Callable[[], object]:
    """Its pin is let go when it is here."""
    ref = reference_elsewhere(process)
    process.core.wait([ref], 1, 0, False)
    return lambda: process.core.wait([ref], 1, 0, True)


LEFT = [
    (last_reference, "Free"),
    (late_copy, "Free"),
    (last_view, "Release"),
    (copy_on_its_way, "Release"),
]


@pytest.mark.parametrize(("prepare", "name"), LEFT)
def test_what_is_left_while_nobody_waits_is_seen_to(
    process: Process,
    prepare: Callable[[Process], Callable[[], object]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = prepare(process)
    assert not process.wire.all(name)
    sleeps, doze = threading.Event(), Lead.doze

    def doze_and_say(lead: Lead[Any]) -> None:
        doze(lead)
        sleeps.set()

    monkeypatch.setattr(Lead, "doze", doze_and_say)
    process.reactor.wake()
    assert sleeps.wait(WAIT_S)
    leave()
    gc.collect()
    assert process.told(name)


@pytest.mark.parametrize(("prepare", "name"), LEFT)
def test_what_is_left_by_garbage_of_the_thread_that_is_about_to_sleep_is_seen_to(
    process: Process,
    prepare: Callable[[Process], Callable[[], object]],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave = [prepare(process)]
    assert not process.wire.all(name)
    doze = Lead.doze

    def leave_once(lead: Lead[Any]) -> None:
        if leave:
            leave.pop()()
        doze(lead)

    monkeypatch.setattr(Lead, "doze", leave_once)
    process.reactor.wake()
    assert process.told(name)


@pytest.mark.parametrize(("prepare", "name"), LEFT)
def test_what_is_left_is_there_before_anybody_is_woken_for_it(
    tmp_path: Path, prepare: Callable[[Process], Callable[[], object]], name: str
) -> None:
    process = Turning(tmp_path / "store")
    leave = prepare(process)
    assert not process.wire.all(name)
    leave()
    gc.collect()
    assert process.wire.all(name)

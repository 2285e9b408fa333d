"""`get`: which error ends it and when, what it leaves behind, and when it says that its task waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError, RaySystemError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.objects import getter as getter_module
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_submission.called_actor import Actor
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager, return_ids
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, object_manager_pb2
from ray_mono.rpc.reactor import Reactor

HERE, THERE = b"this node", b"another"
Found = object_manager_pb2.ObjectFound


class FakeStore:
    """A node's store in which some objects are, and to which others come when a Get waits for them."""

    def __init__(self, lock: Any) -> None:
        self.has: set[bytes] = set()
        self.lock = lock
        self.is_blocked = threading.Event()

    def here(self, object_id: bytes) -> None:
        return None

    def start_get(
        self, wanted: list[Any], timeout_ms: int, on_done: Callable[..., None], may_go_elsewhere: bool = False
    ) -> None:
        found = [
            Found(
                object_id=name,
                state=Found.NOT_HERE if timeout_ms == 0 and name not in self.has else Found.FOUND,
            )
            for name, _ in wanted
        ]
        if timeout_ms == 0:
            on_done(found, None)
        else:
            threading.Thread(target=self._answer, args=(on_done, found)).start()

    def _answer(self, on_done: Callable[..., None], found: list[Any]) -> None:
        self.is_blocked.wait(10)
        with self.lock:
            on_done(found, None)

    def view(self, found: Any) -> bytes:
        return serialization.serialize(found.object_id).to_bytes()


class Notices:
    """A raylet that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        for name in ("NotifyBlocked", "NotifyUnblocked"):
            setattr(self, name, SimpleNamespace(notify=lambda request, name=name: self.told.append(name)))


@pytest.fixture
def core() -> Iterator[Any]:
    reactor = Reactor("getter")
    core = SimpleNamespace(
        reactor=reactor,
        lock=reactor.lock,
        node_id=HERE,
        worker_id=b"me",
        memory_store=MemoryStore(),
        references={},
        store=FakeStore(reactor.lock),
        raylet=Notices(),
        ownership=SimpleNamespace(ask_owner=lambda object_id: None),
        drain=lambda: None,
        check_connected=lambda: None,
    )
    core.tasks = TaskManager(core)
    core.getter = Getter(core)
    core.getter.tells_raylet = True
    yield core
    reactor.close()


def fail(core: Any, object_id: bytes, error: BaseException) -> None:
    value = serialization.serialize_error(error)
    core.memory_store.put_inline(object_id, value.metadata, value.to_bytes())


def small(value: Any) -> tuple[bytes, bytes]:
    serialized = serialization.serialize(value)
    return serialized.metadata, serialized.to_bytes()


def expect(core: Any, *object_ids: bytes) -> None:
    for object_id in object_ids:
        core.memory_store.expect(object_id)


def while_it_waits(core: Any, then: Callable[[], None]) -> None:
    """Runs then() under the lock once a get waits."""

    def run() -> None:
        with core.lock:
            then()

    core.getter.before_blocking = lambda: threading.Thread(target=run).start()


def num_waiters(core: Any, *object_ids: bytes) -> int:
    return sum(len(core.memory_store.get(object_id).waiters or ()) for object_id in object_ids)


def test_an_error_that_comes_ends_the_get_although_others_never_come(core: Any) -> None:
    expect(core, b"never", b"fails")
    while_it_waits(core, lambda: fail(core, b"fails", KeyError("no")))
    with pytest.raises(KeyError, match="no"):
        core.getter.get_ids([b"never", b"fails"], None)
    assert not num_waiters(core, b"never")


def test_of_several_errors_that_are_there_the_first_in_order_is_raised(core: Any) -> None:
    expect(core, b"never", b"a", b"b")
    fail(core, b"b", KeyError("b"))
    fail(core, b"a", KeyError("a"))
    for order, first in ([b"never", b"a", b"b"], "a"), ([b"b", b"never", b"a"], "b"):
        with pytest.raises(KeyError, match=first):
            core.getter.get_ids(order, None)
    assert not num_waiters(core, b"never")


def test_an_error_far_behind_what_is_watched_ends_the_get(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getter_module, "WATCHED_MAX", 2)
    names = [b"%d" % number for number in range(7)]
    expect(core, *names)
    while_it_waits(core, lambda: fail(core, names[-1], KeyError("last")))
    with pytest.raises(KeyError, match="last"):
        core.getter.get_ids(names, None)
    assert not num_waiters(core, *names[:-1])


def test_errors_of_others_end_nothing(core: Any) -> None:
    expect(core, b"a", b"b", b"other")
    while_it_waits(core, lambda: fail(core, b"other", KeyError("not ours")))
    with pytest.raises(GetTimeoutError, match="2 of 2"):
        core.getter.get_ids([b"a", b"b"], 0.02)
    assert not num_waiters(core, b"a", b"b")


def test_a_task_that_reads_what_its_nodes_store_has_does_not_say_that_it_waits(core: Any) -> None:
    core.store.has = {b"large"}
    core.memory_store.put_in_store(b"large", [THERE, HERE], 1)
    assert core.getter.get_ids([b"large"], None) == [b"large"]
    assert core.raylet.told == []


@pytest.mark.parametrize("locations", [[THERE], [HERE]], ids=["elsewhere", "evicted here"])
def test_a_task_that_needs_a_copy_says_that_it_waits(core: Any, locations: list[bytes]) -> None:
    core.memory_store.put_in_store(b"large", locations, 1)
    core.getter.before_blocking = core.store.is_blocked.set
    assert core.getter.get_ids([b"large"], None) == [b"large"]
    assert core.raylet.told == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_store_whose_memory_cannot_be_opened_ends_the_get_and_keeps_no_pin(core: Any) -> None:
    released: list[bytes] = []

    def view(found: Any) -> bytes:
        raise RaySystemError("the memory of this node's object store cannot be opened")

    core.store.view, core.store.release = view, released.append
    core.store.has = {b"one", b"other"}
    for name in core.store.has:
        core.memory_store.put_in_store(name, [HERE], 1)
    with pytest.raises(RaySystemError, match="cannot be opened"):
        core.getter.get_ids([b"one", b"other"], None)
    assert released == [b"one", b"other"]


def test_a_task_that_asks_an_owner_for_what_is_there_does_not_say_that_it_waits(core: Any) -> None:
    def answer() -> None:
        with core.lock:
            core.memory_store.put_inline(b"its", *small(b"value"))

    expect(core, b"its")
    core.references[b"its"] = SimpleNamespace(owner=b"another worker")
    core.ownership.ask_owner = lambda object_id: threading.Thread(target=answer).start()
    assert core.getter.get_ids([b"its"], None) == [b"value"]
    assert core.raylet.told == []


@pytest.mark.parametrize("owner", [b"another worker", None])
def test_a_task_whose_value_is_not_made_yet_says_that_it_waits(core: Any, owner: bytes | None) -> None:
    expect(core, b"later")
    core.references[b"later"] = SimpleNamespace(owner=owner)
    while_it_waits(core, lambda: core.memory_store.put_inline(b"later", *small(b"value")))
    assert core.getter.get_ids([b"later"], None) == [b"value"]
    assert core.raylet.told == ["NotifyBlocked", "NotifyUnblocked"]


def test_a_get_that_ran_out_of_time_names_the_calls_that_are_not_over(core: Any) -> None:
    waiting = Actor(b"\xaa" * 16)
    waiting.pending_reason = "Actor Counter needs {CPU: 1}, which is in use"
    core.actor_submitter = SimpleNamespace(actor=lambda actor_id: waiting)
    specs = [
        common_pb2.TaskSpec(type=common_pb2.NORMAL_TASK, name=name, num_returns=2)
        for name in ("slow", "f", "g", "h")
    ]
    specs[1] = common_pb2.TaskSpec(type=common_pb2.ACTOR_TASK, name="add", num_returns=2)
    wanted: list[bytes] = [b"of another process, which nobody here knows"]
    specs[0].resources.amounts["CPU"] = 10_000
    core.task_submitter = SimpleNamespace(trouble_with=lambda task: f"cannot connect to {task.name}'s worker")
    for number, spec in enumerate(specs):
        task = PendingTask(bytes([number]) * 24, CallTemplate(spec, 0), b"", [], 0, [])
        task.place = number == 2
        core.tasks.add(task)
        wanted += return_ids(task.task_id, 2)
    expect(core, *wanted)
    core.memory_store.put_inline(wanted[-1], serialization.PLAIN, serialization.serialize(1).to_bytes())
    with pytest.raises(GetTimeoutError) as caught:
        core.getter.get_ids(wanted, 0.02)
    assert str(caught.value) == (
        "8 of 9 objects were not there after 0.02 s; not over: slow() (it waits for a worker, and needs {CPU: 1}),"
        " add() of actor aaaaaaaa (Actor Counter needs {CPU: 1}, which is in use), g() (cannot connect to g's worker), …"
    )

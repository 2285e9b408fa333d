"""Arguments by reference: a task goes on when all are there, or when one is an error, and once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker import serialization
from ray_mono.core_worker.memory_store import MemoryStore
from ray_mono.core_worker.task_manager import TaskManager
from ray_mono.protobuf import common_pb2


class Scene:
    """A task of ours with two arguments, and when it went on."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        asked = SimpleNamespace(ask_owner=lambda object_id: None, references_inside=lambda object_id: [])
        core: Any = SimpleNamespace(memory_store=self.store, ownership=asked)
        self.manager = TaskManager(core)
        self.args = [
            common_pb2.TaskArg(reference=common_pb2.ObjectReference(object_id=name), position=0)
            for name in (b"a", b"b")
        ]
        for name in (b"a", b"b"):
            self.store.expect(name)
        self.task: Any = SimpleNamespace(task_id=b"task", has_args=True, num_unresolved=0)
        self.task.request = SimpleNamespace(args=self.args)
        self.manager.pending[b"task"] = self.task
        self.went_on = 0

    def resolve(self) -> None:
        self.manager.resolve(self.task, lambda task: setattr(self, "went_on", self.went_on + 1))

    def put(self, name: bytes, value: Any) -> None:
        is_error = isinstance(value, Exception)
        made = (serialization.serialize_error if is_error else serialization.serialize)(value)
        self.store.put_inline(name, made.metadata, made.to_bytes())


def test_a_task_goes_on_when_all_its_arguments_are_there() -> None:
    scene = Scene()
    scene.resolve()
    scene.put(b"b", 2)
    assert not scene.went_on
    scene.put(b"a", 1)
    assert scene.went_on == 1 and [arg.WhichOneof("arg") for arg in scene.args] == ["value", "value"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_task_of_which_an_argument_failed_waits_for_no_other(is_there: bool) -> None:
    scene = Scene()
    if is_there:
        scene.put(b"b", KeyError())
    scene.resolve()
    if not is_there:
        scene.put(b"b", KeyError())
    assert scene.went_on == 1
    assert [arg.WhichOneof("arg") for arg in scene.args] == ["reference", "value"]
    scene.put(b"a", 1)
    assert scene.went_on == 1

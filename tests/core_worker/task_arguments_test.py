"""Arguments by reference: a task goes on when all are there, and fails as soon as one is an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RayError, RayTaskError, WorkerCrashedError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED, HOPS_MAX
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

TASK = bytes(24)
RETURN = TASK + (1).to_bytes(4, "little")


class Scene:
    """A task of ours with two arguments, and when it went on."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        asked = SimpleNamespace(ask_owner=lambda object_id: None, references_inside=lambda object_id: [])
        core: Any = SimpleNamespace(
            memory_store=self.store, ownership=asked, pid=7, node=SimpleNamespace(host="host")
        )
        core.references = {}
        self.manager = core.tasks = TaskManager(core)
        for name in (b"a", b"b"):
            self.store.expect(name)
        self.template = CallTemplate(common_pb2.TaskSpec(name="use", num_returns=1), 1)
        self.references = core.references
        self.task = self.make(TASK, b"a", b"b")
        self.args = self.task.request.args
        self.went_on = 0
        self.failed: list[PendingTask] = []

    def make(self, task_id: bytes, *names: bytes) -> PendingTask:
        args = [common_pb2.TaskArg(reference=common_pb2.ObjectReference(object_id=name)) for name in names]
        task = PendingTask(task_id, self.template, b"", args, 0, ())
        self.manager.add(task)
        for object_id in task.return_ids:
            self.references[object_id] = None
            self.store.expect(object_id)
        return task

    def resolve(self, task: PendingTask | None = None) -> None:
        def go_on(task: PendingTask) -> None:
            self.went_on += 1

        self.manager.resolve(task or self.task, go_on, lambda failed, error: self.failed.append(failed))

    def error(self, object_id: bytes = RETURN) -> Any:
        """What the object is, which is an error."""
        entry = self.store.get(object_id)
        assert entry is not None and entry.ready and entry.metadata == serialization.ERROR
        return serialization.deserialize(entry.metadata, entry.data)

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


class Careful(ValueError):
    """An exception of a user's, whose unpickling is user code."""

    unpickled = 0

    def __reduce__(self) -> Any:
        return _unpickle, ()


def _unpickle() -> Careful:
    Careful.unpickled += 1
    return Careful("of the user's")


@pytest.mark.parametrize("is_there", [True, False])
def test_a_task_of_which_an_argument_failed_fails_at_once_and_nobody_runs_it(is_there: bool) -> None:
    scene = Scene()
    error = RayTaskError("make", "its traceback", Careful("of the user's"), pid=3)
    made = serialization.serialize_error(error)
    Careful.unpickled = 0
    if is_there:
        scene.store.put_inline(b"b", made.metadata, made.to_bytes())
    scene.resolve()
    if not is_there:
        scene.store.put_inline(b"b", made.metadata, made.to_bytes())
    assert scene.failed == [scene.task] and not scene.went_on and not scene.manager.pending
    # Under our lock: the user's code has not run, and runs when somebody reads the error.
    assert Careful.unpickled == 0
    read = scene.error()
    assert isinstance(read, RayTaskError) and isinstance(read.as_instanceof_cause(), Careful)
    assert (read.function_name, read.pid) == ("use", 7)
    assert f"{ARGUMENT_FAILED}:\nray_mono::make() (pid=3)\nits traceback" in str(read)
    Careful.unpickled = 0
    scene.put(b"a", 1)
    assert len(scene.failed) == 1


def test_an_error_that_no_user_raised_is_the_cause() -> None:
    scene = Scene()
    scene.put(b"a", WorkerCrashedError("signal 9"))
    scene.resolve()
    assert isinstance(scene.error().cause, WorkerCrashedError) and "signal 9" in str(scene.error())


def test_an_error_that_cannot_be_handed_on_without_user_code_goes_to_the_executor() -> None:
    scene = Scene()
    scene.put(b"b", Careful())
    scene.resolve()
    assert scene.went_on == 1 and not scene.failed
    assert [arg.WhichOneof("arg") for arg in scene.args] == ["reference", "value"]
    scene.put(b"a", 1)
    assert scene.went_on == 1


def test_a_chain_of_many_fails_whole_and_tells_of_the_first_hops() -> None:
    scene = Scene()
    before, tasks = RETURN, []
    for number in range(1, 5001):
        tasks.append(scene.make(number.to_bytes(24, "little"), before))
        scene.resolve(tasks[-1])
        (before,) = tasks[-1].return_ids
    scene.put(b"a", RayTaskError("make", "its traceback", KeyError("lost")))
    scene.resolve()
    assert scene.failed == [scene.task, *tasks] and not scene.manager.pending
    last = scene.error(before)
    assert (
        isinstance(last, RayError)
        and str(last).count(ARGUMENT_FAILED) == HOPS_MAX
        and "its traceback" in str(last)
    )

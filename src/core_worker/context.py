"""What runs on this thread: the task that ids derive from and that `get_runtime_context()` tells of.

Every thread that user code runs on has a task: the main thread of a driver its root task, an executing thread the
task it executes; threads that user code starts get the process's main task. Counters of submissions and puts belong
to the task, so that running it again makes the same ids; threads of one task share them (under the core worker's lock).
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_mono.common import ids
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

if TYPE_CHECKING:
    from ray_mono.core_worker.task_execution.actor_runtime import ActorRuntime
    from ray_mono.core_worker.task_execution.call import Call
    from ray_mono.core_worker.task_execution.item_sender import ItemSender


@dataclass(slots=True)
class TaskContext:
    """One task that executes, or a driver's root."""

    task_id: bytes
    job_id: bytes
    name: str = ""
    depth: int = 0
    attempt: int = 0
    actor_id: bytes = b""
    # A ResourceSet or its message; empty for drivers.
    resources: Any = None
    resource_ids: dict[str, list[int]] = field(default_factory=dict)
    seed: int = 0
    num_submitted: int = 0
    num_puts: int = 0
    run_us: int = 0
    # Whoever asked for it does not want it any more.
    is_cancelled: bool = False
    # Foreign references that came in with the task's arguments and are not known to their owners yet.
    arrived: dict[bytes, bytes] = field(default_factory=dict)
    # Arguments by reference, counted as `submitted` until the reply.
    held: list[bytes] = field(default_factory=list)
    # Of a generator: what it has yielded, on its way.
    items: ItemSender | None = None
    # The actor whose method it is; else the FunctionDescriptor of what runs.
    actor: ActorRuntime | None = None
    function: Any = None
    # Of an actor's call, with options(name=...).
    given_name: str = ""

    @property
    def shown_name(self) -> str:
        """ "f", "Actor.method", or what it was named."""
        name = self.name if self.actor is None else f"{self.actor.class_name}.{self.name}"
        return self.given_name or name

    def next_task_id(self, actor_id: bytes) -> bytes:
        """Of the next task that this one submits. Lock held."""
        self.num_submitted += 1
        if not self.seed:
            self.seed = ids.task_seed(ids.of_attempt(self.task_id, self.attempt))
        return ids.child_task_id(self.seed, self.num_submitted, actor_id)

    def next_actor_id(self) -> bytes:
        self.num_submitted += 1
        parent = ids.of_attempt(self.task_id, self.attempt)
        return ids.ActorID.of(self.job_id, parent, self.num_submitted).binary()

    def next_put_id(self) -> bytes:
        self.num_puts += 1
        parent = ids.of_attempt(self.task_id, self.attempt)
        return ids.object_id_bytes(parent, ids.PUT_INDEX_BASE + self.num_puts)


_current: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar("ray_mono_task", default=None)


class WorkerContext:
    """The tasks of one process. Context variables, so that coroutines of an async actor have theirs."""

    def __init__(self, main: TaskContext) -> None:
        self.main = main

    def get(self) -> TaskContext:
        return _current.get() or self.main

    def enter(self, task: TaskContext) -> contextvars.Token[TaskContext | None]:
        return _current.set(task)

    def leave(self, token: contextvars.Token[TaskContext | None]) -> None:
        _current.reset(token)

    # ---- for the runtime context of the API

    def task_id(self) -> bytes:
        return self.get().task_id

    def task_name(self) -> str:
        return self.get().shown_name

    def function_name(self) -> str:
        """With its module: "module.f", "module.Actor.method"; as task_name where that is not known."""
        task = self.get()
        if task.actor is not None:
            return f"{task.actor.module_name}.{task.actor.class_name}.{task.name}"
        if task.function is None:
            return task.name
        python = task.function.python
        name = python.function_name.rpartition("<locals>.")[2]
        return ".".join(part for part in (python.module_name, python.class_name, name) if part)

    def actor_id(self) -> bytes:
        return self.get().actor_id

    def attempt(self) -> int:
        return self.get().attempt

    def assigned_resources(self) -> dict[str, float]:
        resources = self.get().resources
        if resources is None:
            return {}
        return (
            resources if isinstance(resources, ResourceSet) else ResourceSet.from_proto(resources)
        ).to_units()

    def resource_ids(self) -> dict[str, list[int]]:
        return self.get().resource_ids


def context_of(call: Call, actor: ActorRuntime | None) -> TaskContext:
    """Of a call that is about to run, in a worker that may hold an actor."""
    spec, own = call.spec, call.own
    # A call runs in the actor's job, whoever calls.
    job_id = spec.job_id if actor is None else actor.job_id
    task = TaskContext(
        task_id=own.task_id, job_id=job_id, name=spec.name, depth=own.depth, attempt=own.attempt
    )
    if spec.type == common_pb2.ACTOR_TASK:
        if actor is not None:
            task.actor_id = actor.actor_id
            task.resources = actor.resources
            task.resource_ids = actor.resource_ids
            task.actor = actor
            task.given_name = spec.task_name
        return task
    task.function = spec.function
    task.actor_id = spec.actor_creation.actor_id
    # Made into a ResourceSet by whoever asks.
    task.resources = spec.resources
    if call.request.resource_ids:
        task.resource_ids = resource_ids_of(call.request.resource_ids)
    return task


def resource_ids_of(message: Any) -> dict[str, list[int]]:
    """A Grant's or PushTaskRequest's resource_ids as plain lists."""
    return {name: list(message[name].ids) for name in sorted(message)}

"""What this process serves and what runs on this thread: the job, and the task that ids derive from and that
`get_runtime_context()` tells of.

Every thread that user code runs on has a task: the main thread of a driver its root task, an executing thread
the task it executes; threads that user code starts get the process's main task. Counters of submissions and
puts belong to the task, so that running it again makes the same ids; threads of one task share them (under
the core worker's lock).

A driver has its job from the beginning. A worker becomes its first task's job's (`WorkerContext.enter_job`),
and stays it.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_mono.common import ids
from ray_mono.common.scheduling.resources import ResourceSet


@dataclass(frozen=True)
class JobContext:
    """What a process knows of the job that it serves. A worker that serves none yet has the defaults."""

    job_id: bytes = b""
    namespace: str = ""
    outlives_job: bool = False
    """As in TaskSpec: of what runs here, and of what it submits."""
    default_actor_lifetime: str = ""
    runtime_env: str = "{}"
    """JSON: what the job, or what runs here, was given."""
    task_runtime_env: str = ""
    """The part of it that is not the job's; what is submitted here inherits it."""
    nil_actor: bytes = field(init=False, repr=False)
    """The actor's part of a normal task's id."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nil_actor", ids.nil_actor_of(self.job_id))


class ActorNames(Protocol):
    """An actor, as far as its tasks and errors name it."""

    name: str
    """That it was given; empty for none."""
    class_name: str
    module_name: str

    def repr_name(self) -> str: ...


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
    # How long the user's code ran on its thread, if it did.
    run_us: int = 0
    has_run: bool = False
    # Whoever asked for it does not want it any more.
    is_cancelled: bool = False
    # Foreign references that came in with the task's arguments and are not known to their owners yet.
    arrived: dict[bytes, bytes] = field(default_factory=dict)
    # Arguments by reference, counted as `submitted` until the reply.
    held: list[bytes] = field(default_factory=list)
    # The actor whose method it is; else the FunctionDescriptor of what runs.
    actor: ActorNames | None = None
    function: Any = None
    # Of an actor's call, with options(name=...).
    given_name: str = ""

    @property
    def shown_name(self) -> str:
        """ "f", "Actor.method", or what it was named."""
        name = self.name if self.actor is None else f"{self.actor.class_name}.{self.name}"
        return self.given_name or name

    def cancel(self) -> None:
        """Whoever asked for it does not want it any more. Lock held."""
        self.is_cancelled = True

    def ran(self, seconds: float) -> None:
        """The user's code is over."""
        self.run_us = int(seconds * 1e6)
        self.has_run = True

    def next_task_id(self, actor_id: bytes) -> bytes:
        """Of the next task that this one submits. Lock held."""
        self.num_submitted += 1
        if not self.seed:
            self.seed = ids.task_seed(ids.of_attempt(self.task_id, self.attempt))
        return ((self.seed + self.num_submitted * ids.SPREAD) & ids.SEED_MASK).to_bytes(
            8, "little"
        ) + actor_id

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
    """The job and the tasks of one process. Context variables, so that coroutines of an async actor have
    theirs."""

    def __init__(self, main: TaskContext, job: JobContext) -> None:
        self._main = main
        self.job = job
        """What it serves. Read by all, set by `enter_job`."""
        self._is_leaving = False

    @property
    def is_leaving(self) -> bool:
        """Whether this process is on its way out of the cluster: what fails now fails for that."""
        return self._is_leaving

    def leave_cluster(self) -> None:
        self._is_leaving = True

    def enter_job(self, job: JobContext, main: TaskContext) -> None:
        """A worker becomes the job's. main: the task of the threads that user code starts."""
        self.job = job
        self._main = main

    def get(self) -> TaskContext:
        return _current.get() or self._main

    def enter(self, task: TaskContext) -> contextvars.Token[TaskContext | None]:
        return _current.set(task)

    def leave(self, token: contextvars.Token[TaskContext | None]) -> None:
        _current.reset(token)

    # ---- for the runtime context of the API

    @property
    def is_main(self) -> bool:
        """Whether this thread runs no task of its own: a driver's, or one that user code started."""
        return self.get() is self._main

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

    def actor_name(self) -> str:
        """That it was given; empty for none, and outside of actors."""
        actor = self.get().actor
        return "" if actor is None else actor.name

    def attempt(self) -> int:
        return self.get().attempt

    def is_cancelled(self) -> bool:
        return self.get().is_cancelled

    def assigned_resources(self) -> dict[str, float]:
        resources = self.get().resources
        if resources is None:
            return {}
        return (
            resources if isinstance(resources, ResourceSet) else ResourceSet.from_proto(resources)
        ).to_units()

    def resource_ids(self) -> dict[str, list[int]]:
        return self.get().resource_ids

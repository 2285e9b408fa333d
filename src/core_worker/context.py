"""The job that this process serves, and the task that runs on this thread. Ids derive from the task, and
`get_runtime_context()` tells about both.

Every thread that runs user code has a task. A driver's main thread has the driver's root task, a thread that
executes a task has that task, and a thread that user code starts has the process's main task. Such a thread
is part of the actor that its worker holds, and shares the resources of the task that runs on the worker's
main thread, as in Ray. A task counts what it submits and puts, so that the same ids are made when it runs
again. Threads of one task share these counts, under the core worker's lock.

A driver has its job from the beginning. A worker gets the job of its first task (`WorkerContext.enter_job`),
and keeps it.
"""

from __future__ import annotations

import contextvars
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from ray_mono.common import ids
from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2


@dataclass(frozen=True)
class JobContext:
    """What a process knows of the job that it serves. A worker that serves none yet has the defaults, and
    perhaps the job's id."""

    job_id: bytes = b""
    namespace: str = ""
    outlives_job: bool = False
    """As in TaskSpec: whether what runs here, and what that submits, outlives the job."""
    default_actor_lifetime: str = ""
    runtime_env: str = "{}"
    """JSON: the runtime environment of the job, or of what runs here."""
    task_runtime_env: str = ""
    """JSON: the runtime environment that a worker's tasks have beside the job's. What they submit inherits
    it."""
    script: str = ""
    """The name of the driver's script, for people: the module of what it defines. Empty where it is a
    prompt."""
    config_json: str = field(default="{}", repr=False)
    """As in the job's row: what its workers set up."""
    nil_actor: bytes = field(init=False, repr=False)
    """The part of a normal task's id where an actor's call has the actor."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nil_actor", ids.nil_actor_of(self.job_id))


_TASK_ID = struct.Struct(f"<Q{ids.ActorID.SIZE}s")
"""Its own number, and its actor's id."""


class InGroup(NamedTuple):
    """The placement group that a task or an actor runs in."""

    group_id: bytes = b""
    """Empty for none."""
    captures: bool = False
    """What it submits runs there too, unless that says otherwise."""

    @classmethod
    def of(cls, strategy: common_pb2.SchedulingStrategy | None) -> InGroup:
        if strategy is None or not strategy.HasField("placement_group"):
            return IN_NONE
        group = strategy.placement_group
        return cls(group.placement_group_id, group.capture_child_tasks)


IN_NONE = InGroup()


class ActorNames(Protocol):
    """The names of an actor, for its tasks and errors."""

    name: str
    """The name that it was given; empty for none."""
    class_name: str
    module_name: str

    def repr_name(self) -> str: ...


@dataclass(slots=True)
class TaskKind:
    """What the calls share that come from one function at one depth, and run with the same resources; of a
    process's main task, what is constant of it. Nobody changes it."""

    job_id: bytes
    name: str = ""
    depth: int = 0
    actor_id: bytes = b""
    # A ResourceSet or its message; empty for drivers.
    resources: Any = None
    resource_ids: dict[str, list[int]] = field(default_factory=dict)
    # The actor whose method it is. Other tasks have `function`, a FunctionDescriptor, instead.
    actor: ActorNames | None = None
    function: Any = None
    # An actor's call has it, by options(name=...).
    given_name: str = ""
    # In which its actor runs it; empty: the default one.
    concurrency_group: str = ""
    group: InGroup = IN_NONE
    # Of a detached actor's tasks.
    is_detached: bool = False

    @property
    def shown_name(self) -> str:
        """ "f", "Actor.method", or the name that it was given; empty for a process's main task."""
        name = f"{self.actor.class_name}.{self.name}" if self.actor is not None and self.name else self.name
        return self.given_name or name


@dataclass(slots=True, eq=False)
class TaskContext:
    """An attempt of a task that executes, or a process's main task."""

    task_id: bytes
    kind: TaskKind
    attempt: int = 0
    seed: int = 0
    num_submitted: int = 0
    num_puts: int = 0
    # How long the user's code ran on its thread, if it did.
    run_us: int = 0
    has_run: bool = False
    # Whoever asked for it does not want it any more.
    is_cancelled: bool = False
    # References of others that came with the task's arguments, as object id → owner. These owners do not know
    # of this process yet.
    arrived: dict[bytes, bytes] | None = None
    # Arguments by reference, which are counted as `submitted` until the reply.
    held: list[bytes] | None = None

    def beside(self, task_id: bytes) -> TaskContext:
        """Of another call of the same, at its first attempt. Without __init__, which takes three times as
        long."""
        made = TaskContext.__new__(TaskContext)
        made.task_id, made.kind = task_id, self.kind
        made.attempt = made.seed = made.num_submitted = made.num_puts = made.run_us = 0
        made.has_run = made.is_cancelled = False
        made.arrived = made.held = None
        return made

    def arriving(self) -> dict[bytes, bytes]:
        """`arrived`, to be filled."""
        if self.arrived is None:
            self.arrived = {}
        return self.arrived

    def hold(self, object_id: bytes) -> bool:
        """An argument by reference is held until the reply. Returns whether it is new here."""
        if self.held is None:
            self.held = []
        is_new = object_id not in self.held
        if is_new:
            self.held.append(object_id)
        return is_new

    def cancel(self) -> None:
        """Whoever asked for the task does not want it any more. Lock held."""
        self.is_cancelled = True

    def ran(self, seconds: float) -> None:
        """The user's code is over; it took so many seconds."""
        self.run_us = int(seconds * 1e6)
        self.has_run = True

    def next_task_id(self, actor_id: bytes) -> bytes:
        """The id of the next task that this one submits. Lock held."""
        self.num_submitted += 1
        if not self.seed:
            self.seed = ids.task_seed(ids.of_attempt(self.task_id, self.attempt))
        return ((self.seed + self.num_submitted * ids.SPREAD) & ids.SEED_MASK).to_bytes(
            8, "little"
        ) + actor_id

    def next_task_ids(self, actor_id: bytes, count: int) -> list[bytes]:
        """Of as many. Lock held."""
        if not count:
            return []
        first = int.from_bytes(self.next_task_id(actor_id)[:8], "little")
        self.num_submitted += count - 1
        heads = range(first, first + count * ids.SPREAD, ids.SPREAD)
        return [_TASK_ID.pack(head & ids.SEED_MASK, actor_id) for head in heads]

    def next_actor_id(self) -> bytes:
        self.num_submitted += 1
        parent = ids.of_attempt(self.task_id, self.attempt)
        return ids.ActorID.of(self.kind.job_id, parent, self.num_submitted).binary()

    def next_put_id(self) -> bytes:
        self.num_puts += 1
        parent = ids.of_attempt(self.task_id, self.attempt)
        return ids.object_id_bytes(parent, ids.PUT_INDEX_BASE + self.num_puts)


class RunningTask(Protocol):
    """What runs in a worker, as far as its threads share it."""

    @property
    def task(self) -> TaskContext | None:
        """The main thread's."""
        ...


_current: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar("ray_mono_task", default=None)


class WorkerContext:
    """The job and the tasks of one process. The task is in a context variable, so that each coroutine of an
    async actor has its own."""

    def __init__(self, main: TaskContext, job: JobContext) -> None:
        self._main = main
        self.job = job
        """The job that it serves. Only `enter_job` sets it."""
        self._is_leaving = False
        self._running: RunningTask | None = None
        self._on_capture: Callable[[], None] | None = None
        # The context variable's own methods, so that each task enters two functions less.
        self.enter = _current.set
        self.leave = _current.reset

    @property
    def is_leaving(self) -> bool:
        """Whether this process is leaving its cluster. What fails now fails for that reason."""
        return self._is_leaving

    def leave_cluster(self) -> None:
        self._is_leaving = True

    def enter_job(self, job: JobContext, main: TaskContext) -> None:
        """A worker serves this job from now on. main: the task of the threads that user code starts."""
        self.job = job
        self._main = main

    def hold(self, actor: ActorNames, creation: TaskContext) -> None:
        """The worker makes this actor in the task `creation`. Threads that user code starts are the actor's.
        Lock held."""
        kind = replace(creation.kind, name="", actor=actor, function=None)
        self._main = TaskContext(creation.next_task_id(self.job.nil_actor), kind)

    def share(self, running: RunningTask) -> None:
        """Threads that user code starts have the resources of what runs there."""
        self._running = running

    def when_capturing(self, callback: Callable[[], None]) -> None:
        """callback() runs once: before the first task that hands down its placement group. Lock held."""
        self._on_capture = callback

    def has_capturing(self) -> None:
        """Such a task is about to run. Lock held."""
        callback, self._on_capture = self._on_capture, None
        if callback is not None:
            callback()

    def get(self) -> TaskContext:
        return _current.get() or self._main

    # ---- for the runtime context of the API

    @property
    def is_main(self) -> bool:
        """Whether this thread runs no task of its own: a driver's, or one that user code started."""
        return self.get() is self._main

    @property
    def threads_task_id(self) -> bytes:
        """Of the main task: what threads run that user code starts."""
        return self._main.task_id

    def task_id(self) -> bytes:
        return self.get().task_id

    def task_name(self) -> str:
        return self.get().kind.shown_name

    def function_name(self) -> str:
        """ "module.f" or "module.Actor.method"; the task's name alone where the function is not known."""
        kind = self.get().kind
        if kind.actor is not None and kind.name:
            return f"{kind.actor.module_name}.{kind.actor.class_name}.{kind.name}"
        if kind.function is None:
            return kind.name
        python = kind.function.python
        name = python.function_name.rpartition("<locals>.")[2]
        return ".".join(part for part in (python.module_name, python.class_name, name) if part)

    def actor_id(self) -> bytes:
        return self.get().kind.actor_id

    def actor_name(self) -> str:
        """The name that the actor was given. Empty for none, and outside of actors."""
        actor = self.get().kind.actor
        return "" if actor is None else actor.name

    def attempt(self) -> int:
        return self.get().attempt

    def is_cancelled(self) -> bool:
        return self.get().is_cancelled

    def _kind_with_resources(self) -> TaskKind:
        task = self.get()
        shared = self._running.task if task is self._main and self._running is not None else None
        return (shared or task).kind

    def assigned_resources(self) -> dict[str, float]:
        resources = self._kind_with_resources().resources
        if resources is None:
            return {}
        if not isinstance(resources, ResourceSet):
            resources = ResourceSet.from_proto(resources)
        return bundle_resources.plain(resources).to_units()

    def placement_group(self) -> InGroup:
        return self.get().kind.group

    def detached_actor_id(self) -> bytes:
        """The actor that asks, if it is a detached one; else empty."""
        kind = self.get().kind
        return kind.actor_id if kind.is_detached else b""

    def resource_ids(self) -> dict[str, list[int]]:
        return self._kind_with_resources().resource_ids

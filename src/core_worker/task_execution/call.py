"""One call as an executor has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, final

from ray_mono.core_worker.context import IN_NONE, ActorNames, InGroup, TaskContext, TaskKind
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.reactor_server import ServerCall

Reply = core_worker_pb2.PushTaskReply


class KnownSpec:
    """A TaskSpec. What calls read of it is read from the message once: a message's field takes several times
    as long as an attribute. (So does any attribute of a class that has a `__getattr__`.)"""

    __slots__ = (
        "actor_creation",
        "actor_id",
        "actor_task",
        "caller",
        "concurrency_group",
        "function",
        "function_hash",
        "group",
        "hides_events",
        "is_short",
        "job_id",
        "like",
        "max_calls",
        "message",
        "name",
        "num_returns",
        "resources",
        "task_name",
        "type",
    )

    def __init__(self, message: common_pb2.TaskSpec) -> None:
        self.message = message
        self.caller = message.caller
        self.actor_creation = message.actor_creation
        self.actor_task = message.actor_task
        self.type = message.type
        self.name = message.name
        self.job_id = message.job_id
        self.num_returns = message.num_returns
        self.max_calls = message.max_calls
        self.hides_events = message.hides_events
        self.resources = message.resources
        self.function = message.function
        self.function_hash = message.function.python.function_hash
        # The actor that it creates.
        self.actor_id = message.actor_creation.actor_id
        # Of an actor's call, with options(name=...).
        self.task_name = message.actor_task.task_name
        self.concurrency_group = message.actor_task.concurrency_group
        self.group = InGroup.of(message.strategy) if message.HasField("strategy") else IN_NONE
        # Whether its last call here ran short. False before the first, which may take any time.
        self.is_short = False
        # The context of one of its calls, if that came as a usual push.
        self.like: TaskContext | None = None

    def ran(self, is_short: bool) -> None:
        """A call of it is over."""
        self.is_short = is_short


class Items(Protocol):
    """What a call that is a generator has yielded, on its way (item_sender.py)."""

    def when_settled(self, then: Any) -> None: ...

    def flush(self) -> None: ...


class Extras:
    """What a push may bring besides its task's id, depth and arguments in one pickle."""

    __slots__ = ("args", "attempt", "resource_ids", "waits_for_room")

    def __init__(
        self,
        args: Sequence[Any] = (),
        attempt: int = 0,
        resource_ids: Mapping[str, Any] | None = None,
        waits_for_room: bool = False,
    ) -> None:
        """As the fields of these names in a PushTaskRequest."""
        self.args = args
        self.attempt = attempt
        self.resource_ids = resource_ids
        self.waits_for_room = waits_for_room


NO_EXTRAS = Extras()
"""Those of a usual push (task_wire.py)."""


@final
class Call:
    """One PushTask: what is constant of it, what is its own, and where the answer goes."""

    __slots__ = (
        "answer_to",
        "depth",
        "extras",
        "flat_args",
        "is_followed",
        "items",
        "number",
        "spec",
        "task_id",
    )

    def __init__(
        self,
        spec: KnownSpec,
        task_id: bytes,
        depth: int,
        flat_args: bytes,
        extras: Extras,
        answer_to: ServerCall,
        number: int = 0,
    ) -> None:
        """number: of a normal task, see common/start_board.py."""
        self.spec = spec
        self.task_id = task_id
        self.depth = depth
        self.flat_args = flat_args
        self.extras = extras
        self.answer_to = answer_to
        self.number = number
        self.items: Items | None = None
        # For a call that runs beside others: whether answers of others are about to follow its own.
        self.is_followed: Callable[[], bool] | None = None

    @staticmethod
    def usual(
        spec: KnownSpec, task_id: bytes, depth: int, flat_args: bytes, answer_to: ServerCall, number: int
    ) -> Call:
        """Of a usual push. Without __init__, which takes half as long again."""
        made = Call.__new__(Call)
        made.spec, made.task_id, made.depth, made.flat_args = spec, task_id, depth, flat_args
        made.extras, made.answer_to, made.number = NO_EXTRAS, answer_to, number
        made.items = made.is_followed = None
        return made

    def followed_if(self, is_followed: Callable[[], bool]) -> None:
        self.is_followed = is_followed

    def sends(self, items: Items | None) -> None:
        """It is a generator whose items go ahead of its answer; None: they have."""
        self.items = items


def call_of(spec: KnownSpec, request: Any, answer_to: ServerCall, number: int) -> Call:
    """Of a push that came as its message."""
    # It is a whole specification, or what a template left out.
    message = request if request.template_id else spec.message
    extras = Extras(message.args, message.attempt, request.resource_ids, request.waits_for_room)
    return Call(spec, message.task_id, message.depth, message.flat_args, extras, answer_to, number)


class RunningActor(ActorNames, Protocol):
    """The actor of a worker, as far as its calls know it."""

    actor_id: bytes
    job_id: bytes
    resources: Any
    resource_ids: dict[str, list[int]]
    group: InGroup
    is_detached: bool
    owner: common_pb2.Address
    """The process that created it."""

    def concurrency_group_of(self, spec: KnownSpec) -> str: ...
    def coroutine_of(self, task: TaskContext) -> tuple[asyncio.Task[None], int] | None: ...
    def num_beside_calls(self) -> int: ...


def context_of(call: Call, actor: RunningActor | None) -> TaskContext:
    """Of a call that is about to run, in a worker that may hold an actor."""
    if call.extras is not NO_EXTRAS:
        return _new_context_of(call, actor)
    # Nothing but its id is the call's own.
    spec = call.spec
    like = spec.like
    if like is None or like.kind.depth != call.depth or like.kind.actor is not actor:
        like = spec.like = _new_context_of(call, actor)
    return like.beside(call.task_id)


def _new_context_of(call: Call, actor: RunningActor | None) -> TaskContext:
    spec, extras = call.spec, call.extras
    # A call runs in the actor's job, whoever calls.
    job_id = spec.job_id if actor is None else actor.job_id
    if spec.type != common_pb2.ACTOR_TASK:
        kind = TaskKind(
            job_id,
            spec.name,
            call.depth,
            spec.actor_id,
            spec.resources,  # made into a ResourceSet by whoever asks
            resource_ids_of(extras.resource_ids) if extras.resource_ids else {},
            function=spec.function,
            group=spec.group,
            is_detached=spec.actor_creation.is_detached,
        )
    elif actor is None:
        kind = TaskKind(job_id, spec.name, call.depth)
    else:
        kind = TaskKind(
            job_id,
            spec.name,
            call.depth,
            actor.actor_id,
            actor.resources,
            actor.resource_ids,
            actor,
            given_name=spec.task_name,
            concurrency_group=actor.concurrency_group_of(spec),
            group=actor.group,
            is_detached=actor.is_detached,
        )
    return TaskContext(call.task_id, kind, extras.attempt)


def resource_ids_of(message: Any) -> dict[str, list[int]]:
    """A Grant's or PushTaskRequest's resource_ids as plain lists."""
    return {name: list(message[name].ids) for name in sorted(message)}

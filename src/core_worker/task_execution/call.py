"""One call as an executor has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono.protobuf import core_worker_pb2

if TYPE_CHECKING:
    from ray_mono.rpc.reactor_server import ServerCall

Reply = core_worker_pb2.PushTaskReply


class KnownSpec:
    """A TaskSpec. What every call reads of it is read from the message once: a message's field takes several times as long as an
    attribute."""

    __slots__ = (
        "hides_events",
        "is_short",
        "job_id",
        "max_calls",
        "message",
        "name",
        "num_returns",
        "task_name",
        "type",
    )

    def __init__(self, message: Any) -> None:
        self.message = message
        self.type: int = message.type
        self.name: str = message.name
        self.job_id: bytes = message.job_id
        self.num_returns: int = message.num_returns
        self.max_calls: int = message.max_calls
        self.hides_events: bool = message.hides_events
        # Of an actor's call, with options(name=...).
        self.task_name: str = message.actor_task.task_name
        # Whether its last call here was. A first one may do anything.
        self.is_short = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.message, name)


class Call:
    """One PushTask: what is constant of it, what is its own, and where the answer goes."""

    __slots__ = ("number", "own", "request", "spec", "to")

    def __init__(self, spec: Any, request: Any, to: ServerCall) -> None:
        self.spec = spec
        self.request = request
        # Holds task_id, flat_args, args, attempt, depth: a whole specification, or what a template left out.
        self.own = request if request.template_id else spec
        self.to = to
        # Of a normal task: see common/start_board.py.
        self.number = 0

"""One call as an executor has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray_mono.protobuf import core_worker_pb2

if TYPE_CHECKING:
    from ray_mono.rpc.reactor_server import ServerCall

Reply = core_worker_pb2.PushTaskReply


class Call:
    """One PushTask: what is constant of it, what is its own, and where the answer goes."""

    __slots__ = ("own", "request", "spec", "to")

    def __init__(self, spec: Any, request: Any, to: ServerCall) -> None:
        self.spec = spec
        self.request = request
        # Holds task_id, flat_args, args, attempt, depth: a whole specification, or what a template left out.
        self.own = request if request.template_id else spec
        self.to = to

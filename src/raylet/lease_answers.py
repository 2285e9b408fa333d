"""Calls that wait for the answer to a lease request, by lease id."""

from __future__ import annotations

import asyncio

from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.effects import Rejected, RejectionKind
from ray_mono.raylet.wire import refusal_reply
from ray_mono.rpc.surface import RpcError

Answer = asyncio.Future[raylet_pb2.RequestWorkerLeaseReply]


class LeaseAnswers:
    """At most one waiting call for each lease: a repeated request takes over from the one before it."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Answer] = {}

    def expect(self, lease_id: bytes) -> Answer:
        """The answer to come."""
        if lease_id in self._waiting:
            replaced = Rejected(lease_id, RejectionKind.CANCELLED, "the same lease was requested again")
            self.answer(lease_id, refusal_reply(replaced))
        answer: Answer = asyncio.get_running_loop().create_future()
        self._waiting[lease_id] = answer
        return answer

    def answer(self, lease_id: bytes, reply: raylet_pb2.RequestWorkerLeaseReply) -> None:
        """Nothing where nobody waits: the call was cancelled."""
        answer = self._waiting.pop(lease_id, None)
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def forget(self, lease_id: bytes, answer: Answer) -> bool:
        """The call ended. Whether it was still the one that waits for this lease."""
        if self._waiting.get(lease_id) is not answer:
            return False
        del self._waiting[lease_id]
        return True

    def fail_all(self, error: RpcError) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(error)

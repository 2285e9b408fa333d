"""Whether an actor that was lost can still be reached. The GCS says so when its process has died, and cannot
know that only a connection broke. Then a caller comes back to the process that lives.

    the actor cannot be reached ──probe_s──► its process is asked ──no answer──► asked again
                                  ├── the connection brings answers still ──► calls go to it as before
                                  └── it broke ──► its calls that have not begun never do (TakeBackCalls)

Whatever the GCS says of it meanwhile ends this. Lock held; never blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.peers import Peer, PeerPool
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.surface import RpcError

Reached = Callable[[CalledActor, common_pb2.Address, Peer | None, bytes], None]


class ActorProbes:
    """Of the actors that this process calls."""

    def __init__(self, env: Environment, peers: PeerPool, reached: Reached) -> None:
        """reached(actor, worker, left, task id): it lives. left: the connection where that did not break;
        else the call of this id, if any, and those that were sent after it have not begun there, and will
        not."""
        self._env = env
        self._peers = peers
        self._reached = reached

    def later(self, actor: CalledActor, worker: common_pb2.Address, left: Peer | None = None) -> None:
        """Its process is asked in a while. left: a connection that did not break."""
        self._env.reactor.call_later(self._env.config.probe_s, partial(self._probe, actor, worker, left))

    def _probe(self, actor: CalledActor, worker: common_pb2.Address, left: Peer | None) -> None:
        if not actor.is_unreachable or self._env.reactor.is_closed:
            return
        left = None if left is None or left.is_closed else left

        def answered(reply: Any, error: RpcError | None) -> None:
            if not actor.is_unreachable:
                return
            if error is not None or (left is not None and left.is_closed):
                self.later(actor, worker, left)
            else:
                self._reached(actor, worker, left, b"" if left is not None else reply.first_task_id)

        stub = self._peers.stub_for(worker)
        if left is not None:
            stub.CheckAlive.start(common_pb2.Empty(), answered)
        else:
            request = core_worker_pb2.TakeBackCallsRequest(caller_worker_id=self._env.worker_id)
            stub.TakeBackCalls.start(request, answered)

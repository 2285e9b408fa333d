"""Calls of an actor that its process had answered when it died, and whose answers had not left: they are on
the process's start board, which its raylet reads (kept_answers.py). A caller asks for them before it takes
what has no answer for lost.

    the GCS says that the process is gone ──► its connection ends here: what is under way has come
                                          ──► its node's raylet is asked ──► the answers, or none

If one of these takes too long, the calls are lost: the node may be gone, or stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray_mono.common.start_board import cell_of
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.peers import Peer, PeerPool
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError

Then = Callable[[raylet_pb2.LastAnswersReply | None], None]


class LastAnswers:
    """Asks for them. Lock held."""

    def __init__(self, env: Environment, peers: PeerPool) -> None:
        self._env = env
        self._peers = peers

    def ask(self, worker: common_pb2.Address, peer: Peer, then: Then) -> None:
        """Of this process, to which `peer` was the connection. then(reply) runs once; None: there are none,
        or nobody said so in time."""
        is_over = False

        def once(reply: raylet_pb2.LastAnswersReply | None) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                timer.cancel()
                then(reply)

        timer = self._env.reactor.call_later(self._env.config.last_answers_s, lambda: once(None))
        peer.channel.on_close(lambda reason: None if is_over else self._ask_raylet(worker, once))

    def are_all(self, reply: raylet_pb2.LastAnswersReply) -> bool:
        """Whether no answer of the process to this one is lost."""
        return reply.is_known and cell_of(self._env.worker_id) not in reply.lost_callers

    def _ask_raylet(self, worker: common_pb2.Address, then: Then) -> None:
        request = raylet_pb2.LastAnswersRequest(worker_id=worker.worker_id)

        def answered(reply: Any, error: RpcError | None) -> None:
            then(reply if error is None else None)

        if worker.node_id == self._env.node_id:
            self._env.raylet.LastAnswers.start(request, answered)
            return

        def nodes_known(nodes: Any, error: RpcError | None) -> None:
            address = "" if error is not None else _raylet_of(worker.node_id, nodes.nodes)
            if address:
                self._peers.raylet_at(address).LastAnswers.start(request, answered)
            else:
                then(None)

        self._env.gcs.GetAllNodes.start(common_pb2.Empty(), nodes_known)


def beside_items(
    peer: Peer, waiting: Mapping[bytes, PendingTask], answers: Iterable[raylet_pb2.LastAnswer]
) -> list[tuple[PendingTask, bytes]]:
    """Takes those of these answers that are items of generators; some of them have come before. Returns the
    others, with their tasks. waiting: what has no answer of `peer`, a dead process."""
    found = [(waiting[each.task_id], each.reply) for each in answers if each.task_id in waiting]
    others = []
    for task, reply in found:
        if task.template.on_part is None:
            others.append((task, reply))
        else:
            task.template.on_part(peer, task.task_id, core_worker_pb2.PushTaskReply.FromString(reply))
    return others


def _raylet_of(node_id: bytes, nodes: Any) -> str:
    """Its address; empty where it is not among the living."""
    for node in nodes:
        if node.node_id == node_id and node.state == common_pb2.NODE_ALIVE:
            return f"{node.host}:{node.node_manager_port}"
    return ""

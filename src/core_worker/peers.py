"""The other core workers and raylets that this process talks to. Each has one connection. It is opened when
it is first needed, and again if it was lost and is needed once more.

A connection may end, and the process at its other end live: who decides by its life makes the call by
`insist`. Such calls may be made twice.

A machine that is cut off, or stands still, ends no connection. So those to a node that the cluster holds to
be dead are closed here. Until then who cannot be reached may live, and `insist` waits for him, unless he is
missing at the head as well (missing_peers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ray_mono.common.world import Clock
from ray_mono.core_worker.call_template import CallTemplate, OnPart
from ray_mono.core_worker.environment import ReactorInterface
from ray_mono.core_worker.missing_peers import MissingPeers
from ray_mono.core_worker.task_wire import shared_push
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceStub
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.protobuf.raylet_rpc import RayletServiceStub
from ray_mono.rpc.reactor_channel import ReactorChannel, ReactorMethod
from ray_mono.rpc.surface import OutOfReach, RpcError, StatusCode

PUSH_TASK = "/ray_mono.rpc.CoreWorkerService/PushTask"

PUSH_TASKS = "/ray_mono.rpc.CoreWorkerService/PushTasks"

NODE_DIED = "the cluster holds its node to be dead"
LOST_MAX = 50
"""How many connections in a row one call may lose to a process that lives. Hundreds of calls share one, and
all of them are made again at once."""
IN_A_ROW_S = 10.0
"""One that lasted longer begins a new row."""
UNREACHED_PAUSE_S = 1.0
"""Before a machine of which nothing was heard is tried again."""
DEAD_NODES_MAX = 1000
"""The last ones are remembered, as by their raylet (raylet/dead_nodes.py)."""

OnReply = Callable[[bytes, RpcError | None], None]
"""Takes a PushTaskReply's bytes, which mean nothing where there is an error."""
OnAnswer = Callable[[Any, RpcError | None], None]
Connect = Callable[[str], ReactorChannel]


class Peer:
    """Another core worker, as this one calls it: one connection, and what it has carried already, that is,
    templates of calls, and keys of functions that every worker runs."""

    __slots__ = (
        "_carried",
        "_num_told",
        "_push",
        "_push_all",
        "_worker_runs",
        "channel",
        "stub",
        "worker_id",
    )

    def __init__(self, channel: ReactorChannel, worker_id: bytes, worker_runs: Sequence[bytes]) -> None:
        """worker_runs: keys of functions that a worker runs before the tasks pushed after them. The list only
        grows (worker_runs.py)."""
        self.channel = channel
        self.stub = CoreWorkerServiceStub(channel)
        # It takes and gives bytes: the usual push and its answer are written and read by hand (task_wire.py).
        self._push: ReactorMethod[bytes, bytes] = channel.unary_unary(PUSH_TASK, bytes, bytes)
        self._push_all: ReactorMethod[bytes, bytes] = channel.unary_unary(PUSH_TASKS, bytes, bytes)
        self.worker_id = worker_id
        self._carried: set[int] = set()
        self._worker_runs = worker_runs
        self._num_told = 0

    def knows(self, template: CallTemplate) -> bool:
        """Whether the peer was sent all that it has to know before a task with this template."""
        return template.number in self._carried and self._num_told == len(self._worker_runs)

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended: nothing reaches it any more."""
        return self.channel.is_closed

    def push(self, template: CallTemplate, payload: bytes, on_done: OnReply) -> bool:
        """Sends PushTask if the peer knows the template, which must not be a generator's. Returns whether it
        was sent. Lock held.

        payload: a PushTaskRequest. on_done takes the bytes of a PushTaskReply.
        """
        if template.number in self._carried and self._num_told == len(self._worker_runs):
            self._push.start(payload, on_done)
            return True
        return False

    def push_all(
        self,
        template: CallTemplate,
        depth: int,
        task_ids: Sequence[bytes],
        items: list[Any],
        on_done: OnReply,
        on_part: Callable[[bytes], None],
    ) -> None:
        """PushTasks, of a template that the peer knows; items: the one argument of each. on_done and on_part
        take a PushTasksReply's bytes. Lock held."""
        self._push_all.start(shared_push(template.number, depth, task_ids, items), on_done, on_part)

    def push_request(self, template: CallTemplate, request: Any, on_done: OnReply) -> None:
        """Sends PushTask with any template. If the peer does not know the template, it goes along. Lock
        held."""
        on_part = (
            None if template.on_part is None else partial(self._on_part, template.on_part, request.task_id)
        )
        if self.knows(template):
            self._push.start(request.SerializeToString(), on_done, on_part)
            return
        self._carried.add(template.number)
        request.spec.CopyFrom(template.spec)
        request.intended_worker_id = self.worker_id
        request.run_first.extend(self._worker_runs[self._num_told :])
        self._num_told = len(self._worker_runs)
        self._push.start(request.SerializeToString(), on_done, on_part)
        request.ClearField("spec")
        request.ClearField("intended_worker_id")
        request.ClearField("run_first")

    def _on_part(self, on_part: OnPart, task_id: bytes, part: bytes) -> None:
        on_part(self, task_id, core_worker_pb2.PushTaskReply.FromString(part))

    def forget(self, ended: set[int]) -> None:
        """These templates are gone here. Lock held."""
        numbers = self._carried & ended
        if numbers:
            self._carried -= numbers
            request = core_worker_pb2.ForgetTemplatesRequest(template_ids=numbers)
            self.stub.ForgetTemplates.notify(request)


class PeerPool:
    """The peers of one process. Lock held."""

    def __init__(
        self,
        connect: Connect,
        node_id: bytes,
        worker_runs: Sequence[bytes],
        raylet: RayletServiceStub,
        gcs: GcsServiceStub,
        clock: Clock,
        reactor: ReactorInterface,
    ) -> None:
        """connect(address) opens a channel. node_id: this node's; peers on it are reached by their Unix
        sockets. raylet: this node's, which knows what nodes are dead."""
        self._missing = MissingPeers(gcs, clock)
        self._connect = connect
        self._clock = clock
        self._reactor = reactor
        self._node_id = node_id
        self._worker_runs = worker_runs
        self._watch_dead_nodes = raylet.WatchDeadNodes
        self._watches_nodes = False
        self._peers: dict[bytes, Peer] = {}
        # The peers on other nodes, by node.
        self._far: dict[bytes, dict[bytes, None]] = {}
        self._raylets: dict[str, tuple[ReactorChannel, RayletServiceStub]] = {}
        self._dead_nodes: dict[bytes, None] = {}
        self._is_closed = False

    def peer(self, address: common_pb2.Address) -> Peer:
        """Another core worker."""
        worker_id = address.worker_id
        peer = self._peers.get(worker_id)
        if peer is None or peer.is_closed:
            is_near = address.node_id == self._node_id and address.unix_path
            target = f"unix:{address.unix_path}" if is_near else f"{address.host}:{address.port}"
            peer = Peer(self._connect(target), worker_id, self._worker_runs)
            if not peer.is_closed:
                node_id = address.node_id
                self._peers[worker_id] = peer
                peer.channel.on_close(partial(self._forget_peer, node_id, peer))
                if node_id != self._node_id:
                    self._far.setdefault(node_id, {})[worker_id] = None
                    self._look_after_nodes()
        return peer

    def _forget_peer(self, node_id: bytes, peer: Peer, reason: str) -> None:
        worker_id = peer.worker_id
        if self._peers.get(worker_id) is not peer:
            return  # there is another connection by now
        del self._peers[worker_id]
        there = self._far.get(node_id)
        if there is not None:
            there.pop(worker_id, None)
            if not there:
                del self._far[node_id]

    def _look_after_nodes(self) -> None:
        if not self._watches_nodes:
            self._watches_nodes = True
            self._watch_dead_nodes.start(common_pb2.Empty(), self._node_died, lambda error: None)

    def _node_died(self, dead: Any) -> None:
        """No answer from there is waited for any more."""
        self._dead_nodes[dead.node_id] = None
        if len(self._dead_nodes) > DEAD_NODES_MAX:
            del self._dead_nodes[next(iter(self._dead_nodes))]
        for worker_id in list(self._far.get(dead.node_id, ())):
            self._peers[worker_id].channel.close(NODE_DIED)
        known = self._raylets.get(f"{dead.host}:{dead.port}")
        if known is not None:
            known[0].close(NODE_DIED)

    def stub_for(self, address: common_pb2.Address) -> CoreWorkerServiceStub:
        return self.peer(address).stub

    def stub_of(self, address: bytes) -> CoreWorkerServiceStub:
        """As stub_for, for a serialized address. The addresses of owners are serialized."""
        return self.peer(common_pb2.Address.FromString(address)).stub

    def insist(
        self,
        address: common_pb2.Address,
        call: Callable[[CoreWorkerServiceStub, OnAnswer], None],
        then: OnAnswer,
        num_lost: int = 0,
    ) -> None:
        """call(stub, on_done) makes a call to this process, which may be made twice: again if its connection
        ends and the process lives. then(reply, None), or then(None, error) if it is gone, or the call
        fails. num_lost: how many connections it has lost in a row."""
        begun_s = self._clock.time_s()

        def answered(reply: Any, error: RpcError | None) -> None:
            nonlocal num_lost
            if self._clock.time_s() - begun_s > IN_A_ROW_S:
                num_lost = 0
            if error is None or not self._may_live(address, error):
                then(reply, error)
            else:
                self._probe(
                    address, num_lost, lambda lives, lost: again(lost) if lives else then(None, error)
                )

        def again(lost: int) -> None:
            self.insist(address, call, then, lost)

        call(self.stub_for(address), answered)

    def _probe(self, address: common_pb2.Address, num_lost: int, then: Callable[[bool, int], None]) -> None:
        """A connection to this process ended. then(whether it lives, how many it has lost in a row)."""
        begun_s = self._clock.time_s()

        def answered(reply: Any, error: RpcError | None) -> None:
            # Who cannot be reached for so long is not asked again.
            is_late = self._clock.time_s() - begun_s >= IN_A_ROW_S
            if error is None:
                then(not self._is_closed, num_lost + 1)
            elif not self._may_live(address, error):
                then(False, num_lost)
            elif isinstance(error, OutOfReach) and not self._missing.is_gone(address.worker_id):
                # Nobody says that it is gone, until its node is held to be dead or can be reached.
                self._reactor.call_later(UNREACHED_PAUSE_S, lambda: self._probe(address, num_lost, then))
            elif is_late or isinstance(error, OutOfReach):
                then(False, num_lost)
            else:
                self._probe(address, num_lost + 1, then)

        if num_lost == LOST_MAX:
            then(False, num_lost)
        else:
            self.stub_for(address).CheckAlive.start(common_pb2.Empty(), answered)

    def _may_live(self, address: common_pb2.Address, error: RpcError) -> bool:
        is_dead = error.message == NODE_DIED or address.node_id in self._dead_nodes
        return error.code is StatusCode.UNAVAILABLE and not is_dead and not self._is_closed

    def raylet_at(self, target: str) -> RayletServiceStub:
        """Another node's raylet."""
        known = self._raylets.get(target)
        if known is None:
            channel = self._connect(target)
            known = self._raylets[target] = channel, RayletServiceStub(channel)
            channel.on_close(lambda reason: self._forget_raylet(target))
            self._look_after_nodes()
        return known[1]

    def target_of(self, raylet: RayletServiceStub) -> str:
        """The address of another node's raylet; empty where that is not known any more."""
        return next((target for target, (_, stub) in self._raylets.items() if stub is raylet), "")

    def _forget_raylet(self, target: str) -> None:
        self._raylets.pop(target, None)

    def forget_templates(self, ended: set[int]) -> None:
        """These templates of calls are gone here. Has the peers forget them."""
        for peer in list(self._peers.values()):
            peer.forget(ended)

    def close(self, reason: str) -> None:
        self._is_closed = True
        channels = [peer.channel for peer in self._peers.values()]
        channels += [channel for channel, _ in self._raylets.values()]
        for channel in channels:
            channel.close(reason)

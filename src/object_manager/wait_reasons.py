"""Why an object is not written or read on this node: the store's link of the chains that
docs/internals/explain.md tells of. It only looks.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray_mono.common.explanation import WaitCode
from ray_mono.common.ids import object_name
from ray_mono.common.store_messages import remedy
from ray_mono.common.wait_messages import NODES_TOLD_MAX, reason_of
from ray_mono.object_manager.create_requests import CreateRequests
from ray_mono.object_manager.get_requests import GetRequests
from ray_mono.object_manager.keys import TRANSFERS, ClientKey, NodeKey, ObjectKey, WorkerKey
from ray_mono.object_manager.pull_manager import Pull, PullState
from ray_mono.object_manager.pulls import Pulls
from ray_mono.object_manager.store import Store
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject

HOLDERS_TOLD_MAX = 4
"""Of one store's memory, those with most of it first."""


class WaitReasons:
    """Of one store."""

    def __init__(
        self, node_id: NodeKey, store: Store, creates: CreateRequests, gets: GetRequests, pulls: Pulls
    ) -> None:
        self._node_id = node_id
        self._node = f"node {node_id.hex()[:8]}"
        self._store = store
        self._creates = creates
        self._gets = gets
        self._pulls = pulls
        # Whose connection it is, of those that live.
        self._workers: dict[ClientKey, WorkerKey] = {}

    def joined(self, client: ClientKey, worker: WorkerKey) -> None:
        """A connection has said whose it is."""
        self._workers[client] = worker

    def left(self, client: ClientKey) -> None:
        self._workers.pop(client, None)

    def of(self, object_id: ObjectKey) -> common_pb2.WaitReason:
        """What becomes of the object here. Those it waits for have no address but their ids."""
        name = object_name(object_id)
        store = self._store
        create = self._creates.waiting(object_id)
        if create is not None:
            what = f"the {create.size_bytes} bytes of {name}"
            if not self._creates.are_stuck:
                return reason_of(WaitCode.STARTING, f"{self._node} makes room for {what}")
            first = f" ({create.num_before} before it)" if create.num_before else ""
            return self._full(f"{what}{first}", create.client)
        if store.is_readable(object_id):
            return reason_of(WaitCode.READY, f"{self._node} has {name}")
        if store.is_spilled(object_id):
            return reason_of(WaitCode.READY, f"{self._node} has {name} on disk")
        if store.is_made_here(object_id):
            return reason_of(WaitCode.STARTING, f"{name} is being written on {self._node}")
        pull = self._pulls.of(object_id)
        if pull is not None:
            return self._of_pull(pull, name)
        wanted = self._gets.wanted(object_id)
        if wanted is None:
            return reason_of(WaitCode.STARTING, f"{self._node} has no copy of {name}, and is asked for none")
        there = "".join(f" of node {node.hex()[:8]}" for node in wanted.locations[:1])
        # While creates wait nobody else gets room.
        if self._gets.waits_for_room(object_id) or (self._creates and self._creates.are_stuck):
            return self._full(f"a copy of {name}{there}, which has {wanted.size_bytes} bytes", None)
        return reason_of(WaitCode.STARTING, f"{self._node} is about to copy {name}{there}")

    # ---- copies

    def _of_pull(self, pull: Pull, name: str) -> common_pb2.WaitReason:
        object_id = pull.object_id
        if pull.state is PullState.NO_MEMORY:
            return self._full(f"a copy of {name}, which has {pull.needed_bytes} bytes", None)
        if pull.current is None:
            text = f"{self._node} copies {self._pulls.num_active} objects, and {name} is behind these"
            return reason_of(WaitCode.TRANSFER, text)
        arrival = self._pulls.arriving(object_id)
        num_bytes = 0 if arrival is None else arrival.received_bytes
        size_bytes = self._store.size_of(object_id) if self._store.contains(object_id) else 0
        share = f"{num_bytes} of {size_bytes} bytes" if size_bytes else f"{num_bytes} bytes"
        holder = f"node {pull.current.hex()[:8]}"
        failed = "".join(f"; node {node.hex()[:8]}: {why}" for node, why in pull.failures.items())
        text = f"{name} is on its way from {holder} to {self._node}, which has {share} so far{failed}"
        at = common_pb2.Address(node_id=pull.current)
        return reason_of(
            WaitCode.TRANSFER,
            text,
            [Subject(kind=Subject.STORE, id=object_id, name=name, at=at)],
            unblock=f"look at {holder}, or end it: then the object is made again if it can be",
        )

    # ---- room

    def _full(self, what: str, client: ClientKey | None) -> common_pb2.WaitReason:
        """client: who waits for room, and so is not told of as a holder."""
        memory = self._store.describe_memory()
        waits = self._workers.get(client) if client is not None else None
        holders = [(held, worker, how) for held, worker, how in self._holders() if worker != waits]
        told = "".join(
            f"; process {worker.hex()[:8]} {how} {held} bytes"
            for held, worker, how in holders[:HOLDERS_TOLD_MAX]
        )
        return reason_of(
            WaitCode.STORE_FULL,
            f"the object store of {self._node} has no room for {what}: {memory}{told}",
            [Subject(kind=Subject.WORKER, id=worker) for _, worker, _ in holders[:NODES_TOLD_MAX]],
            is_any=True,
            num_others=len(holders) - NODES_TOLD_MAX,
            unblock=remedy(memory),
        )

    def _holders(self) -> list[tuple[int, WorkerKey, str]]:
        """(bytes, whose process, how it holds them), the most first."""
        owned: dict[WorkerKey, int] = {}
        for row in self._store.objects():
            if row.is_primary and row.has_memory:
                owned[row.owner] = owned.get(row.owner, 0) + row.size_bytes
        holders = [(held, worker, "owns") for worker, held in owned.items()]
        holders += [(held, worker, "reads") for worker, held in self._read()]
        return sorted(holders, reverse=True)

    def _read(self) -> Iterator[tuple[WorkerKey, int]]:
        """Copies that readers hold: primary ones stay without them."""
        for client, held in self._store.read_bytes().items():
            worker = self._workers.get(client)
            if worker is not None and client != TRANSFERS:
                yield worker, held

"""A head whose store is lost with it, and what those who outlive it tell the next."""

from __future__ import annotations

from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from tests.gcs.scene import (
    JOB,
    OWNER,
    FakeNode,
    FakeWorker,
    GcsScene,
    actor_id,
    registration,
    until_state,
)

BEFORE = b"the cluster before"
EMPTY = common_pb2.Empty()
GRACE_S = 10.0
Gcs = gcs_rpc.GcsServiceAsyncStub


def owner_row(node: FakeNode) -> common_pb2.WorkerInfo:
    return common_pb2.WorkerInfo(
        worker_id=OWNER.binary(),
        node_id=node.node_id,
        type=common_pb2.DRIVER,
        job_id=JOB.binary(),
        is_alive=True,
    )


def worker_row(worker: FakeWorker) -> common_pb2.WorkerInfo:
    return common_pb2.WorkerInfo(worker_id=worker.worker_id, node_id=worker.node.node_id, is_alive=True)


def told_by_node(
    *workers: common_pb2.WorkerInfo,
    others: tuple[FakeNode, ...] = (),
    last_job: int = 1,
    known_cluster_ids: tuple[bytes, ...] = (BEFORE,),
) -> gcs_pb2.RegisterNodeRequest:
    return gcs_pb2.RegisterNodeRequest(
        known_cluster_ids=known_cluster_ids,
        workers=workers,
        other_nodes=[
            common_pb2.NodeInfo(
                node_id=other.info.node_id,
                host=other.info.host,
                node_manager_port=other.info.node_manager_port,
                total=other.info.total,
            )
            for other in others
        ],
        last_job_number=last_job,
    )


def job_row(node: FakeNode | None) -> common_pb2.JobInfo:
    """As the driver tells it, or without a node as a worker does."""
    row = common_pb2.JobInfo(job_id=JOB.binary(), namespace="space", config_json="{}")
    if node is not None:
        row.driver.CopyFrom(common_pb2.Address(worker_id=OWNER.binary(), node_id=node.node_id))
    return row


def actor_row(
    told: gcs_pb2.RegisterActorRequest,
    state: common_pb2.ActorState,
    worker: FakeWorker | None = None,
    num_restarts: int = 0,
    grant: bytes = b"",
) -> common_pb2.ActorInfo:
    return common_pb2.ActorInfo(
        creation_spec=told.creation_spec,
        class_name=told.class_name,
        state=state,
        address=worker.address if worker else None,
        num_restarts=num_restarts,
        creation_grant=grant,
        pid=7,
    )


async def tell(
    gcs: Gcs,
    who: bytes,
    *actors: common_pb2.ActorInfo,
    job: common_pb2.JobInfo | None = None,
    owned: tuple[bytes, ...] = (actor_id(1), actor_id(2)),
) -> None:
    await gcs.Adopt(gcs_pb2.AdoptRequest(worker_id=who, job=job, actors=actors, owned_actor_ids=owned))


async def named(gcs: Gcs, name: str) -> common_pb2.ActorInfo:
    return await gcs.GetNamedActor(gcs_pb2.GetNamedActorRequest(name=name, namespace="space"))


class Lost:
    """One node with an actor that lives; then the head ends, and another one knows nothing."""

    gcs: Gcs
    node: FakeNode
    worker: FakeWorker
    info: common_pb2.ActorInfo
    """The actor as it was."""

    def __init__(self, scene: GcsScene) -> None:
        self.scene = scene

    async def play(self, **options: object) -> None:
        scene = self.scene
        gcs = await scene.start_gcs()
        self.node = await scene.add_node({"CPU": 4})
        told = self.told = registration(1, owner_node_id=self.node.node_id, **options)  # type: ignore[arg-type]
        await gcs.RegisterActor(told)
        self.info = await until_state(gcs, common_pb2.ALIVE)
        self.worker = self.node.workers[self.info.address.worker_id]
        scene.kill_gcs()
        scene.lose_storage()
        self.gcs = await scene.start_gcs()

    async def node_joins(
        self,
        *workers: common_pb2.WorkerInfo,
        others: tuple[FakeNode, ...] = (),
        known_cluster_ids: tuple[bytes, ...] = (BEFORE,),
    ) -> list[bytes]:
        lease = {self.node.leases[0].lease_id: self.worker.worker_id}
        told = told_by_node(*workers, others=others, known_cluster_ids=known_cluster_ids)
        return await self.node.process.spawn(self.node.join(lease, told))

    async def all_tell(self, *known_cluster_ids: bytes) -> None:
        """The node, its driver, which owns the actor, and the actor's worker."""
        rows = owner_row(self.node), worker_row(self.worker)
        await self.node_joins(*rows, known_cluster_ids=known_cluster_ids or (BEFORE,))
        await tell(self.gcs, self.worker.worker_id, self.row(), job=job_row(None))
        await tell(self.gcs, OWNER.binary(), job=job_row(self.node))

    def row(self) -> common_pb2.ActorInfo:
        return actor_row(self.told, common_pb2.ALIVE, self.worker)


async def owner_tells(it: Lost) -> tuple[FakeNode, gcs_pb2.RegisterActorRequest]:
    """The owner of an actor, on a node that names the other one, knows of no worker of it."""
    first = FakeNode(it.scene, it.scene.world.network.add_host("first").name, {"CPU": 1})
    await first.process.spawn(first.start())
    await first.process.spawn(first.join({}, told_by_node(owner_row(first), others=(it.node,))))
    told = registration(1, owner_node_id=first.node_id)
    await tell(it.gcs, OWNER.binary(), actor_row(told, common_pb2.PENDING_CREATION), job=job_row(first))
    return first, told


async def its_node_tells(it: Lost, told: gcs_pb2.RegisterActorRequest) -> None:
    """That has it."""
    await it.node_joins(worker_row(it.worker))
    await tell(it.gcs, it.worker.worker_id, actor_row(told, common_pb2.ALIVE, it.worker), job=job_row(None))

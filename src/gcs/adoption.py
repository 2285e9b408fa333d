"""What a head on an empty store is told again by those who outlived the head before it.

A head whose store was lost (memory storage, or one started by hand) is a new cluster to itself: it draws a
new id. Raylets, workers and drivers see by that id that it knows nothing of them, and tell:

    a raylet            its workers and drivers, its actors' leases, other nodes, the dead as well, and the
                        last job's number
    every process       code that it exported; its job; the actor that it holds; actors that it owns; and of
                        which of these it has yet to tell that no handle is left

    EMPTY ──a node of an earlier head──► HEARING ──all have told, or adoption_grace_s──► OVER
      │                                                │                                 │  ▲ the same
      └──a job begins──► OVER           a late node of that cluster, or a process, tells ▼  │
                                                                                         LATE

- Meanwhile nothing is disowned or placed, no job begins, and what is not known is not refused: such
  questions wait (`heard`). In EMPTY they wait for the first node, first_node_wait_s at most. A new node ends
  that: this is a new cluster. In LATE they wait as well, and what was known before goes on.
- A node that another one knows to be dead is refused. Where only an actor's owner has heard of its death, it
  is taken back.
- Of two that tell of an actor, the later incarnation is right, and of one incarnation its worker. A node that
  was taken back may run an earlier one: that ends before the actor is placed.
- An actor whose owner has told, and did not name it, has no handle: the head before was told so.
- What nobody told of is gone when hearing is over: a worker, owner or driver that its node did not name
  counts as dead; a lease that no actor has is freed; an actor without a worker is placed. A node that others
  named and that has not come yet counts as alive, with all that is on it, for node_return_timeout_s. An actor
  without a worker may have one there: it is placed when the node has told, or can run it no more. A job's
  driver may be there: the job runs on.
- A head that ends before it has heard all leaves half of it in the store, and who told it would not tell the
  next. So the store says that the hearing is not over: the next head drops what is told, draws a new id once
  more, and adopts nodes of either earlier one. In LATE it says which nodes: the next head goes on with them,
  and with whom and what they had told of. And it says which actors wait for a node that has not come. Who was
  silent for longer than the grace tells the next head where it has told none.
- So may heads do whose stores are all lost: a node may have told one of them, and another node none. So each
  node says all heads that it knew, and whoever knew one of those that are adopted is adopted.
- The numbers of new jobs begin above all that any node has heard of. So a node of an earlier head is not
  adopted once a job has begun without it: its jobs and the new ones could have the same numbers. Its actors
  are unwanted.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable, Sequence

from ray_mono.common.ids import ActorID, JobID, NodeID, WorkerID
from ray_mono.common.our_bug import check
from ray_mono.gcs.actor.actor_state import Actor
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.storage.table_storage import Table, Tables
from ray_mono.protobuf import common_pb2, gcs_pb2

logger = logging.getLogger(__name__)

LOOK_PERIOD_S = 0.05
SUSPECT_PERIOD_S = 0.5
CLUSTER_ID_KEY = b"cluster_id"
HEARING_KEY = b"hearing"
"""In the store until a job has begun, or what the head before knew was heard."""
EARLIER_CLUSTER_KEY = b"earlier_cluster/"
"""Followed by the id of a head whose nodes are adopted."""
LATE_NODE_KEY = b"late_node/"
"""Followed by the id of a node that came late, until what it and its processes tell was judged."""
UNPLACED_ACTOR_KEY = b"unplaced_actor/"
"""Followed by the id of an actor that a node which has yet to come may have a worker of."""
TOLD_AGAIN = (Table.NODE, Table.JOB, Table.ACTOR, Table.WORKER)


class AdoptionState(enum.Enum):
    EMPTY = "empty"
    HEARING = "hearing"
    OVER = "over"
    LATE = "late"


_MOVES = {
    (AdoptionState.EMPTY, AdoptionState.HEARING),
    (AdoptionState.EMPTY, AdoptionState.OVER),
    (AdoptionState.HEARING, AdoptionState.OVER),
    (AdoptionState.OVER, AdoptionState.LATE),
    (AdoptionState.LATE, AdoptionState.OVER),
}


class Adoption:
    """Of one GCS."""

    def __init__(
        self, environment: Environment, cluster: Cluster, own_cluster_id: Callable[[], bytes]
    ) -> None:
        self._environment = environment
        self._writes = environment.writes
        self._own_cluster_id = own_cluster_id
        self._config = environment.config
        self._cluster = cluster
        self._nodes = cluster.nodes
        self._workers = cluster.workers
        self._known_jobs = cluster.jobs
        self._known_actors = cluster.actors
        self._code = cluster.kv
        self._groups = cluster.groups
        self._scheduler = cluster.scheduler
        self._state = AdoptionState.EMPTY
        # Set when a question that cannot be answered need not wait any more.
        self._heard = asyncio.Event()
        # Of the heads whose nodes are adopted.
        self._earlier: set[bytes] = set()
        # Who has yet to tell: processes that their raylets named. And who may have to, but is not waited for:
        # those whom the head before knew.
        self._awaited: set[WorkerID] = set()
        self._silent: set[WorkerID] = set()
        # What was told and not judged yet: actors with their workers, and jobs.
        self._actors: dict[ActorID, WorkerID | None] = {}
        self._jobs: set[JobID] = set()
        # Of these actors, those of which nothing was known here before; and what each owner named.
        self._adopted: set[ActorID] = set()
        self._owned: dict[WorkerID, set[ActorID]] = {}
        # Of them, those that wait for a node which may have a worker of it.
        self._unplaced: set[ActorID] = set()
        self._leases: dict[bytes, tuple[NodeID, WorkerID]] = {}
        # The nodes whose leases these are.
        self._hearing: set[NodeID] = set()
        # The nodes that may have a worker of an actor which nobody has told with one.
        self._suspects: set[NodeID] = set()
        # Who is silent for longer is not waited for.
        self._grace_end_s = 0.0

    # ---- its life

    def begin(self, tables: Tables) -> None:
        """What was in the store. Rows that are told again go from there, and from here."""
        meta = tables[Table.META]
        self._earlier = set(_after(EARLIER_CLUSTER_KEY, meta))
        if CLUSTER_ID_KEY in meta and HEARING_KEY not in meta:
            self._move(AdoptionState.OVER)
            self._heard.set()
            self._unplaced = {ActorID(actor_id) for actor_id in _after(UNPLACED_ACTOR_KEY, meta)}
            self._hearing = {NodeID(node_id) for node_id in _after(LATE_NODE_KEY, meta)}
            if self._hearing:
                self._hear_late()
            return
        if CLUSTER_ID_KEY in meta and self._earlier:
            self._adopts([meta.pop(CLUSTER_ID_KEY)])
            for table in TOLD_AGAIN:
                for key in tables[table]:
                    self._writes.delete(table, key)
                tables[table] = {}
        self._writes.put(Table.META, HEARING_KEY, b"1")
        self._environment.tasks.spawn(self._await_first_node(), "await the first node")

    def judges(self, actor: Actor) -> bool:
        """Whether this actor of the store's waits for what late and missing nodes tell."""
        nodes = {actor.node_id, actor.registration.owner_node_id, actor.lost_on}
        return actor.actor_id in self._unplaced or not self._hearing.isdisjoint(nodes)

    def _adopts(self, cluster_ids: Sequence[bytes]) -> None:
        for cluster_id in cluster_ids:
            self._earlier.add(cluster_id)
            self._writes.put(Table.META, EARLIER_CLUSTER_KEY + cluster_id, b"1")

    async def heard(self) -> None:
        """Returns when whoever could know of what this head does not know has told."""
        await self._heard.wait()

    def job_begins(self) -> None:
        if self._state is AdoptionState.EMPTY:
            self._move(AdoptionState.OVER)
            self._writes.delete(Table.META, HEARING_KEY)

    async def _await_first_node(self) -> None:
        await asyncio.sleep(self._config.first_node_wait_s)
        if self._state is not AdoptionState.HEARING:
            self._heard.set()

    def _move(self, state: AdoptionState) -> None:
        """The one place where the state changes. Raises InternalError."""
        check((self._state, state) in _MOVES, f"adoption is {self._state.value}, and cannot be {state.value}")
        self._state = state

    # ---- who tells

    def node_joins(self, request: gcs_pb2.RegisterNodeRequest) -> bool:
        """It was registered. Returns whether its actors' leases are judged later.

        Raises ValueError naming what is malformed.
        """
        # Also where the store has lost rows, and this head does not know that.
        self._known_jobs.heard_of(request.last_job_number)
        known = list(request.known_cluster_ids)
        if known[:1] == [self._own_cluster_id()]:
            known = []  # what it knew before that was told
        if self._state is AdoptionState.EMPTY:
            if not known:
                self._heard.set()
            else:
                self._adopts(known)
                self._move(AdoptionState.HEARING)
                self._heard.clear()
                self._environment.tasks.spawn(self._hear(), "hear what was known")
        elif self._state is AdoptionState.HEARING and not self._earlier.isdisjoint(known):
            self._adopts(known)
        node_id = NodeID(request.node.node_id)
        if known and known[0] in self._earlier:
            self._node_tells(node_id, request)
            self._groups.adopt(node_id, request.bundles)
        if node_id not in self._hearing:
            return False
        # Also where it registers again meanwhile: it knows this head by then.
        for lease in request.actor_leases:
            self._leases[lease.lease_id] = node_id, WorkerID(lease.worker_id)
        return True

    def _node_tells(self, node_id: NodeID, request: gcs_pb2.RegisterNodeRequest) -> None:
        logger.info("node %s tells what the head before knew of it", node_id.hex())
        self._hearing.add(node_id)
        for worker in request.workers:
            self._awaited.add(WorkerID(worker.worker_id))
            self._cluster.add_worker(worker)
            if worker.type == common_pb2.DRIVER and worker.job_id:
                address = common_pb2.Address(node_id=worker.node_id, worker_id=worker.worker_id)
                address.MergeFrom(worker.address)
                self._adopt_job(
                    common_pb2.JobInfo(job_id=worker.job_id, driver=address, driver_pid=worker.pid)
                )
        self._cluster.adopt_others(request.other_nodes, request.node.head_lease_s, request.last_job_number)
        for actor in self._known_actors.all():
            if actor.lost_on == node_id and actor.is_waiting_for_place and actor.worker_id is None:
                # The head before held this node to be dead. It runs the actor until its lease is freed.
                self._scheduler.stop(actor.actor_id)
                self._actors[actor.actor_id] = None
        if self._state in (AdoptionState.OVER, AdoptionState.LATE):
            self._writes.put(Table.META, LATE_NODE_KEY + node_id.binary(), b"1")
            self._hear_late()

    def told(self, request: gcs_pb2.AdoptRequest) -> None:
        """By a worker or driver. Raises ValueError naming what is malformed."""
        worker_id = WorkerID(request.worker_id)
        if worker_id not in self._awaited and worker_id not in self._silent:
            return
        self._awaited.discard(worker_id)
        self._silent.discard(worker_id)
        if request.HasField("job"):
            self._adopt_job(request.job)
        self._owned[worker_id] = {ActorID(actor_id) for actor_id in request.owned_actor_ids}
        for info in request.actors:
            actor_id = ActorID(info.creation_spec.actor_creation.actor_id)
            if self._known_actors.get(actor_id) is None:
                self._adopted.add(actor_id)
            if self._cluster.adopt_actor(info):
                has_worker = bool(info.address.worker_id)
                self._actors[actor_id] = WorkerID(info.address.worker_id) if has_worker else None
        if self._state is AdoptionState.OVER:
            self._hear_late()

    def _adopt_job(self, job: common_pb2.JobInfo) -> None:
        if self._cluster.adopt_job(job):
            self._jobs.add(JobID(job.job_id))

    # ---- the end

    async def _hear(self) -> None:
        self._give_grace()
        await self._until_all_told()
        self._move(AdoptionState.OVER)
        self._judge()
        self._writes.delete(Table.META, HEARING_KEY)
        self._heard.set()
        await self.give_up_missing_nodes()

    def resume(self) -> None:
        """The rows of an earlier GCS are there: of nodes that told it late, and were not judged, who has yet
        to tell, and what was told. And the nodes are there for which actors wait."""
        late = self._hearing
        self._awaited = {
            WorkerID(row.worker_id) for node_id in late for row in self._workers.of_node(node_id)
        }
        if self._earlier:
            # Whoever was stopped for longer than the grace has told nobody yet.
            self._silent = {WorkerID(row.worker_id) for row in self._workers.rows() if row.is_alive}
        self._actors = {
            actor.actor_id: actor.worker_id for actor in self._known_actors.all() if self.judges(actor)
        }
        node_ids = {node_id.binary() for node_id in late}
        self._jobs = {JobID(row.job_id) for row in self._known_jobs.rows() if row.driver.node_id in node_ids}
        if self._unplaced:
            lingering = {NodeID(row.node_id) for row in self._nodes.dead() if row.may_linger}
            self._suspect(lingering.union(self._nodes.unregistered()))

    def _hear_late(self) -> None:
        self._give_grace()
        self._heard.clear()
        if self._state is AdoptionState.OVER:
            self._move(AdoptionState.LATE)
            self._environment.tasks.spawn(self._hear_late_nodes(), "hear late nodes")

    async def _hear_late_nodes(self) -> None:
        await self._until_all_told()
        self._move(AdoptionState.OVER)
        for node_id in sorted(self._hearing):
            self._writes.delete(Table.META, LATE_NODE_KEY + node_id.binary())
        self._judge()
        self._heard.set()
        await self.give_up_missing_nodes()

    async def give_up_missing_nodes(self) -> None:
        """Each has the same time, from when it was named."""
        missing = self._nodes.unregistered()
        await asyncio.sleep(self._config.node_return_timeout_s)
        self._cluster.give_up_nodes(missing)
        if self._state is AdoptionState.OVER:
            self._groups.judge()

    def _give_grace(self) -> None:
        self._grace_end_s = self._environment.clock.time_s() + self._config.adoption_grace_s

    async def _until_all_told(self) -> None:
        while self._environment.clock.time_s() < self._grace_end_s and self._is_waiting():
            await asyncio.sleep(LOOK_PERIOD_S)

    def _is_waiting(self) -> bool:
        if self._nodes.unregistered() and self._state is AdoptionState.HEARING:
            return True
        return any(self._workers.is_living(worker_id) for worker_id in self._awaited)

    def _judge(self) -> None:
        """What was told, and is on nodes that have come."""
        cluster = self._cluster
        logger.info("heard of %d actors and %d jobs", len(self._actors), len(self._jobs))
        missing = self._suspects.union(self._nodes.unregistered())
        unplaced = {actor_id for actor_id, worker in self._actors.items() if worker is None and missing}
        self._leave_unplaced(unplaced)
        for actor_id, worker in sorted(self._actors.items(), key=lambda told: told[0]):
            if actor_id not in unplaced:
                has_handles = self._has_handles(actor_id) or self._depends_on_missing_node(actor_id)
                cluster.judge_adopted_actor(actor_id, worker, has_handles)
        self._actors = {
            actor_id: worker
            for actor_id, worker in self._actors.items()
            if actor_id in unplaced or self._depends_on_missing_node(actor_id)
        }
        if unplaced:
            self._suspect(missing)
        # Of a job that only its workers have told, the driver may be on a node that has yet to come.
        undecided = self._known_jobs.without_driver() if self._nodes.unregistered() else ()
        for job_id in sorted(self._jobs.difference(undecided)):
            cluster.judge_adopted_job(job_id)
        self._jobs = {job_id for job_id in self._jobs if self._known_jobs.is_running(job_id)}
        for lease_id, (node_id, worker_id) in self._leases.items():
            cluster.free_unwanted_lease(node_id, lease_id, worker_id)
        self._leases = {}
        self._groups.judge()
        self._hearing.clear()
        if not self._nodes.unregistered():
            self._owned, self._adopted = {}, set()
        for job_id in self._code.jobs_with_code():
            if not self._known_jobs.is_known(job_id):
                self._code.delete_code(job_id)

    def _depends_on_missing_node(self, actor_id: ActorID) -> bool:
        """Whether a node that has yet to come decides over the actor."""
        actor = self._known_actors.get(actor_id)
        if actor is None or actor.death is not None:
            return False
        nodes = (actor.node_id, actor.registration.owner_node_id)
        return any(node is not None and self._nodes.is_awaited(node) for node in nodes)

    def _leave_unplaced(self, actor_ids: set[ActorID]) -> None:
        for actor_id in sorted(actor_ids - self._unplaced):
            self._writes.put(Table.META, UNPLACED_ACTOR_KEY + actor_id.binary(), b"1")
        for actor_id in sorted(self._unplaced - actor_ids):
            self._writes.delete(Table.META, UNPLACED_ACTOR_KEY + actor_id.binary())
        self._unplaced = actor_ids

    def _suspect(self, node_ids: set[NodeID]) -> None:
        if not self._suspects:
            self._environment.tasks.spawn(self._await_suspects(), "await missing nodes")
        self._suspects |= node_ids

    async def _await_suspects(self) -> None:
        """Then all actors are judged."""
        clock, fences = self._environment.clock, self._cluster.fences
        while self._suspects:
            await asyncio.sleep(SUSPECT_PERIOD_S)
            if self._state is AdoptionState.OVER:
                self._suspects = {
                    node_id
                    for node_id in self._suspects
                    if self._nodes.is_awaited(node_id) or fences.left_s(node_id, clock.time_s())
                }
        self._judge()

    def _has_handles(self, actor_id: ActorID) -> bool:
        """As far as it is known. Of one that was registered here its owner may have told before that."""
        actor = self._known_actors.get(actor_id)
        if actor is None or actor_id not in self._adopted:
            return True
        owned = self._owned.get(actor.registration.owner_worker_id)
        return owned is None or actor_id in owned


def _after(prefix: bytes, rows: Iterable[bytes]) -> list[bytes]:
    """What follows it in the keys of these rows that begin with it."""
    return [key.removeprefix(prefix) for key in rows if key.startswith(prefix)]

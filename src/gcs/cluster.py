"""What happens in the cluster, and what it means for each table.

A node's death, for example, ends workers, jobs and actors. Each manager decides over its own rows. This class
hands an event to those it concerns, writes the rows that changed, and publishes them once they are durable.
The servicers and the health checks call it. It never waits, and knows nothing of calls and connections.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, WorkerID
from ray_mono.common.our_bug import known
from ray_mono.gcs.actor.actor_effect_runner import ActorEffectRunner
from ray_mono.gcs.actor.actor_effects import Effect
from ray_mono.gcs.actor.actor_ender import ActorEnder
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_registrar import ActorRegistrar
from ray_mono.gcs.actor.actor_rows import adopted_row, death_from_proto
from ray_mono.gcs.actor.actor_scheduler import ActorScheduler
from ray_mono.gcs.actor.actor_state import Actor, ActorLife, ActorRegistration, Death, DeathKind
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.answers import Answers
from ray_mono.gcs.driver_warnings import DriverWarnings
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.job_manager import JobManager
from ray_mono.gcs.kv import KeyValueStore
from ray_mono.gcs.lease_client import LeaseClient
from ray_mono.gcs.node_drains import NodeDrains
from ray_mono.gcs.node_fences import NodeFences
from ray_mono.gcs.node_health import NodeHealth
from ray_mono.gcs.node_manager import NodeManager, raylet_address
from ray_mono.gcs.old_rows import OldRows
from ray_mono.gcs.placement_group.placement_groups import PlacementGroups
from ray_mono.gcs.pubsub.collections import Collections
from ray_mono.gcs.pubsub.paced_news import ClusterNews
from ray_mono.gcs.pubsub.subscriptions import Subscriptions
from ray_mono.gcs.storage.table_storage import Table, Tables
from ray_mono.gcs.task_event_log import TaskEventLog
from ray_mono.gcs.worker_manager import WorkerManager
from ray_mono.protobuf import common_pb2, gcs_pb2

logger = logging.getLogger(__name__)

NEXT_JOB_NUMBER_KEY = b"next_job_number"


class Cluster:
    """The tables together."""

    def __init__(self, environment: Environment) -> None:
        config = environment.config
        self._writes = environment.writes
        self._raylets = environment.raylets
        self._clock = environment.clock
        self.nodes = NodeManager(config.dead_nodes_max, config.health_check_failures_max)
        self.jobs = JobManager(config.finished_jobs_max)
        self.workers = WorkerManager(config.dead_workers_max)
        self.actors = ActorManager(config.dead_actors_max)
        self.kv = KeyValueStore(environment.writes, config.kv_bytes_max)
        self.answers = Answers(environment.writes, config.answering_callers_max, config.kept_answers_max)
        self.subscriptions = Subscriptions(config.subscriber_queue_max)
        self._news = ClusterNews(environment.tasks, self.subscriptions)
        self.actor_table = table = ActorTable(environment.writes, self._publish_actor)
        self.fences = NodeFences(config.fence_margin_s)
        self.health = NodeHealth(
            environment, self.nodes, self.fences, self._on_health_failed, self._on_node_ended
        )
        self.leases = LeaseClient(environment, self.nodes, self._on_room)
        self.collections = Collections(self.subscriptions)
        ender = ActorEnder(environment, self.nodes, self.collections.last_words, self._on_actor_left)
        self.scheduler = ActorScheduler(
            environment,
            self.actors,
            self.actor_table,
            self.nodes,
            self.fences,
            self.leases,
            ender,
            self._run,
            self.warn_drivers,
        )
        gone, warn = self._on_group_removed, self._warn
        self.groups = PlacementGroups(
            environment, self.nodes, self.jobs, self.actors, table, self.leases, gone, warn
        )
        self._old = OldRows(environment, self.nodes, self.fences, self.jobs, self.workers)
        self._warnings = DriverWarnings(self.jobs.is_running)
        self.task_events = TaskEventLog(config.task_events_max)
        self._effects = ActorEffectRunner(
            self.actor_table, self.scheduler, ender, self._writes, self._on_actor_deaths
        )
        self.registrar = ActorRegistrar(
            self._clock,
            self.actors,
            table,
            self.jobs,
            self.workers,
            self.nodes,
            self._run,
            self._on_actor_registered,
        )
        self.drains = NodeDrains(
            environment,
            self.nodes,
            self.actors,
            self.actor_table,
            self.leases,
            self.scheduler.demands_to_come,
            self._run,
            self._write_node,
        )
        self._raylets.on_end(self.health.hint_address)

    # ---- nodes

    def register_node(
        self, info: common_pb2.NodeInfo, actor_leases: Iterable[gcs_pb2.ActorLease] = ()
    ) -> list[bytes]:
        """actor_leases: what the raylet has granted for actors. Returns the ids of those that nobody wants.

        Raises NodeIsDead.
        """
        for other in self.nodes.at_address(info.host, info.node_manager_port):
            if other.binary() != info.node_id:
                # Health checks would be answered by this raylet in the other's name.
                message = f"its address was taken over by node {info.node_id.hex()}"
                self.node_died(
                    other, common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message=message)
                )
        if self.nodes.register(info, self._clock.wall_s()):
            node_id = NodeID(info.node_id)
            row = known(self.nodes.alive(node_id), f"the row of node {node_id.hex()}")
            logger.info(
                "node %s joined from %s with %s", node_id.hex(), raylet_address(row), dict(row.total.amounts)
            )
            self._write_node(row)
        self.confirm_node(NodeID(info.node_id))
        self.health.watch(NodeID(info.node_id))
        self.scheduler.nodes_changed()
        self._on_room()
        return [
            lease.lease_id
            for lease in actor_leases
            if self._is_unwanted(lease.lease_id, WorkerID(lease.worker_id))
        ]

    def _is_unwanted(self, lease_id: bytes, worker_id: WorkerID) -> bool:
        return self.actors.of_worker(worker_id) is None and not self.leases.awaits(lease_id)

    def confirm_node(self, node_id: NodeID) -> bool:
        """Whether the node is alive. Then it may hear so, and run actors for the time of its lease.

        Raises NodeIsDead.
        """
        if self.nodes.alive(node_id) is None:
            self.nodes.check_not_dead(node_id)
            return False
        self.fences.confirmed(node_id, self._clock.time_s())
        return True

    def report_resources(self, resources: common_pb2.NodeResources) -> None:
        """Raises UnknownNode, NodeIsDead."""
        totals = dict(self.nodes.resources_of(NodeID(resources.node_id)).total.amounts)
        if self.nodes.report(resources):
            self._news.reported(resources)
            self.leases.reported(NodeID(resources.node_id))
            if dict(resources.total.amounts) != totals:
                self.scheduler.nodes_changed()
            self._on_room()

    def _on_room(self) -> None:
        """More may be free than before."""
        self.groups.nodes_changed()
        self.drains.move_actors()

    def node_died(self, node_id: NodeID, cause: common_pb2.DeathCause) -> None:
        """A node is gone, with everything on it. Nothing happens where that is known.

        Its actors start again elsewhere when its processes have ended, or must have.
        """
        now_s = self._clock.wall_s()
        has_ended = self.nodes.has_ended(node_id)
        row = self.nodes.died(node_id, cause, not has_ended, now_s)
        if row is None:
            return
        self._await_end(row)
        self._warn(self._warnings.node_died(row))
        logger.warning("node %s is dead: %s", node_id.hex(), cause.message)
        self._write_node(row)
        self._old.forget_nodes()
        self._raylets.drop(raylet_address(row))
        worker_cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.NODE_DIED,
            message=f"its node {node_id.hex()} died: {cause.message}",
            is_preempted=row.death_cause.is_preempted,
        )
        for worker in self.workers.of_node(node_id):
            self._bury_worker(common_pb2.WorkerInfo(worker_id=worker.worker_id, death_cause=worker_cause))
        for job_id in self.jobs.of_node(node_id):
            self.finish_job(job_id, worker_cause.message)
        self._run(self.actors.node_died(node_id, death_from_proto(worker_cause), now_s))
        self.groups.node_died(node_id)

    def _await_end(self, row: common_pb2.NodeInfo) -> None:
        """Of a dead node. Nobody waits for one whose processes have ended."""
        if row.may_linger:
            self.fences.died(NodeID(row.node_id), row.head_lease_s, self._clock.time_s())
            self.health.watch_end(row)
        else:
            self.fences.ended(NodeID(row.node_id))

    def _on_node_ended(self, node_id: NodeID) -> None:
        self.fences.ended(node_id)
        row = self.nodes.ended(node_id)
        if row is not None:
            self._writes.put(Table.NODE, row.node_id, row.SerializeToString())
        self.scheduler.nodes_changed()

    def _on_health_failed(self, node_id: NodeID, why: str) -> None:
        message = f"its raylet did not answer health checks: {why}"
        self.node_died(node_id, common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message=message))

    def _write_node(self, row: common_pb2.NodeInfo) -> None:
        self._writes.put(Table.NODE, row.node_id, row.SerializeToString())
        self._news.node_changed(row, self._writes.after_commit)

    # ---- jobs

    def add_job(self, job: common_pb2.JobInfo) -> JobID:
        """A driver has one job, also where it asks again: it may not have heard the answer."""
        for job_id in self.jobs.of_driver(WorkerID(job.driver.worker_id)) if job.driver.worker_id else ():
            return job_id
        row = self.jobs.add(job, self._clock.wall_s())
        self._write_next_job_number()
        logger.info(
            "job %s began: driver %s, pid %d", row.job_id.hex(), row.driver.worker_id.hex(), row.driver_pid
        )
        self._write_job(row)
        return JobID(row.job_id)

    def finish_job(self, job_id: JobID, why_lost: str = "") -> None:
        """Ends a job and those of its actors that end with it. Nothing happens where it is not running.
        why_lost: where its driver may live."""
        now_s = self._clock.wall_s()
        row = self.jobs.finish(job_id, now_s)
        if row is None:
            return
        logger.info("job %s finished", job_id.hex())
        self._write_job(row)
        self._warnings.job_finished(job_id)
        self._run(self.actors.job_finished(job_id, now_s, why_lost))
        self.groups.job_ended(job_id, is_over=False)
        self._end_jobs_without_actors([job_id])

    def jobs_without_driver(self) -> list[JobID]:
        """The running jobs of whose driver no node has told."""
        return self.jobs.without_driver()

    def _end_jobs_without_actors(self, job_ids: Iterable[JobID]) -> None:
        """Finished jobs are over when their last actors are: nobody needs their code any more."""
        living = {
            actor.registration.job_id for actor in self.actors.all() if actor.state is not ActorLife.DEAD
        }
        for job_id in job_ids:
            row = None if job_id in living else self.jobs.over(job_id)
            if row is None:
                continue
            self._write_job(row)
            self.groups.job_ended(job_id, is_over=True)
            self.scheduler.forget_job(job_id.binary())
            self.kv.delete_code(job_id)
        self._old.forget_jobs()

    def _write_next_job_number(self) -> None:
        self._writes.put(Table.META, NEXT_JOB_NUMBER_KEY, str(self.jobs.next_number).encode())

    def _write_job(self, row: common_pb2.JobInfo) -> None:
        payload = row.SerializeToString()
        self._writes.put(Table.JOB, row.job_id, payload)
        self._publish(gcs_pb2.JOB, row.job_id, payload)

    # ---- workers

    def add_worker(self, info: common_pb2.WorkerInfo) -> None:
        row = self.workers.add(info, self._clock.wall_s())
        if row is None:
            return
        self._writes.put(Table.WORKER, row.worker_id, row.SerializeToString())
        if row.type == common_pb2.DRIVER:
            for job in self.jobs.driver_joined(WorkerID(row.worker_id), NodeID(row.node_id)):
                self._write_job(job)
        if self.nodes.is_dead(NodeID(row.node_id)):
            # This was on its way when its node ended.
            cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message="its node had died")
            self.worker_died(common_pb2.WorkerInfo(worker_id=row.worker_id, death_cause=cause))

    def worker_died(self, info: common_pb2.WorkerInfo) -> None:
        """A worker or driver ended. Nothing happens where that is known."""
        if not self._bury_worker(info):
            return
        worker_id = WorkerID(info.worker_id)
        death = death_from_proto(info.death_cause)
        if death.kind is DeathKind.UNKNOWN:
            message = death.message or "its process ended"
            death = Death(DeathKind.WORKER_DIED, message, death.exit_code, death.signal)
        for job_id in self.jobs.of_driver(worker_id):
            self.finish_job(job_id)
        self._warn(self._warnings.worker_died(info, death, self.actors.of_worker(worker_id)))
        self._run(self.actors.worker_died(worker_id, death, self._clock.wall_s()))

    def _bury_worker(self, info: common_pb2.WorkerInfo) -> bool:
        """Writes and publishes a worker's death. False where it is known."""
        row = self.workers.died(info, self._clock.wall_s())
        if row is None:
            return False
        self.answers.forget(row.worker_id)
        payload = row.SerializeToString()
        self._writes.put(Table.WORKER, row.worker_id, payload)
        self._old.forget_workers()
        self._writes.after_commit(lambda: self._news.worker_died(info.worker_id))
        return True

    # ---- actors

    def _on_actor_registered(self, registration: ActorRegistration) -> None:
        self._warn(self._warnings.actor_registered(registration))
        if registration.group_id is not None:
            self.groups.is_used(registration.group_id)

    def kill_actor(self, actor_id: ActorID, force: bool, no_restart: bool) -> None:
        """Raises KeyError for an unknown actor."""
        self._run(self.actors.kill(actor_id, force, no_restart, self._clock.wall_s()))

    def actor_out_of_scope(self, actor_id: ActorID) -> None:
        """Raises KeyError for an unknown actor."""
        self._run(self.actors.out_of_scope(actor_id, self._clock.wall_s()))

    def _on_group_removed(self, group_id: PlacementGroupID, because: str) -> None:
        self._run(self.actors.group_removed(group_id, because, self._clock.wall_s()))

    def _run(self, effects: Iterable[Effect]) -> None:
        self._effects.run(effects)

    def _on_actor_deaths(self, job_ids: list[JobID], actor_ids: list[ActorID]) -> None:
        self.groups.actors_died(actor_ids)
        finished = [job_id for job_id in job_ids if self.jobs.is_finished(job_id)]
        if finished:
            self._end_jobs_without_actors(finished)

    # ---- what is over

    def forget_old(self) -> None:
        """Drops what ended longer ago than anyone may ask for. The counts are kept when something ends."""
        self._old.forget_nodes()
        self._old.forget_jobs()
        self._old.forget_workers()
        self._run(self.actors.forget_oldest(self._old.forgotten_before_s))
        self.groups.forget_old(self._old.forgotten_before_s)
        self.task_events.forget_oldest(self._old.forgotten_before_s)

    def missing_worker_s(self) -> float:
        """For how long a worker may run that is not in the table; 0: for ever."""
        return self.fences.missing_worker_s(self.nodes.head_leases_s(), self._clock.time_s())

    # ---- what an earlier GCS knew, told by those who outlived it (adoption.py)

    def adopt_others(
        self, nodes: Iterable[common_pb2.NodeInfo], head_lease_s: float, last_job_number: int
    ) -> None:
        """What a node has heard of: other nodes, the dead as well, and jobs up to a number. head_lease_s: its
        own, which stands for theirs. The head before has confirmed them until now at most."""
        self.fences.takes_over(head_lease_s, self._clock.time_s())
        for info in nodes:
            row = common_pb2.NodeInfo(head_lease_s=head_lease_s)
            row.MergeFrom(info)
            if self.nodes.expect(row):
                node_id = NodeID(row.node_id)
                self._writes.put(Table.NODE, row.node_id, row.SerializeToString())  # the next head waits too
                self.fences.confirmed(node_id, self._clock.time_s())
                self.health.watch(node_id)
            if info.state == common_pb2.NODE_DEAD:
                self.node_died(NodeID(info.node_id), info.death_cause)
        self.jobs.heard_of(last_job_number)
        self._write_next_job_number()

    def adopt_job(self, job: common_pb2.JobInfo) -> bool:
        """Whether it is news."""
        row = self.jobs.adopt(job)
        if row is not None:
            self._write_next_job_number()
            self._write_job(row)
        return row is not None

    def adopt_actor(self, info: common_pb2.ActorInfo) -> bool:
        """Whether it is news. Raises ValueError."""
        now_s = self._clock.wall_s()
        actor = adopted_row(info, now_s)
        effects = self.actors.adopt(actor, now_s)
        if effects:
            adopted = known(self.actors.get(actor.actor_id), f"the adopted actor {actor.actor_id.hex()}")
            self.actor_table.adopt(adopted.registration, info)
            self._run(effects)
        return bool(effects)

    def judge_adopted_actor(self, actor_id: ActorID, worker_id: WorkerID | None, has_handles: bool) -> None:
        """worker_id: of the worker that it was told with. One that its node did not name is gone, and so is
        an owner. Without a worker the actor is placed."""
        actor = self.actors.get(actor_id)
        if actor is None:
            return  # it died, and was forgotten
        if not has_handles:
            self.actor_out_of_scope(actor_id)
        registration = actor.registration
        owner = registration.owner_worker_id
        now_s = self._clock.wall_s()
        death = Death(DeathKind.WORKER_DIED, "it ended while there was no head")
        if actor.dies_with_owner and self._is_gone(owner, registration.owner_node_id):
            self._run(self.actors.worker_died(owner, death, now_s))
        elif actor.worker_id is None or actor.worker_id != worker_id or actor.node_id is None:
            pass
        elif self._is_gone(actor.worker_id, actor.node_id):
            self._run(self.actors.worker_died(actor.worker_id, death, now_s))
        if not self.scheduler.is_placing(actor_id):
            self._run(self.actors.go_on_placing(actor_id))

    def judge_adopted_job(self, job_id: JobID) -> None:
        """A job whose driver its node did not name is finished."""
        row = self.jobs.row(job_id)
        if row is not None and not row.is_finished:
            driver = row.driver
            if not driver.worker_id or self._is_gone(WorkerID(driver.worker_id), NodeID(driver.node_id)):
                self.finish_job(job_id)

    def _is_gone(self, worker_id: WorkerID, node_id: NodeID) -> bool:
        if self.nodes.alive(node_id) is None:
            return True
        return not self.nodes.is_awaited(node_id) and not self.workers.is_living(worker_id)

    def free_unwanted_lease(self, node_id: NodeID, lease_id: bytes, worker_id: WorkerID) -> None:
        if self._is_unwanted(lease_id, worker_id):
            self.leases.free_at(node_id, lease_id)

    # ---- messages to others

    def _publish(self, channel: gcs_pb2.Channel, key: bytes, payload: bytes) -> None:
        self._writes.after_commit(lambda: self.subscriptions.publish(channel, key, payload))

    def _on_actor_left(self, worker_id: WorkerID) -> None:
        self._run(self.actors.left(worker_id, self._clock.wall_s()))

    def _publish_actor(self, info: common_pb2.ActorInfo) -> None:
        self.subscriptions.publish(gcs_pb2.ACTOR, info.actor_id, info.SerializeToString())
        if info.state == common_pb2.ALIVE and NodeID(info.address.node_id) in self.nodes.draining():
            self.drains.move_actors()  # its node began to drain while it was created

    def _warn(self, warning: common_pb2.ErrorInfo | None) -> None:
        if warning is not None:
            warning.time_s = self._clock.wall_s()
            self.warn_drivers(warning)

    def warn_drivers(self, error: common_pb2.ErrorInfo) -> None:
        """That of the error's job; every one where it names none."""
        logger.warning("job %s is told: %s", error.job_id.hex() or "of any driver", error.message)
        self.subscriptions.publish(gcs_pb2.ERROR, error.job_id, error.SerializeToString())

    # ---- after a restart

    def restore(self, tables: Tables, head_number: int, waits: Callable[[Actor], bool]) -> None:
        """Takes over the rows of an earlier GCS, and what was under way then. waits: see Adoption.judges."""
        jobs = (common_pb2.JobInfo.FromString(row) for row in tables[Table.JOB].values())
        self.jobs.restore(jobs, int(tables[Table.META].get(NEXT_JOB_NUMBER_KEY, b"1")))
        for row in self.jobs.rows():
            if not row.is_finished:
                for channel in (gcs_pb2.LOG, gcs_pb2.ERROR):
                    self.subscriptions.expect(channel, row.job_id)
        self.nodes.restore(common_pb2.NodeInfo.FromString(row) for row in tables[Table.NODE].values())
        self.workers.restore(common_pb2.WorkerInfo.FromString(row) for row in tables[Table.WORKER].values())
        self.kv.restore(tables[Table.KV])
        self.answers.restore(tables[Table.ANSWER])
        for head_lease_s in self.nodes.head_leases_s():
            self.fences.takes_over(head_lease_s, self._clock.time_s())
        for node_id in self.nodes.unregistered():
            self.fences.confirmed(node_id, self._clock.time_s())
            self.health.watch(node_id)
        for node in self.nodes.dead():
            self._await_end(node)
        rows = [common_pb2.ActorInfo.FromString(row) for row in tables[Table.ACTOR].values()]
        self._run(self.actors.restore(self.actor_table.restore(rows), waits))
        self.groups.restore(tables[Table.PLACEMENT_GROUP].values(), head_number)
        self._end_jobs_without_actors(self.jobs.outlived())

    def give_up_nodes(self, node_ids: Iterable[NodeID]) -> None:
        """Declares those of them dead that an earlier GCS knew and that have not come back."""
        self.subscriptions.give_up_expected()
        for node_id in filter(self.nodes.is_awaited, node_ids):
            message = "it did not register again after the GCS restarted"
            self.node_died(
                node_id, common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message=message)
            )

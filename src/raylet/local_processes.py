"""What this node's workers and drivers say, and how their lives end.

A worker's death (its connection or its process, whichever ends first) frees its lease and is reported; a
driver's ends its job on this node. What either owned is dropped from the store.
"""

from __future__ import annotations

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, raylet_pb2
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.effects import Effect
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.head_lease import HeadLease
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.store_client import StoreClient
from ray_mono.raylet.worker.death_reports import DeathReports
from ray_mono.raylet.worker.deaths import remove_socket, why_not_started
from ray_mono.raylet.worker.last_words import LastWords, answers_on, said_of
from ray_mono.raylet.worker.launcher import WorkerExit, WorkerLauncher
from ray_mono.raylet.worker.worker_pool import WorkerPool


class LocalProcesses:
    """Of one raylet."""

    def __init__(
        self,
        config: RayletConfig,
        clock: Clock,
        tasks: BackgroundTasks,
        clients: Clients,
        pool: WorkerPool,
        leases: LeaseManager,
        effects: EffectRunner,
        outbox: GcsOutbox,
        store: StoreClient,
        deaths: DeathReports,
        head_lease: HeadLease,
        launcher: WorkerLauncher,
    ) -> None:
        self._config = config
        self._clock = clock
        self._tasks = tasks
        self._clients = clients
        self._pool = pool
        self._leases = leases
        self._effects = effects
        self._outbox = outbox
        self._store = store
        self._deaths = deaths
        self._head_lease = head_lease
        self._launcher = launcher
        self._last_words = LastWords()
        self._is_closed = False

    def close(self) -> None:
        """The raylet stops: nobody registers any more, and who ends does so because of that."""
        self._is_closed = True

    def last_words(self, worker_id: bytes, lease_number: int) -> raylet_pb2.LastWordsReply:
        """Of a worker that died."""
        return self._last_words.of(worker_id, lease_number)

    def held_answers(self, worker_id: bytes, lease_number: int) -> raylet_pb2.LastWordsReply:
        """Of a worker that lives."""
        client = self._clients.get(worker_id)
        if client is None or client.board is None or not lease_number:
            return raylet_pb2.LastWordsReply()
        return said_of(client.board, lease_number)

    def last_answers(self, worker_id: bytes) -> raylet_pb2.LastAnswersReply:
        """Of an actor's worker that died. Its callers may hear of that sooner than this raylet."""
        client = self._clients.get(worker_id)
        if client is not None and client.board is not None:
            return answers_on(client.board)
        return self._last_words.answers_of(worker_id)

    # ---- what they say

    def register(self, process: ClientProcess) -> None:
        """A worker or driver announced itself. Raises ValueError where it is refused."""
        if self._is_closed:
            raise ValueError("the raylet is stopping")
        if self._clients.get(process.worker_id) is not None:
            raise ValueError(f"{process.worker_id.hex()} is registered already")
        effects: list[Effect] = []
        if not process.is_driver:
            token, worker_id = process.startup_token, process.worker_id
            now_s = self._clock.time_s()
            refusal, effects = self._leases.worker_registered(token, worker_id, process.pid, now_s)
            if refusal:
                self._effects.run(effects)
                raise ValueError(refusal)
            self._launcher.registered(token, process.pid)
        self._clients.add(process)
        self._head_lease.tell(process)
        process.connection.on_close(lambda reason: self._connection_ended(process, reason))
        self._outbox.add_worker(process.info(self._config.node_id))
        self._effects.run(effects)

    def blocked(self, worker_id: bytes, lease_id: bytes, is_blocked: bool) -> None:
        """A worker's task waits in get or wait, or runs on."""
        now_s = self._clock.time_s()
        self._effects.run(self._leases.worker_blocked(worker_id, lease_id, is_blocked, now_s))

    def leaves(self, worker_id: bytes, because: str) -> None:
        """A worker ends by itself."""
        client = self._clients.get(worker_id)
        if client is not None:
            client.leaves(because)

    def refused_to_end(self, worker_id: bytes) -> None:
        """A worker that was asked to end wants to stay."""
        self._effects.run(self._leases.worker_refused_to_end(worker_id, self._clock.time_s()))

    def may_run(self, worker_id: bytes, lease_number: int, place: int) -> bool:
        """Whether a worker runs the task that was pushed at this place of its lease, or it is not known what
        it runs."""
        client = self._clients.get(worker_id)
        return client is not None and (client.board is None or client.board.runs(lease_number, place))

    # ---- their ends

    def kill(self, worker_id: bytes, force: bool, cause: common_pb2.DeathCause) -> None:
        client = self._clients.get(worker_id)
        if client is not None:
            client.is_ordered_to_end(cause)
        reason = cause.message or "it was told to"
        self._effects.run(self._leases.kill_worker(worker_id, force, reason, self._clock.time_s()))

    def exited(self, exit_: WorkerExit) -> None:
        """The launcher says that a worker's process is gone, or was never made."""
        worker = self._pool.started_as(exit_.startup_token)
        self._deaths.exited(exit_)
        if worker is None:
            return
        process = self._clients.get(worker.worker_id)
        if process is not None:
            self._tasks.spawn(self._deaths.hear_out(process), f"hear out {worker.worker_id.hex()[:8]}")
        else:
            remove_socket(worker.worker_id, self._config.session_dir)
            now_s = self._clock.time_s()
            why = why_not_started(exit_, worker.worker_id, self._config)
            self._effects.run(self._leases.worker_died(worker.worker_id, why, now_s))

    def _connection_ended(self, process: ClientProcess, reason: str) -> None:
        if self._clients.get(process.worker_id) is process and not self._is_closed:
            self._died(process, reason)

    def _died(self, process: ClientProcess, reason: str) -> None:
        self._clients.remove(process.worker_id)
        worker = self._pool.get(process.worker_id)
        end_reason = worker.end_reason if worker is not None else ""
        if worker is not None and worker.binding is not None:
            process.belongs_to(worker.binding.job_id)
            if self._leases.is_for_tasks(worker):
                # Also of one that the raylet ended: whoever leased it may want the answers that it kept.
                self._last_words.died(process.worker_id, process.board)
                if not end_reason:
                    process.note_what_ran()
            else:
                self._last_words.actor_died(process.worker_id, process.board)
        now_s = self._clock.time_s()
        remove_socket(process.worker_id, self._config.session_dir)
        if process.is_driver:
            self._effects.run(self._leases.job_finished(process.job_id, now_s))
        else:
            self._effects.run(self._leases.worker_died(process.worker_id, reason, now_s))
        self._store.free_owned_by(process.worker_id)
        name = f"report the death of {process.worker_id.hex()[:8]}"
        self._tasks.spawn(self._deaths.report(process, reason, end_reason), name)

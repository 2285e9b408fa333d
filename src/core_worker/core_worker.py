"""The core worker: what makes a process part of the cluster. One per driver and per worker.

It puts the parts together, and is what the API above it calls (interface.py). Each part gets the parts that
it uses. The folders are floors, from the bottom:

    values               values to bytes and back
    store_provider       values and whereabouts in memory; the node's plasma store
    reference_counting   who needs which object, and the conversation about it with other owners
    objects              get, wait, put, futures, items of generators that others run
    task_submission      what was submitted here and is not finished: tasks, leases, calls of actors
    task_execution       what others submitted and runs here (execution.py puts it together, in workers)
    process              how a process joins and leaves

All parts share one lock, which is the reactor's. Values are pickled and unpickled outside of it, since that
runs user code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray_mono.common.ending import run_steps
from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.explanation import Explanation, WaitingOverview
from ray_mono.core_worker.call_template import CallTemplates
from ray_mono.core_worker.context import JobContext, TaskContext, WorkerContext
from ray_mono.core_worker.environment import Closable, Environment
from ray_mono.core_worker.global_state import GcsGlobalState
from ray_mono.core_worker.job_warnings import JobWarnings
from ray_mono.core_worker.object_ref import ObjectRef, require_home
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.objects.futures import ObjectFutures
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams, StreamParts
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.objects.lineage import Lineage
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.objects.object_recovery import ObjectRecovery
from ray_mono.core_worker.objects.object_wait import ObjectWait
from ray_mono.core_worker.objects.putter import Putter
from ray_mono.core_worker.objects.unhandled_errors import UnhandledErrors
from ray_mono.core_worker.options import CallRules
from ray_mono.core_worker.peers import Connect, PeerPool
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter, Table
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.store_provider.memory_store import Entry, MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_errors import ActorExit
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_submission.actor_creator import ActorCreator
from ray_mono.core_worker.task_submission.actor_handles import ActorHandles, HeldActor
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.adoption_teller import AdoptionTeller
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.explainer import Explainer
from ray_mono.core_worker.task_submission.function_manager import FunctionManager
from ray_mono.core_worker.task_submission.inherited_groups import InheritedGroups
from ray_mono.core_worker.task_submission.job_code import JobCode
from ray_mono.core_worker.task_submission.map_builder import MapBuilder
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.placement_groups import GcsPlacementGroups
from ray_mono.core_worker.task_submission.reconstruction import Reconstruction
from ray_mono.core_worker.task_submission.retry_notices import RetryNotices
from ray_mono.core_worker.task_submission.task_builder import MethodTemplate, TaskBuilder
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.task_submission.wait_reasons import WaitReasons
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.core_worker.values import serialization
from ray_mono.rpc.reactor_channel import ReactorChannel
from ray_mono.rpc.reactor_server import ReactorServer

if TYPE_CHECKING:
    # A driver runs nothing, and imports nothing for it.
    from ray_mono.core_worker.task_execution.execution import Execution, ExecutionParts

DESCRIBED_TASKS_MAX = 100


class CoreWorker:
    """The core of one process of a cluster: makes the parts, and is the CoreInterface. Made by
    process/registration.py."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        connect: Connect,
        store_channel: ReactorChannel,
        server: ReactorServer,
        channels: Sequence[Closable],
    ) -> None:
        """connect: see PeerPool. server, channels: closed when this process leaves, as the peers are."""
        self.env = env
        self.is_driver, self.worker_id, self.node_id = env.is_driver, env.worker_id, env.node_id
        self.node_host, self.node_labels = env.node.host, env.node.labels
        self.session_dir = env.session_dir
        self._context = context
        self._server = server
        self._channels = channels
        # Run by shutdown, in order, before the connections close.
        self._steps_of_shutdown: list[Callable[[], None]] = [self._tell_unhandled]
        self._kept: dict[bytes, ObjectRef[Any]] = {}
        self._streams: GeneratorStreams
        self._reconstruction: Reconstruction
        self._tasks: TaskManager
        self.reasons: WaitReasons
        self._execution: Execution | None = None  # A worker's; a driver runs nothing.

        table: Table = {}
        store = self._memory_store = MemoryStore(table.__contains__)
        references = self._references = ReferenceCounter(
            table, self._out_of_scope, store.forget_plain, store.forget_all_plain
        )
        self._plasma = PlasmaStoreProvider(env, store_channel, references.__contains__)
        self._dropped = DroppedReferences(env.reactor, references, self._plasma)
        run_keys: list[bytes] = []
        self.peers = PeerPool(connect, env.node_id, run_keys, env.raylet, env.gcs, env.clock, env.reactor)
        self.job_code = JobCode(env, context, self.peers, run_keys)
        self.worker_runs = WorkerRuns(env, context, self, self.job_code, run_keys)
        self.borrowing = Borrowing(
            env, references, store, self.peers, lambda each: self._streams.expect(each)
        )
        self._unpickled = UnpickledReferences(references, self.borrowing)
        self._lineage: Lineage[PendingTask] = Lineage(references, store, env.config.max_lineage_bytes)
        self._recovery = ObjectRecovery(
            env, references, store, self._plasma, self._lineage, lambda: self._reconstruction
        )
        self.resolver = FutureResolver(
            env, references, store, self._plasma, self.peers, self.borrowing, self._recovery
        )
        self._make_objects()
        self._make_submission()

    def _make_objects(self) -> None:
        env, references, store, plasma = self.env, self._references, self._memory_store, self._plasma
        borrowing, lineage = self.borrowing, self._lineage
        self._unhandled = unhandled = UnhandledErrors()
        self._warnings = JobWarnings(env, self._context)
        self._events, self._global_state = TaskEvents(env, self._context), GcsGlobalState(env)
        self._blocked = BlockedNotice(env, self._context, references, store, plasma)
        is_missing, with_worker = self._blocked.is_missing, lambda each: self._tasks.is_with_worker(each)
        waits = self._long_waits = LongWaits(env, is_missing, with_worker, self._warnings, self.explain)
        self._getter = Getter(
            env,
            references,
            store,
            plasma,
            self.resolver,
            self._unpickled,
            self._blocked,
            waits,
            lambda object_ids, most: self.reasons.stories_of(object_ids, most),
            self,
        )
        get, who = self._getter, self._context.task_id
        self._waits = ObjectWait(
            env, references, store, plasma, self._dropped, self.resolver, self._blocked, waits
        )
        self._futures = ObjectFutures(env, self._context, store, self.resolver, get, self._waits, waits)
        self._putter = Putter(env, self._context, references, store, plasma, self._dropped, self)
        parts = StreamParts(
            env, references, store, plasma, borrowing, lineage, unhandled, self, get, waits, who
        )
        self._streams = GeneratorStreams(parts)
        # Bound methods of the parts, so that a call enters one function less.
        self.get, self.reference_dropped = self._getter.get, self._dropped.drop
        self.location_of, self.store_stats = self.resolver.location_of, plasma.stats
        self.as_future = self._futures.of

    def _make_submission(self) -> None:
        env, context, references, store = self.env, self._context, self._references, self._memory_store
        plasma, borrowing, streams, lineage = self._plasma, self.borrowing, self._streams, self._lineage
        unhandled, waits, notices = self._unhandled, self._long_waits, RetryNotices(self._warnings)
        self._functions = FunctionManager(context, self._unpickled, self.job_code)
        self._tasks = tasks = TaskManager(
            references, store, plasma, borrowing, streams, lineage, self._recovery, unhandled, notices
        )
        dependencies = DependencyResolver(env, store, self.resolver, borrowing, tasks)
        normal = self._normal_tasks = NormalTaskSubmitter(env, context, tasks, self.peers)
        self._reconstruction = Reconstruction(
            env, references, streams, lineage, tasks, dependencies, normal.interrupt
        )
        self._actor_tasks = ActorTaskSubmitter(
            env, references, store, self.resolver, self.peers, tasks, dependencies, self._warnings
        )
        self._handles = ActorHandles(env, self._actor_tasks)
        builder = TaskBuilder(
            env,
            context,
            borrowing,
            streams,
            self._putter,
            CallTemplates(self.peers.forget_templates),
            tasks,
            dependencies,
            self._normal_tasks,
            self._actor_tasks,
            self,
        )
        maps = MapBuilder(
            env, context, builder, tasks, dependencies, self._normal_tasks, self._actor_tasks, self
        )
        groups = self.placement_groups = GcsPlacementGroups(
            env, context, references, store, self._dropped, self._blocked, waits, normal.removed_groups, self
        )
        inherited = self._inherited = InheritedGroups(context, groups, builder, maps)
        creator = ActorCreator(
            env,
            context,
            references,
            store,
            self._dropped,
            self._blocked,
            tasks,
            dependencies,
            self._actor_tasks,
            self._handles,
            self.peers,
            builder,
            inherited,
            self,
        )
        self.adoption = AdoptionTeller(env, context, self.job_code, creator, self._handles)
        self.canceller = TaskCanceller(
            env, references, self._dropped, self.peers, tasks, normal, self._actor_tasks, creator, self
        )
        self.reasons = WaitReasons(
            env, references, store, plasma, borrowing, self.peers, tasks, normal, self._actor_tasks, groups
        )
        self._explainer = Explainer(env, self.peers, self.reasons)
        # As above.
        self.export = self._functions.export
        self.task_template = builder.task_template
        self.submit_task, self.submit_actor_task = builder.submit_task, builder.submit_actor_task
        self.submit_tasks, self.submit_actor_tasks = maps.submit_tasks, maps.submit_actor_tasks
        context.when_capturing(self._hand_down_groups)
        self.create_actor = creator.create
        self.get_named_actor, self.kill_actor = creator.named, creator.kill
        self.cancel = self.canceller.cancel
        self.run_function_on_all_workers = self.worker_runs.export

    def _hand_down_groups(self) -> None:
        """Tasks of this worker may hand down their placement groups, from now on: each call asks."""
        self.submit_task = self._inherited.submit_task
        self.submit_tasks = self._inherited.submit_tasks

    # ---- what this process is, and serves

    @property
    def job_id(self) -> bytes:
        return self._context.job.job_id

    @property
    def namespace(self) -> str:
        return self._context.job.namespace

    @property
    def default_actor_lifetime(self) -> str:
        return self._context.job.default_actor_lifetime

    @property
    def runtime_env(self) -> str:
        return self._context.job.runtime_env

    @property
    def task_runtime_env(self) -> str:
        return self._context.job.task_runtime_env

    @property
    def context(self) -> WorkerContext:
        return self._context

    @property
    def global_state(self) -> GcsGlobalState:
        return self._global_state

    # ---- references (object_ref.ReferenceHome)

    def owner_address_of(self, ref: ObjectRef[Any]) -> bytes:
        if self.env.reactor.is_closed:
            raise RaySystemError(f"{ref!r} belongs to a session that is over")
        return self.borrowing.owner_of(ref._id)

    def reference_arrived(self, object_id: bytes, owner: bytes) -> ObjectRef[Any]:
        with self.env.lock:
            self._dropped.drain()
            self._unpickled.arrived(object_id, owner)
            return ObjectRef(object_id, self)

    def keep(self, ref: ObjectRef[Any]) -> None:
        """As ReferenceHome.keep; but not for an actor's handle, since no pickle keeps an actor alive."""
        with self.env.lock:
            if ref._id not in self._handles:
                self._kept[ref._id] = ref

    def _out_of_scope(self, object_id: bytes, row: Reference) -> None:
        """The last reason to keep an object is gone. Lock held."""
        known = self._memory_store.remove(object_id)
        self._plasma.out_of_scope(object_id)
        is_error = type(known) is Entry and known.metadata == serialization.ERROR
        is_unseen_error = is_error and not self._memory_store.take_seen(object_id)
        if row.owner is None:
            if not isinstance(known, bytes):
                self._recovery.value_ended(object_id, known)
            if known is None:
                self._streams.handle_ended(object_id)
            elif type(known) is Entry and is_unseen_error:
                self._unhandled.note(object_id, known.data)
        elif row.removal_waiters:
            for answer in row.removal_waiters:
                answer()
        self._handles.reference_ended(object_id)

    def reference_counts(self) -> int:
        with self.env.lock:
            self._dropped.drain()
            return len(self._references)

    # ---- objects

    def put(self, value: Any) -> ObjectRef[Any]:
        return self._putter.put(serialization.serialize(value, "the value of put()"))

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        for ref in refs:
            if ref._home is not self:
                require_home(ref, self)
        return self._waits.wait(refs, num_returns, timeout_s, fetch_local)

    # ---- actors

    def method_template(self, method_name: str, class_name: str, **options: Any) -> MethodTemplate:
        return MethodTemplate(method_name, class_name, **options)

    def hold_actor(self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules) -> HeldActor:
        with self.env.lock:
            return self._handles.hold(actor_id, creation_ref, rules)

    # ---- the task, actor and process that ask

    def execute(self, make: Callable[[ExecutionParts], Execution]) -> Execution:
        """For workers: make(parts) puts together what runs tasks, out of the core worker's parts."""
        from ray_mono.core_worker.task_execution.execution import ExecutionParts

        self._execution = make(
            ExecutionParts(
                self.env,
                self._context,
                self._references,
                self._memory_store,
                self._plasma,
                self._dropped,
                self.borrowing,
                self._unpickled,
                self._blocked,
                self._getter,
                self._functions,
                self.worker_runs,
                self.canceller,
                self._events,
                self._futures,
                self.reasons,
            )
        )
        return self._execution

    def enter_job(self, job: JobContext, main: TaskContext) -> None:
        """A worker becomes the job's: see WorkerContext."""
        self._context.enter_job(job, main)

    def explain(self, kind_name: str, id_: bytes, is_sure: bool = True) -> Explanation:
        return self._explainer.explain(kind_name, id_, is_sure)

    def explain_all(self) -> WaitingOverview:
        return self._explainer.explain_all()

    def exit_actor(self) -> None:
        if self._context.actor_id() and not self._context.is_main:
            raise ActorExit
        if self._execution is None or not self._execution.exit_actor_from_thread():
            raise TypeError("exit_actor() was called outside of an actor: call it inside an actor's method")
        raise SystemExit(0)

    def is_task_cancelled(self) -> bool:
        if self._execution is None:
            raise RuntimeError(
                "is_canceled() can only be asked by a task or an actor, and this process is a driver"
            )
        return self._execution.is_task_cancelled()

    def add_span(self, name: str, extra_data: str, started_s: float) -> None:
        self._events.add_span(name, extra_data, self._context.task_id(), started_s)

    def send_events(self) -> None:
        with self.env.lock:
            self._events.send()

    def collect_events(self, collection: bytes) -> None:
        """The GCS asks for them, by this number. Lock held."""
        self._events.send(collection)

    # ---- the end

    @property
    def lease_id(self) -> bytes:
        """The lease under which this worker runs tasks. Empty in a driver."""
        return self._blocked.lease_id

    @property
    def has_unsent(self) -> bool:
        """Whether answers wait for room in a socket. Lock held."""
        return self._server.has_unsent

    def is_needed(self, by_holders: bool) -> bool:
        """Whether a task that was submitted here is under way. With by_holders: or another process holds an
        object of ours."""
        with self.env.lock:
            self._dropped.drain()
            return bool(len(self._tasks)) or (by_holders and self._references.is_borrowed)

    def is_disposable(self) -> bool:
        """Whether nobody would miss this worker: nothing runs or waits here, and nothing is referenced. Lock
        held."""
        self._dropped.drain()
        rests = self._execution is not None and self._execution.receiver.is_resting
        return rests and not len(self._tasks) and not len(self._references)

    def story(self) -> str:
        """For people: how much it refers to and waits for."""
        return f"{len(self._references)} references, {len(self._tasks)} tasks"

    def fail_all_tasks(self, error: Callable[[], BaseException]) -> None:
        """Everything that was submitted fails with error(). Lock held."""
        self._normal_tasks.forget_queued()
        self._actor_tasks.forget_calls()
        # The latest first. So a task fails before its arguments do, and not because of them.
        for task in reversed(self._tasks.values()):
            self._tasks.fail(task, error())

    def describe(self) -> dict[str, Any]:
        """What DumpState tells."""
        tasks = list(self._tasks.values())
        return {
            "worker_id": self.env.worker_id.hex(),
            "pid": self.env.pid,
            "job_id": self.job_id.hex(),
            "references": len(self._references),
            "values": len(self._memory_store),
            "waiters": self._memory_store.num_waiters,
            **self._lineage.describe(),
            "tasks_pending": [task.name for task in tasks[:DESCRIBED_TASKS_MAX]],
            "task_states": [f"{task.name}: {task.state.name}" for task in tasks[:DESCRIBED_TASKS_MAX]],
            "scheduling": self._normal_tasks.describe(),
            "actors": self._actor_tasks.describe(),
            **self.placement_groups.describe(),
        }

    def at_shutdown(self, step: Callable[[], None]) -> None:
        self._steps_of_shutdown.append(step)

    def first_at_shutdown(self, step: Callable[[], None]) -> None:
        """As at_shutdown, before all others."""
        self._steps_of_shutdown.insert(0, step)

    def _tell_unhandled(self) -> None:
        with self.env.lock:
            self._dropped.drain()
        self._unhandled.close()

    def shutdown(self) -> None:
        if self._context.is_leaving:
            return
        self._context.leave_cluster()
        interrupt = run_steps(self._steps_of_shutdown, "leaving the cluster")
        reactor = self.env.reactor
        with self.env.lock:
            self._dropped.drain()
            reactor.flush()
            self._server.close()
            self.peers.close("this process disconnected")
            for channel in self._channels:
                channel.close("this process disconnected")
        reactor.close()
        self._futures.close()
        with self.env.lock:
            self._streams.close()
            self._kept.clear()
        if interrupt is not None:
            raise interrupt

    def abandon(self) -> None:
        """For a fork: this copy does nothing any more. The sockets, and what was said on them, are the
        parent's."""
        self._context.leave_cluster()
        self.env.reactor.abandon()

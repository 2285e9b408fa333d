"""New actors. The owner registers an actor with the GCS, which places it. When no handle is left, the owner
tells the GCS (actor_handles.py).

    arguments are there ──RegisterActor──► registered: its callers watch it
             │                     └──► refused, or another caller was first: the actor never lived
             └──an argument is an error──► the actor never lived, and that error is the cause

    named, and arguments are not there ──RegisterActor, awaits_arguments──► it has its name (or is refused)
             ├──they come──RegisterActor, once more──► it is placed
             └──one is an error──RegisterActor, failure──► dead of that, for all who have a handle

The caller waits only for the registration of a named actor, since the name may be taken. The GCS knows such
an actor from then on. So its end is the GCS's business, also before its arguments are there (kill(), no
handle left, its placement group removed): its owner hears of that as every caller does, and waits for the
arguments no more. An actor without a name is told to the GCS with its arguments: one message is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from ray_mono.common import ids
from ray_mono.common.exceptions import ActorAlreadyExistsError, RaySystemError
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.context import JobContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, disconnected
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.options import ActorOptions
from ray_mono.core_worker.peers import PeerPool
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED
from ray_mono.core_worker.task_submission.actor_handles import ActorHandles, HeldActor
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.bundle_options import in_its_bundle
from ray_mono.core_worker.task_submission.called_actor import CalledActor, creation_failed
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.inherited_groups import InheritedGroups
from ray_mono.core_worker.task_submission.pending_task import FIRST_RETURN, PendingTask
from ray_mono.core_worker.task_submission.task_builder import TaskBuilder
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode

KILLED = "killed by kill() before its arguments were there"
Then = Callable[[Any, RpcError | None], None]


class ActorCreator:
    """Creates actors for one process."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        dropped: DroppedReferences,
        blocked: BlockedNotice,
        tasks: TaskManager,
        dependencies: DependencyResolver,
        actor_tasks: ActorTaskSubmitter,
        handles: ActorHandles,
        peers: PeerPool,
        builder: TaskBuilder,
        inherited: InheritedGroups,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._context = context
        self._references = references
        self._memory_store = memory_store
        self._dropped = dropped
        self._blocked = blocked
        self._tasks = tasks
        self._dependencies = dependencies
        self._actor_tasks = actor_tasks
        self._handles = handles
        self._peers = peers
        self._builder = builder
        self._inherited = inherited
        self._home = home
        # Those that the GCS has taken from this process, while a handle or a call keeps them.
        self._registered_here: WeakValueDictionary[bytes, CalledActor] = WeakValueDictionary()

    def told_again(self) -> list[common_pb2.ActorInfo]:
        """The actors that this process registered and that are not dead, for a GCS that has lost them. Lock
        held."""
        told = [actor.told_again() for actor in list(self._registered_here.values())]
        return [info for info in told if info is not None]

    def create(self, code: Exported, options: ActorOptions, flat_args: list[Any]) -> HeldActor:
        """Registers the actor with the GCS. Raises ActorAlreadyExistsError if the name is taken,
        RaySystemError, ValueError for what fits into no bundle of its placement group, and what pickling
        raises."""
        env = self._env
        if env.reactor.is_closed:
            raise disconnected()
        options = in_its_bundle(self._inherited.options_of(options), options.class_name)
        flat, args, refs = self._builder.pack(flat_args, options.class_name)
        refs.extend(code.captured)
        with env.lock:
            self._dropped.drain()  # a name goes with the last handle of its actor
            parent = self._context.get()
            actor_id = parent.next_actor_id()
            spec = creation_spec(env, self._context.job, code.descriptor, options, actor_id)
            task = PendingTask(
                ids.TaskID.for_actor_creation(actor_id).binary(),
                CallTemplate(spec, 0),
                flat,
                args,
                parent.kind.depth + 1,
                [ref._id for ref in refs],
            )
            (creation_id,) = self._tasks.add_pending(task)
            creation_ref: ObjectRef[Any] = ObjectRef(creation_id, self._home)
            actor = self._handles.begin(
                actor_id, creation_id, options.rules, not options.is_detached, parent.task_id
            )
        if options.name:
            existing = self._register_named(task, actor, options)
            if existing is not None:
                return existing
        else:
            with env.lock:
                self._resolve(task, actor, options)
        return HeldActor(actor, None if options.is_detached else creation_ref)

    def _resolve(
        self, task: PendingTask, actor: CalledActor, options: ActorOptions, then: Then | None = None
    ) -> None:
        """Registers the actor with its arguments, when these are there. then: see `_register`. Lock held."""

        def failed(task: PendingTask, error: bytes) -> None:
            cause = creation_failed(ARGUMENT_FAILED, error)
            if options.name:
                self._tell_failure(task, options, cause, then)
            self._not_created(actor, cause)

        self._dependencies.resolve(task, lambda ready: self._register(ready, actor, options, then), failed)

    def _register(
        self, task: PendingTask, actor: CalledActor, options: ActorOptions, then: Then | None = None
    ) -> None:
        """Registers the actor, also where its arguments are still to follow; then(reply, error). What follows
        from the answer happens whether or not somebody waits for it. Lock held."""
        request = registration(task, options)
        is_known = actor.is_registered_here
        if is_known:
            actor.is_registered(request)  # another GCS is told of it with its arguments from now on

        def done(reply: Any, error: RpcError | None) -> None:
            if error is None and reply.created:
                if not is_known:
                    actor.is_registered(request)
                    self._registered_here[actor.actor_id] = actor
                    self._actor_tasks.registered(actor)
                # Else the task ended meanwhile, and holds nothing any more.
                if self._tasks.is_pending(task):
                    next_step = self._resolve if request.awaits_arguments else self._hand_over
                    next_step(task, actor, options)
            else:
                # If another caller was first, our actor never existed.
                why = error.message if error is not None else "another caller created the actor first"
                self._tasks.fail(task, RaySystemError(why))
                text = f"the actor {options.class_name} could not be registered: {why}"
                cause = creation_failed(text)
                if is_known:
                    self._tell_failure(task, options, cause)
                self._not_created(actor, cause)
            if then is not None:
                then(reply, error)

        if options.is_detached or actor.creation_id in self._references:
            self._env.gcs.RegisterActor.start(request, done)
        else:
            done(None, RpcError(StatusCode.CANCELLED, "no handle is left"))

    def _hand_over(self, task: PendingTask, actor: CalledActor, options: ActorOptions) -> None:
        """The creation task is the GCS's from now on. Its arguments live as long as the actor does, since a
        restart needs them: the actor's object holds them. Lock held."""
        self._tasks.hand_over(task)
        if task.arg_ids and not options.is_detached:
            if actor.creation_id in self._references:
                self._references.add_nested(actor.creation_id, task.arg_ids)
            self._references.remove_submitted(task.arg_ids)

    def _tell_failure(
        self,
        task: PendingTask,
        options: ActorOptions,
        cause: common_pb2.DeathCause,
        then: Then | None = None,
    ) -> None:
        """The GCS knows the actor, or else whether the name is taken. Others may have handles of it. Lock
        held."""
        request = registration(task, options, cause)
        self._env.gcs.RegisterActor.start(request, then or (lambda reply, error: None))

    def _not_created(self, actor: CalledActor, cause: common_pb2.DeathCause) -> None:
        """The actor never lived. Lock held."""
        self._handles.disown(actor)
        self._actor_tasks.dies(actor, cause)

    # ---- names

    def _register_named(
        self, task: PendingTask, actor: CalledActor, options: ActorOptions
    ) -> HeldActor | None:
        """Registers the actor and waits, since the name may be taken. Returns None, or with get_if_exists the
        actor that has the name already. Raises as `create` does."""
        env = self._env
        answered = Waiter(env.reactor)
        answer: list[Any] = []

        def then(reply: Any, error: RpcError | None) -> None:
            answer.extend((reply, error))
            answered.set()

        with env.lock:
            first_step = self._register if self._dependencies.waits_for(task) else self._resolve
            first_step(task, actor, options, then)
        with self._blocked.asks_head(f"an actor with the name {options.name!r}"):
            env.reactor.wait(answered, env.config.gcs_timeout_s)
        reply: Any
        reply, error = answer or (
            None,
            RpcError(StatusCode.DEADLINE_EXCEEDED, "the GCS did not answer"),
        )
        if error is None and reply.created:
            return None
        with env.lock:
            self._memory_store.mark_seen(actor.creation_id)  # the caller is told otherwise
            if error is None:
                return self._handles.hold(reply.actor.actor_id, None, options.rules)
        if error.code is StatusCode.ALREADY_EXISTS:
            raise ActorAlreadyExistsError(error.message) from None
        raise RaySystemError(f"the actor {options.class_name} could not be registered: {error}") from None

    def named(self, name: str, namespace: str) -> common_pb2.ActorInfo:
        """The actor with this name. Raises ValueError where there is none, RpcError where the GCS does not
        answer."""
        request = gcs_pb2.GetNamedActorRequest(name=name, namespace=namespace)
        with self._env.lock:
            self._dropped.drain()  # the GCS has to hear first of handles that went before
        try:
            with self._blocked.asks_head(f"the actor {name!r}"):
                return self._env.gcs.GetNamedActor(request, timeout_s=self._env.config.gcs_timeout_s)
        except RpcError as error:
            if error.code is not StatusCode.NOT_FOUND:
                raise
            raise ValueError(error.message) from None

    def kill(self, actor_id: bytes, no_restart: bool) -> None:
        """Has the GCS kill the actor; nothing where it never lived. Raises RpcError where the GCS does not
        answer."""
        with self._env.lock:
            task = self._tasks.get(ids.TaskID.for_actor_creation(actor_id).binary())
            if task is not None and _is_only_here(task):
                if no_restart:
                    self._never_begins(task, self._actor_tasks.actor(actor_id))
                return
        request = gcs_pb2.KillActorRequest(actor_id=actor_id, force=True, no_restart=no_restart)
        try:
            self._env.gcs.KillActor(request, timeout_s=self._env.config.gcs_timeout_s)
        except RpcError as error:
            if error.code is not StatusCode.NOT_FOUND:
                raise
            # It could not be registered, or has died long ago, or its arguments are not there.
            if no_restart:
                self._ask_creator(actor_id)
            return
        with self._env.lock:
            self._actor_tasks.killed(actor_id)

    def _ask_creator(self, actor_id: bytes) -> None:
        """The GCS does not know the actor: its creator is to see that it never begins. Waits for the answer.
        Raises RpcError where that does not come in time."""
        task_id = ids.TaskID.for_actor_creation(actor_id).binary()
        waiter = Waiter(self._env.reactor)
        with self._env.lock:
            row = self._references.get(task_id + FIRST_RETURN)
            if row is None or row.owner is None:
                return
            request = core_worker_pb2.CancelTaskRequest(task_id=task_id, to_owner=True)
            # One that has ended has taken the actor with it.
            self._peers.stub_of(row.owner).CancelTask.start(request, lambda reply, error: waiter.set())
        if not self._blocked.wait(waiter, self._env.config.gcs_timeout_s):
            text = "the process that creates the actor did not answer"
            raise RpcError(StatusCode.DEADLINE_EXCEEDED, text)

    def killed_elsewhere(self, task: PendingTask) -> None:
        """Another process has this process's actor killed, which the GCS did not know a moment ago. Lock
        held."""
        actor_id = task.template.spec.actor_creation.actor_id
        if _is_only_here(task):
            self._never_begins(task, self._actor_tasks.actor(actor_id))
        else:
            request = gcs_pb2.KillActorRequest(actor_id=actor_id, force=True, no_restart=True)
            self._env.gcs.KillActor.start(request, lambda reply, error: None)

    def _never_begins(self, task: PendingTask, actor: CalledActor) -> None:
        """The GCS does not know it yet. Lock held."""
        self._tasks.fail(task, RaySystemError(KILLED))
        self._memory_store.mark_seen(actor.creation_id)
        self._not_created(actor, creation_failed(KILLED))


def creation_spec(
    env: Environment,
    job: JobContext,
    descriptor: common_pb2.FunctionDescriptor,
    options: ActorOptions,
    actor_id: bytes,
) -> common_pb2.TaskSpec:
    """The specification of the creation task, without its arguments."""
    creation = common_pb2.ActorCreationSpec(
        actor_id=actor_id,
        max_restarts=options.max_restarts,
        max_task_retries=options.max_task_retries,
        max_concurrency=options.max_concurrency,
        is_asyncio=options.is_asyncio,
        is_detached=options.is_detached,
        name=options.name,
        namespace=options.namespace or job.namespace,
        serialized_handle=options.handle_metadata,
        concurrency_groups=[
            common_pb2.ConcurrencyGroup(name=name, max_concurrency=limit, method_names=methods)
            for name, limit, methods in options.concurrency_groups
        ],
    )
    return common_pb2.TaskSpec(
        type=common_pb2.ACTOR_CREATION_TASK,
        name=f"{options.class_name}.__init__",
        function=descriptor,
        job_id=job.job_id,
        caller=env.address,
        num_returns=1,
        resources=options.resources.to_proto(),
        placement_resources=options.placement_resources.to_proto(),
        strategy=options.strategy,
        runtime_env=options.runtime_env,
        hides_events=options.hides_events,
        outlives_job=job.outlives_job or options.is_detached,
        actor_creation=creation,
    )


def registration(
    task: PendingTask, options: ActorOptions, failure: common_pb2.DeathCause | None = None
) -> gcs_pb2.RegisterActorRequest:
    """The message that registers the actor of this creation task. failure: one of its arguments."""
    registered = gcs_pb2.RegisterActorRequest(
        creation_spec=task.template.spec,
        class_name=options.class_name,
        get_if_exists=options.get_if_exists,
        awaits_arguments=task.waits_for_arguments,
        failure=failure,
    )
    spec, request = registered.creation_spec, task.request
    spec.task_id, spec.depth = request.task_id, request.depth
    if failure is None and not task.waits_for_arguments:
        spec.flat_args = request.flat_args
        spec.args.extend(request.args)
    return registered


def _is_only_here(task: PendingTask) -> bool:
    """Whether the GCS does not know the actor of this creation task, and is not being told of it."""
    return task.waits_for_arguments and not task.template.spec.actor_creation.name

"""From a call in user code to a pending task: arguments, ids, references. The first step of the hot path.

    flat list [None, 1, None, ref, "key", array]
      → primitives stay in one pickle (flat_args); refs become TaskArg.reference; other values are pickled one by
      one, up to 100 KiB
        inline, above that put once and passed by reference

Pickling runs user code and happens outside of the lock; then everything is counted in one step under it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_mono.common import ids
from ray_mono.common.exceptions import ActorAlreadyExistsError, RaySystemError
from ray_mono.core_worker.call_template import CallTemplate, MethodTemplate, TaskTemplate
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import INLINE_BYTES_MAX, ActorOptions, CallRules, TaskOptions
from ray_mono.core_worker.process.config import GCS_TIMEOUT_S
from ray_mono.core_worker.task_errors import ARGUMENT_FAILED
from ray_mono.core_worker.task_submission.actor_creator import creation_spec, registration
from ray_mono.core_worker.task_submission.called_actor import Actor
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.task_manager import PendingTask, return_ids
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

# Stay in the list's own pickle: exact types, nothing inside.
_INLINE_TYPES = frozenset({type(None), bool, int, float, complex})
_TEXT_MAX = 4096


class ActorState:
    """What one handle holds: the actor as this process sees it, and the reference that keeps it alive (None: a weak handle)."""

    __slots__ = ("actor", "actor_id", "creation_ref")

    def __init__(self, actor: Actor, creation_ref: ObjectRef[Any] | None) -> None:
        self.actor = actor
        self.actor_id = actor.actor_id
        self.creation_ref = creation_ref


@dataclass(slots=True)
class _Arguments:
    """Packed arguments: for the specification, and what has to be held."""

    flat: bytes
    args: list[Any]
    refs: list[ObjectRef[Any]]
    """Every reference in them, also inside of values: alive until counted."""


class Submission:
    """Makes pending tasks and hands them to the submitters."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        # creation object id → actor id, of actors that end with their last handle
        self._owned_actors: dict[bytes, bytes] = {}
        # The same of every actor with a handle here that counts.
        self.actors: dict[bytes, bytes] = {}

    # ---- arguments

    def pack(self, flat_args: list[Any], what: str) -> _Arguments:
        """Raises TypeError saying which argument does not pickle."""
        if not flat_args:
            return _Arguments(b"", [], [])
        core = self._core
        packed = _Arguments(b"", [], [])
        flat = flat_args
        for position in range(1, len(flat_args), 2):
            value = flat_args[position]
            kind = type(value)
            if kind in _INLINE_TYPES or (kind in (str, bytes) and len(value) <= _TEXT_MAX):
                continue
            if flat is flat_args:
                flat = list(flat_args)
            flat[position] = None
            if isinstance(value, ObjectRef):
                core.check_session((value,))
                packed.refs.append(value)
                packed.args.append(
                    common_pb2.TaskArg(reference=core.reference_message(value._id), position=position)
                )
                continue
            try:
                serialized = serialization.serialize(value)
            except Exception as error:
                name = flat_args[position - 1] or f"number {position // 2}"
                raise serialization.unpicklable(f"argument {name} of {what}()", value, error) from error
            if serialized.size_bytes > INLINE_BYTES_MAX:
                ref = core.put_serialized(serialized)
                packed.refs.append(ref)
                packed.args.append(
                    common_pb2.TaskArg(reference=core.reference_message(ref._id), position=position)
                )
                continue
            packed.refs.extend(serialized.nested)
            message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
            packed.args.append(common_pb2.TaskArg(value=message, position=position))
        packed.flat = pickle.dumps(flat, 5)
        return packed

    # ---- normal tasks

    def task_template(self, code: Exported, options: TaskOptions) -> TaskTemplate:
        core, descriptor = self._core, code.descriptor
        spec = common_pb2.TaskSpec(
            type=common_pb2.NORMAL_TASK,
            name=options.name or descriptor.python.function_name,
            function=descriptor,
            job_id=core.job_id,
            caller=core.address,
            num_returns=options.num_returns,
            resources=options.resources.to_proto(),
            runtime_env=options.runtime_env,
            max_retries=options.max_retries,
            retry_exceptions=bool(options.retry_exceptions),
            max_calls=options.max_calls,
            hides_events=options.hides_events,
            outlives_job=core.outlives_job,
            generator_backpressure_num_objects=options.generator_backpressure_num_objects,
        )
        with core.lock:
            queue = core.task_submitter.queue_for(options)
            call = core.templates.of_function(spec)
            if options.num_returns < 0:
                call.on_part = core.streams.received

        def submit(task: PendingTask) -> None:
            core.task_submitter.submit(queue, task)

        return TaskTemplate(core, options, queue, call, code.captured, submit)

    def submit_task(self, template: TaskTemplate, flat_args: list[Any]) -> list[ObjectRef[Any]]:
        core = self._core
        core.check_connected()
        options = template.options
        packed = self.pack(flat_args, template.call.name)
        if template.captured:
            packed.refs.extend(template.captured)
        with core.lock:
            core.drain()
            parent = core.context.get()
            task_id = parent.next_task_id(core.nil_actor)
            task, made = self._register(template.call, task_id, parent, packed)
            task.retries_left = options.max_retries
            task.retry_exceptions = options.retry_exceptions
            task.resubmit = template.resubmit
            opened = core.streams.open(task) if template.call.on_part is not None else None
            if packed.args:
                core.tasks.resolve(task, template.resubmit)
            else:
                core.task_submitter.submit(template.queue, task)
            refs = opened if opened is not None else [ObjectRef(object_id, core) for object_id in made]
        if core.reactor.interrupted:
            core.reactor.raise_if_interrupted()
        return refs

    def _register(
        self, call: CallTemplate, task_id: bytes, parent: Any, packed: _Arguments
    ) -> tuple[PendingTask, list[bytes]]:
        """Counts every reference. Returns the ids of what the task returns with it. Lock held."""
        core = self._core
        arg_ids: Sequence[bytes] = ()
        if packed.refs:
            arg_ids = [ref._id for ref in packed.refs]
            core.references.add_submitted(arg_ids)
        made = return_ids(task_id, call.num_returns)
        for object_id in made:
            core.references.add_owned(object_id)
            core.memory_store.expect(object_id)
        task = PendingTask(task_id, call, packed.flat, packed.args or (), parent.depth + 1, arg_ids)
        core.tasks.add(task)
        return task, made

    # ---- actors

    def actor_state(
        self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules
    ) -> ActorState:
        """For a handle that arrived, or was looked up by name."""
        with self._core.lock:
            actor = self._core.actor_submitter.actor(actor_id)
            actor.rules = rules
            if creation_ref is not None:
                actor.creation_id = creation_ref.binary()
                self.actors[actor.creation_id] = actor_id
            return ActorState(actor, creation_ref)

    def _method_call(self, actor: Actor, template: MethodTemplate) -> CallTemplate:
        core, group, task_name = self._core, template.concurrency_group, template.task_name
        of_actor = common_pb2.ActorTaskSpec(
            actor_id=actor.actor_id, concurrency_group=group, task_name=task_name
        )
        spec = common_pb2.TaskSpec(
            type=common_pb2.ACTOR_TASK,
            name=template.name,
            job_id=core.job_id,
            caller=core.address,
            num_returns=template.num_returns,
            generator_backpressure_num_objects=template.generator_backpressure_num_objects,
            hides_events=template.hides_events,
            actor_task=of_actor,
            retry_exceptions=bool(template.retry_exceptions),
        )
        template.resubmit = lambda again: core.actor_submitter.submit(actor, again)
        with core.lock:
            key = spec.SerializeToString(deterministic=True)
            call = actor.templates.get(key)
            if call is None:
                call = actor.templates[key] = core.templates.new(spec)
                call.title = task_name or f"{template.class_name}.{template.name}"
                if template.num_returns < 0:
                    call.on_part = core.streams.received
            template.call = call
        return call

    def submit_actor_task(
        self, state: ActorState, template: MethodTemplate, flat_args: list[Any]
    ) -> list[ObjectRef[Any]]:
        core = self._core
        core.check_connected()
        actor = state.actor
        call = template.call or self._method_call(actor, template)
        packed = self.pack(flat_args, call.name)
        if state.creation_ref is not None:
            packed.refs.append(state.creation_ref)
        with core.lock:
            core.drain()
            if actor.rules.max_pending_calls >= 0:
                core.actor_submitter.check_pending(actor)
            parent = core.context.get()
            task_id = parent.next_task_id(actor.actor_id)
            task, made = self._register(call, task_id, parent, packed)
            task.retries_left = template.max_task_retries
            task.retry_exceptions = template.retry_exceptions
            task.resubmit = template.resubmit
            opened = core.streams.open(task) if call.on_part is not None else None
            core.actor_submitter.submit(actor, task)
            refs = opened if opened is not None else [ObjectRef(object_id, core) for object_id in made]
        if core.reactor.interrupted:
            core.reactor.raise_if_interrupted()
        return refs

    def create_actor(self, code: Exported, options: ActorOptions, flat_args: list[Any]) -> ActorState:
        """Registers the actor with the GCS, which places it; only a named one waits for the answer.

        Raises ActorAlreadyExistsError where the name is taken.
        """
        core = self._core
        core.check_connected()
        packed = self.pack(flat_args, options.class_name)
        packed.refs.extend(code.captured)
        with core.lock:
            core.drain()  # with the last handle goes a name
            parent = core.context.get()
            actor_id = parent.next_actor_id()
            spec = creation_spec(core, code.descriptor, options, actor_id)
            task_id = ids.TaskID.for_actor_creation(actor_id).binary()
            task, made = self._register(CallTemplate(spec, 0), task_id, parent, packed)
            creation_ref: ObjectRef[Any] = ObjectRef(made[0], core)
            actor = core.actor_submitter.actor(actor_id)
            actor.creation_id = creation_ref.binary()
            actor.rules, actor.state = options.rules, common_pb2.PENDING_CREATION
            actor.watching = True  # until it is registered
            self.actors[actor.creation_id] = actor_id
            if not options.is_detached:
                self._owned_actors[actor.creation_id] = actor_id
        if options.name:
            existing = self._register_named(task, actor, options)
            if existing is not None:
                return existing
        else:
            with core.lock:
                core.tasks.resolve(
                    task,
                    lambda ready: self._register_actor(ready, actor, options),
                    lambda failed, error: self._not_created(actor, ARGUMENT_FAILED, error),
                )
        return ActorState(actor, None if options.is_detached else creation_ref)

    def _register_actor(
        self,
        task: PendingTask,
        actor: Actor,
        options: ActorOptions,
        then: Callable[[Any, RpcError | None], None] | None = None,
    ) -> None:
        """Registers, then(reply, error). What follows from the answer happens whether or not somebody waits for it. Lock held."""
        core = self._core

        def done(reply: Any, error: RpcError | None) -> None:
            if error is None and reply.created:
                self._registered(task, actor, options)
            else:
                # Where another caller was first, ours never existed.
                message = error.message if error is not None else "another caller created the actor first"
                core.tasks.fail(task, RaySystemError(message))
                self._not_created(actor, f"the actor {options.class_name} could not be registered: {message}")
            if then is not None:
                then(reply, error)

        if actor.creation_id in core.references:
            core.gcs.RegisterActor.start(registration(task, options), done)
        else:
            done(None, RpcError(StatusCode.CANCELLED, "no handle is left"))

    def _not_created(self, actor: Actor, message: str, error: bytes = b"") -> None:
        """It is dead before it lived; error: that of an argument of its constructor, serialized. Lock held."""
        actor.watching = False
        self._owned_actors.pop(actor.creation_id, None)
        self._core.actor_submitter.fail_creation(actor, message, error)

    def _register_named(self, task: PendingTask, actor: Actor, options: ActorOptions) -> ActorState | None:
        """Registers and waits, since the name may be taken. Returns the other's actor where get_if_exists found one."""
        core = self._core
        asked, answered = Waiter(core.reactor), Waiter(core.reactor)
        answer: list[Any] = []

        def ask(ready: PendingTask) -> None:
            asked.set()
            self._register_actor(ready, actor, options, then)

        def failed(task: PendingTask, error: bytes) -> None:
            asked.set()
            answered.set()
            self._not_created(actor, ARGUMENT_FAILED, error)

        def then(reply: Any, error: RpcError | None) -> None:
            answer.extend((reply, error))
            answered.set()

        with core.lock:
            core.tasks.resolve(task, ask, failed)
        core.blocking_wait(asked, None)
        if answered.done and not answer:
            return self._existing(actor, options)
        core.reactor.wait(answered, GCS_TIMEOUT_S)
        reply: Any
        reply, error = answer or (None, RpcError(StatusCode.DEADLINE_EXCEEDED, "the GCS did not answer"))
        if error is not None:
            if error.code is StatusCode.ALREADY_EXISTS:
                raise ActorAlreadyExistsError(error.message) from None
            raise RaySystemError(f"the actor {options.class_name} could not be registered: {error}") from None
        if reply.created:
            return None
        return self.actor_state(reply.actor.actor_id, None, options.rules)

    def _existing(self, actor: Actor, options: ActorOptions) -> ActorState | None:
        """The actor that has the name, where ours was not created and so does not take it. Raises as create_actor does."""
        try:
            info = self._core.get_named_actor(options.name, options.namespace or self._core.namespace)
        except ValueError:
            return None
        with self._core.lock:
            self._core.memory_store.mark_seen(actor.creation_id)
        if not options.get_if_exists:
            raise ActorAlreadyExistsError(f"the name {options.name!r} is taken")
        return self.actor_state(info.actor_id, None, options.rules)

    def _registered(self, task: PendingTask, actor: Actor, options: ActorOptions) -> None:
        """The GCS has it. Its arguments live as long as it does, since a restart needs them. Lock held."""
        core = self._core
        core.tasks.pending.pop(task.task_id, None)
        if task.arg_ids and not options.is_detached:
            if actor.creation_id in core.references:
                core.references.set_nested(actor.creation_id, tuple(dict.fromkeys(task.arg_ids)))
            core.references.remove_submitted(task.arg_ids)
        actor.watching = False
        core.actor_submitter.watch(actor)

    def reference_ended(self, object_id: bytes) -> None:
        """An object went out of scope. If it stood for an actor, no handle is left here; if it was ours, the GCS ends it. Lock held."""
        actor_id = self.actors.pop(object_id, None)
        if actor_id is None:
            return
        if self._owned_actors.pop(object_id, None) is not None:
            self._core.gcs.ActorOutOfScope.start(
                gcs_pb2.ActorOutOfScopeRequest(actor_id=actor_id), lambda reply, error: None
            )

"""From a call in user code to a pending task: arguments, ids, references. The first step of the hot path.

    flat list [None, 1, None, ref, "key", array]
      → small primitives stay in one pickle (flat_args)
        refs become TaskArg.reference
        other values are pickled one by one: up to 100 KiB inline, above that put once and passed by reference

Pickling runs user code and happens outside of the lock; then everything is counted in one step under it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_mono.core_worker.call_template import CallTemplate, CallTemplates
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, disconnected, require_home
from ray_mono.core_worker.objects.generator_streams import GeneratorStreams
from ray_mono.core_worker.objects.putter import Putter
from ray_mono.core_worker.options import INLINE_BYTES_MAX, TaskOptions
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.task_submission.actor_handles import HeldActor
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.argument_places import ArgumentPlaces
from ray_mono.core_worker.task_submission.bundle_options import in_its_bundle
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.function_manager import Exported
from ray_mono.core_worker.task_submission.lease import SchedulingQueue
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask, RetryExceptions
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2

# Values of exactly these types have nothing inside. They stay in the list's own pickle if they are small.
_FIXED = frozenset({type(None), bool, float, complex})
_NUMBERS = _FIXED | {int}
_SIZED = (str, bytes)
_SMALL_BYTES = 4 << 10
_SMALL_BITS = 8 * _SMALL_BYTES


def stays_inline(value: Any) -> bool:
    """Whether it is pickled with the flat list: small, and nothing inside."""
    kind = type(value)
    if kind is int:
        return value.bit_length() <= _SMALL_BITS
    if kind not in _SIZED:
        return kind in _FIXED
    if len(value) > _SMALL_BYTES:
        return False
    return kind is bytes or value.isascii() or len(value.encode(errors="surrogatepass")) <= _SMALL_BYTES


def are_small_numbers(values: Sequence[Any]) -> bool:
    """Whether all of them are numbers or None, and stay inline: a quick look. There is at least one."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return max(map(int.bit_length, values)) <= _SMALL_BITS
    return kinds <= _FIXED


@dataclass(frozen=True)
class TaskTemplate:
    """What calls of one remote function with one set of options share."""

    options: TaskOptions
    queue: SchedulingQueue
    call: CallTemplate
    captured: tuple[ObjectRef[Any], ...]
    resubmit: Callable[[PendingTask], None]
    code: Exported
    given: TaskOptions
    """As they were given: those of a task in a placement group have other names for resources."""
    in_groups: dict[bytes, TaskTemplate] = field(default_factory=dict, compare=False, repr=False)
    """The same in the placement groups that callers hand down (inherited_groups.py)."""

    @property
    def num_returns(self) -> int:
        return self.options.num_returns


@dataclass
class MethodTemplate:
    """What calls of one method through one handle share."""

    name: str
    class_name: str = ""
    num_returns: int = 1
    generator_backpressure_num_objects: int = 0
    max_task_retries: int = 0
    retry_exceptions: RetryExceptions = False
    concurrency_group: str = ""
    hides_events: bool = False
    task_name: str = ""
    """Shown instead of the method's; empty: that."""
    # Made with the first call.
    call: CallTemplate | None = None
    resubmit: Callable[[PendingTask], None] | None = None

    def prepare(self, call: CallTemplate, resubmit: Callable[[PendingTask], None]) -> CallTemplate:
        """Before the first call."""
        self.call, self.resubmit = call, resubmit
        return call


Packed = tuple[bytes, list[Any], list[ObjectRef[Any]]]
"""Arguments: the pickle of the flat list; those that are messages of their own (TaskArg); and every reference
in them, also inside of values, which stays alive until it is counted."""


class TaskBuilder:
    """Makes pending tasks and hands them to the submitters."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        borrowing: Borrowing,
        streams: GeneratorStreams,
        putter: Putter,
        templates: CallTemplates,
        tasks: TaskManager,
        dependencies: DependencyResolver,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._context = context
        self._borrowing = borrowing
        self._streams = streams
        self._putter = putter
        self._templates = templates
        self._tasks = tasks
        self._dependencies = dependencies
        self._normal_tasks = normal_tasks
        self._argument_places = ArgumentPlaces(env, normal_tasks)
        self._actor_tasks = actor_tasks
        self._home = home
        self._num_built = 0
        self._turn_calls = env.config.turn_calls
        self._lock = env.lock
        self._reactor = env.reactor

    def next_numbers(self, count: int) -> int:
        """Of so many tasks, in the order of submission: the first one's. Lock held."""
        first = self._num_built + 1
        self._num_built += count
        return first

    # ---- arguments

    def pack(self, flat_args: list[Any], what: str) -> Packed:
        """Raises TypeError saying which argument does not pickle."""
        args: list[Any] = []
        refs: list[ObjectRef[Any]] = []
        if not flat_args:
            return b"", args, refs
        others: list[int] = []
        for position in range(1, len(flat_args), 2):
            value = flat_args[position]
            kind = type(value)
            # As stays_inline, without the call: what is large all the same shows by the size of the pickle.
            if not (kind in _NUMBERS or (kind in _SIZED and len(value) <= _SMALL_BYTES)):
                others.append(position)
        flat = self._pack_apart(flat_args, others, what, args, refs) if others else flat_args
        pickled = pickle.dumps(flat, 5)
        if len(pickled) > _SMALL_BYTES:
            large = [position for position in range(1, len(flat), 2) if not stays_inline(flat[position])]
            if large:
                pickled = pickle.dumps(self._pack_apart(flat, large, what, args, refs), 5)
        return pickled, args, refs

    def _pack_apart(
        self, flat: list[Any], positions: list[int], what: str, args: list[Any], refs: list[ObjectRef[Any]]
    ) -> list[Any]:
        """args, refs: take the messages of the values at these positions, and what has to be held for them.
        Returns the list without these values."""
        rest = list(flat)
        for position in positions:
            value, rest[position] = flat[position], None
            if isinstance(value, ObjectRef):
                require_home(value, self._home)
                refs.append(value)
                reference = self._borrowing.message_of(value._id)
                args.append(common_pb2.TaskArg(reference=reference, position=position))
                continue
            try:
                serialized = serialization.serialize(value)
            except Exception as error:
                name = f"argument {flat[position - 1] or f'number {position // 2}'} of {what}()"
                raise serialization.unpicklable(name, value, error) from error
            if serialized.size_bytes > INLINE_BYTES_MAX:
                ref = self._putter.put(serialized)
                refs.append(ref)
                reference = self._borrowing.message_of(ref._id)
                args.append(common_pb2.TaskArg(reference=reference, position=position))
                continue
            refs.extend(serialized.nested)
            message = common_pb2.SerializedObject(metadata=serialized.metadata, data=serialized.to_bytes())
            args.append(common_pb2.TaskArg(value=message, position=position))
        return rest

    # ---- normal tasks

    def task_template(self, code: Exported, options: TaskOptions) -> TaskTemplate:
        """Raises ValueError for what fits into no bundle of its placement group."""
        given = options
        if options.joins_group:
            self._context.has_capturing()
        options = in_its_bundle(options, f"{options.name}()")
        descriptor, job = code.descriptor, self._context.job
        spec = common_pb2.TaskSpec(
            type=common_pb2.NORMAL_TASK,
            name=options.name or descriptor.python.function_name,
            function=descriptor,
            job_id=job.job_id,
            caller=self._env.address,
            num_returns=options.num_returns,
            resources=options.resources.to_proto(),
            runtime_env=options.runtime_env,
            max_retries=options.max_retries,
            retry_exceptions=bool(options.retry_exceptions),
            max_calls=options.max_calls,
            hides_events=options.hides_events,
            outlives_job=job.outlives_job,
            generator_backpressure_num_objects=options.generator_backpressure_num_objects,
        )
        if given is not options and options.strategy is not None:
            spec.strategy.CopyFrom(options.strategy)  # the task has to know what it hands down
        with self._lock:
            queue = self._normal_tasks.queue_for(options)
            on_part = self._streams.received if options.num_returns < 0 else None
            call = self._templates.of_function(spec, on_part, queue.number)

        def submit(task: PendingTask) -> None:
            place = self._argument_places.queue_for(queue, task) if task.has_places else queue
            self._normal_tasks.submit(place, task)

        return TaskTemplate(options, queue, call, code.captured, submit, code, given)

    def submit_task(self, template: TaskTemplate, flat_args: list[Any]) -> list[Any]:
        """An ObjectRef for each return; an ObjectRefGenerator for a generator. Raises TypeError,
        RaySystemError."""
        if self._reactor.is_closed:
            raise disconnected()
        call, options = template.call, template.options
        flat, args, refs = self.pack(flat_args, call.title)
        if template.captured:
            refs.extend(template.captured)
        with self._lock:
            parent = self._context.get()
            self._num_built += 1
            task = PendingTask(
                parent.next_task_id(self._context.job.nil_actor),
                call,
                flat,
                args,
                parent.kind.depth + 1,
                [ref._id for ref in refs] if refs else (),
                options.max_retries,
                options.retry_exceptions,
                template.resubmit,
                self._num_built,
            )
            made = self._tasks.add_pending(task)
            if call.on_part is not None:
                returned = self._streams.open(task.task_id, call.spec, made[0])
            elif len(made) == 1:
                returned = [ObjectRef(made[0], self._home)]
            else:
                returned = [ObjectRef(object_id, self._home) for object_id in made]
            if args:
                self._dependencies.resolve(task, template.resubmit)
            else:
                self._normal_tasks.submit(template.queue, task)
        if not task.number % self._turn_calls:
            self._reactor.take_turn()
        if self._reactor.interrupted:
            self._reactor.raise_if_interrupted()
        return returned

    # ---- calls of actors

    def submit_actor_task(self, held: HeldActor, template: MethodTemplate, flat_args: list[Any]) -> list[Any]:
        """As submit_task. Raises PendingCallsLimitExceeded, too."""
        if self._reactor.is_closed:
            raise disconnected()
        actor = held.actor
        call = template.call or self.method_call(actor, template)
        flat, args, refs = self.pack(flat_args, call.title)
        with self._lock:
            if actor.rules.max_pending_calls >= 0:
                self._actor_tasks.check_pending(actor)
            parent = self._context.get()
            self._num_built += 1
            task = PendingTask(
                parent.next_task_id(actor.actor_id),
                call,
                flat,
                args,
                parent.kind.depth + 1,
                [*(ref._id for ref in refs), *held.creation_ids] if refs else held.creation_ids,
                template.max_task_retries,
                template.retry_exceptions,
                template.resubmit,
                self._num_built,
            )
            made = self._tasks.add_pending(task)
            if call.on_part is not None:
                returned = self._streams.open(task.task_id, call.spec, made[0])
            elif len(made) == 1:
                returned = [ObjectRef(made[0], self._home)]
            else:
                returned = [ObjectRef(object_id, self._home) for object_id in made]
            self._actor_tasks.submit(actor, task)
        if not task.number % self._turn_calls:
            self._reactor.take_turn()
        if self._reactor.interrupted:
            self._reactor.raise_if_interrupted()
        return returned

    def method_call(self, actor: CalledActor, template: MethodTemplate) -> CallTemplate:
        """The constant part of its calls."""
        if template.call is not None:
            return template.call
        group, task_name = template.concurrency_group, template.task_name
        spec = common_pb2.TaskSpec(
            type=common_pb2.ACTOR_TASK,
            name=template.name,
            job_id=self._context.job.job_id,
            caller=self._env.address,
            num_returns=template.num_returns,
            generator_backpressure_num_objects=template.generator_backpressure_num_objects,
            hides_events=template.hides_events,
            actor_task=common_pb2.ActorTaskSpec(
                actor_id=actor.actor_id, concurrency_group=group, task_name=task_name
            ),
            retry_exceptions=bool(template.retry_exceptions),
        )
        with self._lock:
            key = spec.SerializeToString(deterministic=True)
            call = actor.templates.get(key)
            if call is None:
                title = task_name or f"{template.class_name}.{template.name}"
                on_part = self._streams.received if template.num_returns < 0 else None
                call = actor.templates[key] = self._templates.new(spec, title, on_part)
            return template.prepare(call, lambda again: self._actor_tasks.submit(actor, again))

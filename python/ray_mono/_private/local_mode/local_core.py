"""`init(local_mode=True)`: tasks and actors run at once, in turn, in the calling thread. For debugging.

LocalCore stands in for CoreWorker: the API above does not know to which of them it speaks. Values are pickled
here, too. So a program that works locally does not depend on sharing its objects with its tasks, and is told
what does not pickle, as on a cluster. A task runs inside `.remote()`, so that its value is always ready.
Resources are not counted. Coroutine methods run on an event loop of their actor's own.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from ray_mono._private.local_mode.local_actor import LocalActor, LocalActorState
from ray_mono._private.local_mode.local_call import LocalCall, describe, pack, read
from ray_mono._private.local_mode.local_global_state import LocalGlobalState
from ray_mono._private.local_mode.local_placement_groups import LocalPlacementGroups
from ray_mono._private.local_mode.local_streams import LocalStream
from ray_mono._private.remote.exported_code import display_name
from ray_mono._private.remote.signature import recover
from ray_mono.common import ids
from ray_mono.common.ending import run_steps
from ray_mono.common.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    RaySystemError,
    ReferenceCountingAssertionError,
    TaskPlacementGroupRemoved,
)
from ray_mono.common.explanation import Explanation, Outlook, WaitCode, WaitingOverview, WaitLink
from ray_mono.common.ray_error import RayError
from ray_mono.common.scheduling.labels import NODE_ID_LABEL
from ray_mono.common.task_error import RayTaskError
from ray_mono.core_worker.context import InGroup, JobContext, TaskContext, TaskKind, WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef, require_home
from ray_mono.core_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from ray_mono.core_worker.options import DYNAMIC_RETURNS, ActorOptions, CallRules, TaskOptions
from ray_mono.core_worker.task_errors import ActorExit, TaskFailed
from ray_mono.core_worker.task_execution.generator_runner import Failed, first_items
from ray_mono.core_worker.task_submission import bundle_options
from ray_mono.core_worker.task_submission.bundle_options import Options, in_its_bundle
from ray_mono.core_worker.task_submission.task_builder import MethodTemplate
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, object_manager_pb2


@dataclass
class _Object:
    """A value that somebody has a reference to."""

    num_references: int
    serialized: serialization.Serialized
    """Its `nested` list keeps the references inside alive."""
    stream: LocalStream | None = None
    """The generator whose end the value stands for."""


@dataclass(frozen=True)
class LocalTask:
    """What calls of one remote function share."""

    function: Callable[..., Any]
    given: TaskOptions
    options: TaskOptions
    """Those given, in their placement group."""

    @property
    def num_returns(self) -> int:
        return self.options.num_returns


class LocalCore:
    """A CoreInterface (core_worker/interface.py) that runs everything in its own process."""

    is_driver = True

    def __init__(self, namespace: str, resources: dict[str, float]) -> None:
        """resources: what cluster_resources() tells, in units."""
        rng = random.SystemRandom()
        self.worker_id = ids.WorkerID.from_random(rng).binary()
        self.node_id = ids.NodeID.from_random(rng).binary()
        self.job_id = ids.JobID.from_random(rng).binary()
        self.namespace = namespace
        self.session_dir = ""
        self.runtime_env, self.task_runtime_env = "{}", ""
        self.default_actor_lifetime = ""
        self.node_host = "127.0.0.1"
        self.node_labels: dict[str, str] = {NODE_ID_LABEL: self.node_id.hex()}
        main = TaskContext(ids.TaskID.for_driver(self.job_id).binary(), TaskKind(self.job_id))
        self.context = WorkerContext(main, JobContext(self.job_id, namespace))
        node = common_pb2.NodeInfo(node_id=self.node_id, host=self.node_host, is_head=True)
        self.actors: dict[bytes, LocalActor] = {}
        self.global_state = LocalGlobalState(node, self.job_id, self.actors, resources)
        self._steps_of_shutdown: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._objects: dict[bytes, _Object] = {}
        self._dropped: deque[bytes] = deque()
        # creation object id → actor id
        self._creations: dict[bytes, bytes] = {}
        self.placement_groups = LocalPlacementGroups(
            self.context, self.node_id, resources, rng, self._put_serialized
        )

    # ---- references

    def _new_ref(self, object_id: bytes, serialized: serialization.Serialized) -> ObjectRef[Any]:
        with self._lock:
            self._drain()
            self._objects[object_id] = _Object(1, serialized)
        return ObjectRef(object_id, self)

    def reference_dropped(self, object_id: bytes) -> None:
        """From a finalizer: any thread, any moment."""
        self._dropped.append(object_id)

    def _drain(self) -> None:
        while self._dropped:
            object_id = self._dropped.popleft()
            row = self._objects.get(object_id)
            if row is None:
                continue
            row.num_references -= 1
            if not row.num_references:
                # What was inside is dropped with it, and drained by this loop.
                del self._objects[object_id], row
                actor_id = self._creations.pop(object_id, None)
                if actor_id is not None:
                    self._end_actor(actor_id, "no handle of it is left")

    def owner_address_of(self, ref: ObjectRef[Any]) -> bytes:
        if self.context.is_leaving:
            raise RaySystemError(f"{ref!r} belongs to a session that is over")
        return b""

    def keep(self, ref: ObjectRef[Any]) -> None:
        """Keeps the object for good: the reference was pickled where it cannot be counted."""
        with self._lock:
            self._objects[ref._id].num_references += 1

    def reference_arrived(self, object_id: bytes, owner: bytes) -> ObjectRef[Any]:
        """A reference was unpickled."""
        with self._lock:
            row = self._objects.get(object_id)
            if row is None:
                raise ReferenceCountingAssertionError(object_id.hex())
            row.num_references += 1
        return ObjectRef(object_id, self)

    def location_of(self, ref: ObjectRef[Any]) -> tuple[Sequence[bytes], int | None]:
        """It always lies in this process."""
        with self._lock:
            return [], self._objects[ref._id].serialized.size_bytes

    def store_stats(self) -> object_manager_pb2.StoreStats:
        """There is no store."""
        return object_manager_pb2.StoreStats()

    def reference_counts(self) -> int:
        """How many objects somebody has a reference to."""
        with self._lock:
            self._drain()
            return len(self._objects)

    # ---- objects

    def put(self, value: Any) -> ObjectRef[Any]:
        return self._put_serialized(serialization.serialize(value, "the value of put()"))

    def _put_serialized(self, serialized: serialization.Serialized) -> ObjectRef[Any]:
        return self._new_ref(self.context.get().next_put_id(), serialized)

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        for ref in refs:
            require_home(ref, self)
            if self._is_error(ref):
                raise self._error(ref)
        return [self._load(ref) for ref in refs]

    def _error(self, ref: ObjectRef[Any]) -> BaseException:
        # `get` raises what this returns, and keeps it in no variable. The error's traceback holds the frames
        # that it passes through. A variable there would close a circle, and keep what the error refers to.
        error: BaseException = self._load(ref)
        return error.as_instanceof_cause() if isinstance(error, RayTaskError) else error

    def _load(self, ref: ObjectRef[Any]) -> Any:
        with self._lock:
            self._drain()
            row = self._objects[ref.binary()]
            serialized, stream = row.serialized, row.stream
        if stream is not None:
            stream.run_out()
        return read(serialized)

    def _is_error(self, ref: ObjectRef[Any]) -> bool:
        return self._objects[ref.binary()].serialized.metadata == serialization.ERROR

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None, fetch_local: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        for ref in refs:
            require_home(ref, self)
        return refs[:num_returns], refs[num_returns:]

    def as_future(self, ref: ObjectRef[Any]) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(self.get([ref], None)[0])
        except StopIteration as error:
            # No future takes it, nor does a coroutine let it through.
            future.set_exception(RuntimeError(f"the task raised StopIteration: {error}"))
        except Exception as error:
            future.set_exception(error)
        return future

    # ---- tasks

    def export(self, function_or_class: Any, kind: str) -> Any:
        """Nothing is sent anywhere: the object is its own descriptor."""
        return function_or_class

    def task_template(self, code: Callable[..., Any], options: TaskOptions) -> LocalTask:
        return LocalTask(code, options, in_its_bundle(options, f"{options.name}()"))

    def submit_task(self, template: LocalTask, flat_args: list[Any]) -> list[ObjectRef[Any]]:
        options = template.options
        if bundle_options.is_handed_down(template.given, self.context.placement_group()):
            options = self._placed(template.given, f"{options.name}()")
        call = LocalCall(
            lambda args, kwargs: template.function(*args, **kwargs),
            options.name,
            options.num_returns,
            options.max_retries if options.retry_exceptions else 0,
            options.retry_exceptions,
            function_descriptor=describe(template.function, function_name=display_name(template.function)),
            resources=options.resources,
            backpressure=options.generator_backpressure_num_objects,
            group=InGroup.of(options.strategy),
        )
        task_id = self._next_task_id(ids.nil_actor_of(self.job_id))
        if self.placement_groups.is_removed(call.group.group_id):
            return self._failed(call, task_id, TaskPlacementGroupRemoved.of(call.group.group_id))
        return self._run(call, task_id, flat_args)

    def _placed(self, options: Options, what: str) -> Options:
        """In the group that the caller hands down, or its own. Raises ValueError for what does not fit."""
        group, bundles_of = self.context.placement_group(), self.placement_groups.bundles_of
        return in_its_bundle(bundle_options.handed_down(options, group, bundles_of), what)

    def _failed(self, call: LocalCall, task_id: bytes, error: BaseException) -> list[Any]:
        """A call that does not run."""
        value = serialization.serialize_error(error)
        if call.num_returns < 0:
            return self._run_generator(call, TaskContext(task_id, TaskKind(self.job_id)), [], value)
        object_ids = [ids.object_id_bytes(task_id, index) for index in range(1, call.num_returns + 1)]
        return [self._new_ref(object_id, value) for object_id in object_ids]

    def submit_tasks(
        self, template: LocalTask, items: Sequence[Any], chunk: int, refs: list[ObjectRef[Any]]
    ) -> None:
        """chunk: nothing travels here."""
        for item in items:
            refs.extend(self.submit_task(template, [None, item]))

    def _next_task_id(self, actor_id: bytes) -> bytes:
        with self._lock:
            return self.context.get().next_task_id(actor_id)

    def _run(self, call: LocalCall, task_id: bytes, flat_args: list[Any]) -> list[ObjectRef[Any]]:
        packed = pack(call.name, flat_args)
        parent = self.context.get()
        task = TaskContext(
            task_id,
            TaskKind(
                self.job_id,
                call.name,
                parent.kind.depth + 1,
                actor_id=call.actor_id,
                resources=call.resources,
                function=call.function_descriptor,
                group=call.group,
            ),
        )
        if call.num_returns < 0:
            return self._run_generator(call, task, packed)
        token = self.context.enter(task)
        try:
            results = self._attempts(call, packed)
        finally:
            self.context.leave(token)
        return [
            self._new_ref(ids.object_id_bytes(task_id, index), result)
            for index, result in enumerate(results, 1)
        ]

    def _run_generator(
        self, call: LocalCall, task: TaskContext, packed: list[serialization.Serialized], error: Any = None
    ) -> list[Any]:
        """error: do not run it; this value is its only item."""
        retries = iter(range(call.retries) if call.retries >= 0 else itertools.count())

        def failed(failure: BaseException) -> serialization.Serialized | None:
            wrapped = call.error_of(failure)
            if call.covers(wrapped) and next(retries, None) is not None:
                return None
            return serialization.serialize_error(wrapped)

        def begin() -> Any:
            return self._call_function(call, packed)

        stream = LocalStream(self.context, self._new_ref, task, begin, failed, call.backpressure)
        end_id = ids.object_id_bytes(task.task_id, 1)
        if call.num_returns == DYNAMIC_RETURNS and error is None:
            return [
                self._new_ref(end_id, serialization.serialize(DynamicObjectRefGenerator(stream.run_out())))
            ]
        end = self._new_ref(end_id, error or serialization.serialize(None))
        if call.num_returns == DYNAMIC_RETURNS:
            return [end]
        if error is not None:
            stream.fail(error)
        else:
            stream.run()
            self._objects[end_id].stream = stream
        return [ObjectRefGenerator(stream, end, None)]

    def _attempts(
        self, call: LocalCall, packed: list[serialization.Serialized]
    ) -> list[serialization.Serialized]:
        while True:
            try:
                return self._attempt(call, packed)
            except BaseException as error:
                wrapped = call.error_of(error)
                if not call.retries or not call.covers(wrapped):
                    return [serialization.serialize_error(wrapped)] * call.num_returns
                call = LocalCall(**{**vars(call), "retries": call.retries - 1})

    def _call_function(self, call: LocalCall, packed: list[serialization.Serialized]) -> Any:
        try:
            flat = [read(each) for each in packed]
            for position, value in enumerate(flat):
                if isinstance(value, ObjectRef):
                    # Raises what failed where the argument was made.
                    flat[position] = self.get([value], None)[0]
        except RayError as error:
            raise TaskFailed(call.argument_error(error)) from None
        return call.function(*recover(flat))

    def _attempt(
        self, call: LocalCall, packed: list[serialization.Serialized]
    ) -> list[serialization.Serialized]:
        result = self._call_function(call, packed)
        if isinstance(result, GeneratorType):
            result = first_items(result, call.num_returns, call.name, keeps_first=not call.retry_exceptions)
        if call.num_returns == 0:
            return []
        if call.num_returns == 1:
            return [serialization.serialize(result)]
        values = list(result)
        if len(values) != call.num_returns:
            raise ValueError(f"the task returned {len(values)} values, but num_returns is {call.num_returns}")
        return [
            serialization.serialize_error(call.error_of(value.error))
            if isinstance(value, Failed)
            else serialization.serialize(value)
            for value in values
        ]

    # ---- actors

    def create_actor(self, code: type, options: ActorOptions, flat_args: list[Any]) -> LocalActorState:
        options = self._placed(options, options.class_name)
        if options.name:
            existing = self.named_actor(options.name, options.namespace)
            if existing is not None:
                if options.get_if_exists:
                    return LocalActorState(existing.actor_id, self._creation_ref(existing))
                raise ActorAlreadyExistsError(
                    f"the name {options.name!r} is taken by another actor of namespace {options.namespace!r}"
                )
        actor_id = self.context.get().next_actor_id()
        actor = LocalActor(actor_id, code, options)
        self.actors[actor_id] = actor
        task_id = ids.TaskID.for_actor_creation(actor_id).binary()
        creation_ref = self._run(actor.creation(), task_id, flat_args)[0]
        if self._is_error(creation_ref) and actor.death is None:
            actor.die(ActorDiedError(self._load(creation_ref), actor_id.hex()))
        if options.is_detached:
            return LocalActorState(actor_id, None)
        self._creations[creation_ref.binary()] = actor_id
        return LocalActorState(actor_id, creation_ref)

    def _creation_ref(self, actor: LocalActor) -> ObjectRef[Any] | None:
        for object_id, actor_id in self._creations.items():
            if actor_id == actor.actor_id:
                return self.reference_arrived(object_id, b"")
        return None

    def method_template(self, method_name: str, class_name: str, **options: Any) -> MethodTemplate:
        return MethodTemplate(method_name, class_name, **options)

    def submit_actor_task(
        self, held: LocalActorState, template: MethodTemplate, flat_args: list[Any]
    ) -> list[ObjectRef[Any]]:
        actor = self.actors[held.actor_id]
        task_id = self._next_task_id(actor.actor_id)
        call = actor.call_of(template)
        if actor.death is not None:
            return self._failed(call, task_id, actor.death)
        return self._run(call, task_id, flat_args)

    def submit_actor_tasks(
        self,
        held: LocalActorState,
        template: MethodTemplate,
        items: Sequence[Any],
        chunk: int,
        refs: list[ObjectRef[Any]],
    ) -> None:
        for item in items:
            refs.extend(self.submit_actor_task(held, template, [None, item]))

    def hold_actor(
        self, actor_id: bytes, creation_ref: ObjectRef[Any] | None, rules: CallRules
    ) -> LocalActorState:
        return LocalActorState(actor_id, creation_ref)

    def named_actor(self, name: str, namespace: str) -> LocalActor | None:
        """The living actor of that name."""
        for actor in self.actors.values():
            if (actor.options.name, actor.options.namespace) == (name, namespace) and actor.death is None:
                return actor
        return None

    def get_named_actor(self, name: str, namespace: str) -> common_pb2.ActorInfo:
        actor = self.named_actor(name, namespace)
        if actor is None:
            raise ValueError(f"there is no actor named {name!r} in namespace {namespace!r}")
        return actor.info(self.job_id)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        actor = self.actors[actor_id]
        if actor.death is None and not (not no_restart and actor.restart()):
            self._end_actor(actor_id, "killed by kill()")

    def _end_actor(self, actor_id: bytes, why: str) -> None:
        actor = self.actors[actor_id]
        if actor.death is None:
            actor.die(actor.dead_because(why))

    # ---- the rest

    def run_function_on_all_workers(self, function: Callable[[dict[str, Any]], None]) -> None:
        function({"worker": self})

    def cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool) -> None:
        """Does nothing: a task is over before there is a reference to its value."""
        require_home(ref, self)

    def exit_actor(self) -> None:
        if self.context.actor_id():
            raise ActorExit
        raise TypeError("exit_actor() was called outside of an actor: call it inside an actor's method")

    def explain(self, kind_name: str, id_: bytes, is_sure: bool = True) -> Explanation:
        text = f"{kind_name.replace('_', ' ')} {id_.hex()}: in local mode calls run as they are made"
        return Explanation((WaitLink(kind_name, id_.hex(), "", WaitCode.READY, text, ""),), Outlook.MOVES)

    def explain_all(self) -> WaitingOverview:
        return WaitingOverview(())

    def is_task_cancelled(self) -> bool:
        if self.context.is_main:
            raise RuntimeError(
                "is_canceled() can only be asked by a task or an actor, and this process is a driver"
            )
        actor = self.actors.get(self.context.actor_id())
        if actor is not None and actor.options.is_asyncio:
            raise RuntimeError(
                "is_canceled() is not for async actors: there a call that is cancelled gets an"
                " asyncio.CancelledError"
            )
        return False

    def add_span(self, name: str, extra_data: str, started_s: float) -> None:
        """There is no timeline."""

    def send_events(self) -> None:
        """There is no timeline."""

    def at_shutdown(self, step: Callable[[], None]) -> None:
        self._steps_of_shutdown.append(step)

    def abandon(self) -> None:
        """Does nothing: a fork has its own copy of everything. It is told that it is not connected."""

    def shutdown(self) -> None:
        if self.context.is_leaving:
            return
        self.context.leave_cluster()
        interrupt = run_steps(self._steps_of_shutdown, "leaving local mode")
        for actor_id in list(self.actors):
            self._end_actor(actor_id, "its session is over")
        if interrupt is not None:
            raise interrupt

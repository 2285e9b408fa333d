"""The objects of a simulated driver or worker: the core worker's own reference counter, memory store, task
table, ownership protocol and end of a task, over simulated connections.

References are explicit: whoever holds one calls `drop`, which is what an ObjectRef's finalizer does. A value
is nothing but the references inside it, and small: there are no stores here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.config import CoreWorkerConfig
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import Reference, ReferenceCounter
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_execution.task_reply import TaskReplies
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager, TaskState
from ray_mono.core_worker.values import serialization

# From here, since it gives its classes the names under which they are pickled: a run repeats whatever else
# was imported.
from ray_mono.exceptions import RayError
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.simulation.object_checkers import ObjectJournal
from tests.simulation.peers import Calls, Peers
from tests.simulation.process import SimProcess

PLAIN = b"simulated"
_TEMPLATE = CallTemplate(common_pb2.TaskSpec(name="simulated", num_returns=1), 0)


@dataclass
class Arrived:
    """A task as `TaskReplies` wants it: what came with its arguments."""

    arrived: dict[bytes, bytes] = field(default_factory=dict)
    held: list[bytes] = field(default_factory=list)
    has_run: bool = False


class Handed:
    """The references inside a value that is on its way out: one local reference each, until `clear`."""

    def __init__(self, objects: SimObjects, object_ids: Iterable[bytes]) -> None:
        self._objects = objects
        self.nested = self
        self._ids = list(object_ids)

    def __iter__(self) -> Any:
        return (SimpleNamespace(_id=object_id) for object_id in self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def clear(self) -> None:
        ids, self._ids = self._ids, []
        for object_id in ids:
            self._objects.drop(object_id)


class ReplyTo:
    """A served call: what is answered goes to whoever awaits `reply_of`."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def reply(self, message: Any, rings: bool = True) -> None:
        if not self._answer.done():
            self._answer.set_result(message)

    async def answered(self) -> Any:
        return await self._answer


async def answer_of(method: Callable[[Any, Any], None], request: Any) -> Any:
    """What a method of the core worker's protocol replies, at once or later."""
    to = ReplyTo()
    method(request, to)
    return await to.answered()


class Neighbours:
    """What the parts ask of those that are not here: plasma, streams, the board, the main thread, the
    reactor."""

    is_next_short = False
    actor = None

    def rest(self) -> None:
        """The board's."""

    def drain(self) -> None:
        """Nothing waits: `drop` counts at once."""

    def flush(self) -> None:
        """Messages leave at once."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        """Nothing is done about answers that wait for long."""
        return SimpleNamespace(cancel=lambda: None)

    def note(self, object_id: bytes, data: bytes) -> None:
        """An error that nobody looked at."""


class SimPeers:
    """A PeerPool of simulated connections."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def stub_for(self, address: common_pb2.Address) -> Calls:
        return self._peers.calls_to(address)

    def stub_of(self, address: bytes) -> Calls:
        return self._peers.calls_to(common_pb2.Address.FromString(address))


class SimObjects:
    """One process's references, values, and conversation with other owners."""

    borrowing: Borrowing
    resolver: FutureResolver
    unpickled: UnpickledReferences
    tasks: TaskManager
    dependencies: DependencyResolver
    replies: TaskReplies

    def __init__(self, process: SimProcess, peers: Peers, journal: ObjectJournal) -> None:
        self.process = process
        self.job_id = b""
        self.worker_id = b""
        self.owner_address = b""
        self.references = ReferenceCounter(self._out_of_scope)
        self.memory_store = MemoryStore(self.references.is_referenced)
        self._peers = peers
        self._journal = journal

    def joins(self, address: common_pb2.Address) -> None:
        """The process is reached here: its parts are made."""
        self.worker_id = address.worker_id
        self.owner_address = address.SerializeToString(deterministic=True)
        others: Any = Neighbours()
        env: Any = SimpleNamespace(
            address=address,
            worker_id=self.worker_id,
            owner_address=self.owner_address,
            node_id=address.node_id,
            node=SimpleNamespace(host="simulated"),
            pid=0,
            lock=contextlib.nullcontext(),
            reactor=others,
            config=CoreWorkerConfig(),
        )
        peers: Any = SimPeers(self._peers)
        references, store = self.references, self.memory_store
        self.borrowing = Borrowing(env, references, store, peers, lambda object_id: None)
        self.resolver = FutureResolver(env, references, store, others, peers, self.borrowing)
        self.unpickled = UnpickledReferences(env, references, self.borrowing)
        self.tasks = TaskManager(references, store, others, self.borrowing, others, others, others)
        self.dependencies = DependencyResolver(env, store, self.resolver, self.borrowing, self.tasks)
        self.replies = TaskReplies(
            env, references, self.borrowing, others, others, others, others, others, others
        )
        self._journal.joined(self)

    def _out_of_scope(self, object_id: bytes, row: Reference) -> None:
        self.memory_store.remove(object_id)
        if row.owner is None:
            self._journal.freed(self, object_id)
        for answer in row.removal_waiters or ():
            answer()

    # ---- what a program does

    def put(self, object_id: bytes, nested: Iterable[bytes]) -> None:
        """A new object with references inside; one local reference to it."""
        inside = tuple(dict.fromkeys(nested))
        self.references.add_owned(object_id, inside)
        self.memory_store.put_inline(object_id, PLAIN, self._value(inside))

    def drop(self, object_id: bytes) -> None:
        self.references.remove_local(object_id)

    async def get(self, object_id: bytes) -> list[bytes]:
        """The references inside, one local reference each; none where it is an error, which is judged. The
        caller holds it."""
        self.resolver.ask_owner(object_id)
        ready = ReplyTo()
        if not self.memory_store.when_ready(object_id, lambda: ready.reply(None)):
            await ready.answered()
        entry = self.memory_store.get(object_id)
        if entry is None or entry.data is None:
            raise AssertionError(f"a value without data: {self.references.story(object_id)}")
        if entry.metadata == serialization.ERROR:
            self._journal.error_read(self, serialization.deserialize(entry.metadata, entry.data))
            return []
        self._journal.value_read()
        outer = self.unpickled.begin(object_id)
        try:
            return self._read(entry.data)
        finally:
            self.unpickled.end(outer)

    def arguments(self, spec: common_pb2.TaskSpec, task: Arrived) -> list[bytes]:
        """The references inside a task's arguments, one local reference each."""
        arrived: list[bytes] = []
        self.unpickled.collect_into(task.arrived)
        for arg in spec.args:
            if arg.value.metadata == PLAIN:
                arrived += self._read(arg.value.data)
            else:
                error = serialization.deserialize(arg.value.metadata, arg.value.data)
                self._journal.error_read(self, error)
        self.unpickled.collect_into(None)
        return arrived

    def answer(
        self,
        spec: common_pb2.TaskSpec,
        task: Arrived,
        reply: core_worker_pb2.PushTaskReply,
        inside: list[bytes],
        to: ReplyTo,
    ) -> None:
        """The task's one return has these references inside: takes over one local reference to each. `to`
        hears when owners know."""
        call: Any = SimpleNamespace(spec=spec, answer_to=to)
        self.replies._settle(call, task, reply, [Handed(self, inside)])  # type: ignore[arg-type]

    # ---- tasks

    def submit(
        self,
        task_id: bytes,
        by_value: list[bytes],
        by_reference: list[bytes],
        push: Callable[[PendingTask], None],
    ) -> bytes:
        """A task with these in an argument's value and as arguments; push(task) follows when they are there.
        Returns the object that it makes, with one local reference.
        """
        args = [
            common_pb2.TaskArg(reference=self.borrowing.message_of(object_id)) for object_id in by_reference
        ]
        args.append(common_pb2.TaskArg(value=self.value_of(by_value)))
        task = PendingTask(task_id, _TEMPLATE, b"", args, 0, [*by_value, *by_reference])
        [made] = self.tasks.add_pending(task)
        self.dependencies.resolve(task, push, self._failed)
        return made

    def _failed(self, task: PendingTask, error: bytes) -> None:
        """An argument is an error."""
        self._journal.error_read(self, serialization.deserialize(serialization.ERROR, error))

    def ended(
        self,
        task: PendingTask,
        reply: core_worker_pb2.PushTaskReply | None,
        executor: common_pb2.Address | None,
    ) -> None:
        """The answer came, or none will."""
        if task.state is TaskState.PENDING_NODE_ASSIGNMENT:
            task.pushed()
        if reply is None or executor is None:
            self.tasks.fail(task, RayError("its workers died, or it was cancelled"))
        else:
            self.tasks.complete(task, reply, executor)

    # ---- values

    def value_of(self, inside: Iterable[bytes]) -> common_pb2.SerializedObject:
        """With these references inside."""
        nested = [self.borrowing.message_of(object_id) for object_id in inside]
        return common_pb2.SerializedObject(metadata=PLAIN, data=self._value(inside), nested=nested)

    def _value(self, inside: Iterable[bytes]) -> bytes:
        nested = [self.borrowing.message_of(object_id) for object_id in inside]
        return common_pb2.SerializedObject(nested=nested).SerializeToString(deterministic=True)

    def _read(self, data: bytes) -> list[bytes]:
        return [
            self._arrived(reference.object_id, reference.owner.SerializeToString(deterministic=True))
            for reference in common_pb2.SerializedObject.FromString(data).nested
        ]

    def _arrived(self, object_id: bytes, owner: bytes) -> bytes:
        """As CoreWorker.reference_arrived."""
        self.unpickled.arrived(object_id, owner)
        return object_id

    @property
    def owns_anything(self) -> bool:
        return any(row.owner is None for _, row in self.references.items())

"""Why an object is not there, or a call is not over, as the process knows it that owns or submitted it: its
links of the chains that docs/internals/explain.md tells of. It only looks. Lock held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence

from ray_mono.common import ids
from ray_mono.common.explanation import WaitCode
from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.wait_messages import (
    SUBJECTS_TOLD_MAX,
    THE_HEAD,
    looked_at,
    reason_of,
    told_to_anybody,
    with_history,
)
from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.generator_streams import Stream
from ray_mono.core_worker.peers import PeerPool
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_submission import retry_notices
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import CalledActor, CalledActorState
from ray_mono.core_worker.task_submission.lease import Lease, SchedulingQueue
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PUSHED, PendingTask, TaskState
from ray_mono.core_worker.task_submission.placement_groups import GcsPlacementGroups
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.core_worker.task_submission.task_stories import TaskStories
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.raylet_rpc import RayletServiceStub

Subject = common_pb2.WaitSubject
Runs = Callable[[common_pb2.WaitSubject], common_pb2.WaitReason | None]
WaitingHere = Callable[[], list[tuple[common_pb2.WaitSubject, int]]]
"""Of those that wait alike, one and how many they are."""
Roots = frozenset[object]
EMPTY: Roots = frozenset()

LOOK_AT_IT = "look at that process and its machine, or kill it"


class WaitReasons:
    """Of one process."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        borrowing: Borrowing,
        peers: PeerPool,
        tasks: TaskManager,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        groups: GcsPlacementGroups,
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._borrowing = borrowing
        self._peers = peers
        self._tasks = tasks
        self._normal_tasks = normal_tasks
        self._actor_tasks = actor_tasks
        self._groups = groups
        self._runs: Runs = lambda subject: None
        self._waiting_here: WaitingHere = list
        self.stories_of = TaskStories(env, tasks, normal_tasks, actor_tasks, groups).of

    def runs_by(self, runs: Runs, waiting_here: WaitingHere) -> None:
        """A worker's: runs(subject) says what it does about a call, or in general; None where it does not
        know the call. waiting_here(): what waits there, in its code or for its turn."""
        self._runs, self._waiting_here = runs, waiting_here

    def of(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """Of an OBJECT, a TASK, of this WORKER, of the ACTOR that runs here, and of a PLACEMENT_GROUP or an
        ACTOR that was made here. Of others: UNKNOWN."""
        if subject.kind == Subject.OBJECT:
            return self._of_object(subject.id)
        if subject.kind == Subject.ACTOR and not subject.runs_there:
            return self._of_owned(subject)
        if subject.kind == Subject.TASK:
            task = self._tasks.get(subject.id)
            if task is not None:
                return with_history(self._of_task(task), _history_of(task))
        reason = self._runs(subject)
        if reason is not None:
            return reason
        if subject.kind == Subject.PLACEMENT_GROUP:
            who = f"the driver (pid {self._env.pid})" if self._env.is_driver else "somebody"
            return reason_of(WaitCode.HELD_BY_GROUP, f"{subject.name} is held until {who} removes it")
        if subject.kind == Subject.WORKER and self._env.is_driver:
            text = f"the driver (pid {self._env.pid}) holds its references until it drops them"
            return reason_of(WaitCode.HELD_BY_DRIVER, text, unblock="drop references in the driver")
        name = subject.name or f"{Subject.Kind.Name(subject.kind).lower()} {subject.id.hex()}"
        return reason_of(WaitCode.UNKNOWN, f"{name} is not known to the process that should know it")

    def waiting(self, silent: Container[bytes] = ()) -> common_pb2.WaitingReply:
        """What was submitted here and does not run yet, alike together: of one function or actor's method,
        with the same options, as far in its life, and waiting for the same. Of what a worker has, that tells,
        if it is not silent. And what waits here, as a worker."""
        by_template: dict[tuple[CallTemplate, TaskState, Roots], list[PendingTask]] = {}
        roots: dict[bytes, Roots] = {}
        for task in self._tasks.values():
            waits_for = EMPTY
            if task.waits_for_arguments:
                waits_for = roots[task.task_id] = self._roots_of(task, roots)
            elif task.state is PUSHED and self._is_told_by_worker(task, silent):
                continue
            by_template.setdefault((task.template, task.state, waits_for), []).append(task)
        # Each handle of an actor makes templates of its own, and so does `.options()` of a method.
        alike: dict[object, list[PendingTask]] = {}
        for (template, state, waits_for), tasks in by_template.items():
            kind: object = template
            if template.spec.type == common_pb2.ACTOR_TASK:
                kind = template.spec.SerializeToString(deterministic=True)
            alike.setdefault((kind, state, waits_for), []).extend(tasks)
        submitted = [
            common_pb2.WaitingReply.Alike(example=self._subject(tasks[-1]), count=len(tasks))
            for tasks in alike.values()
        ]
        run_here = [
            common_pb2.WaitingReply.Alike(example=each, count=count) for each, count in self._waiting_here()
        ]
        return common_pb2.WaitingReply(alike=[*submitted, *run_here])

    def _is_told_by_worker(self, task: PendingTask, silent: Container[bytes]) -> bool:
        """An actor's, or a task not behind another one there: if it waits, its worker tells so, as long as
        that can be reached and answers."""
        if task.template.spec.type == common_pb2.ACTOR_TASK:
            actor = self._actor_tasks.actor(task.template.spec.actor_task.actor_id)
            is_reached = actor.peer is not None and not actor.peer.channel.trouble
            is_heard = actor.worker is not None and actor.worker.worker_id not in silent
            return is_reached and is_heard and actor.state is CalledActorState.CONNECTED
        lease = self._normal_tasks.lease_of(task)
        if lease is None or not lease.tasks:
            return True
        return lease.tasks[0] is task and lease.address.worker_id not in silent

    def _roots_of(self, task: PendingTask, roots: Mapping[bytes, Roots]) -> Roots:
        """What makes the arguments that it waits for in the end: calls of which functions, as far in their
        lives. roots: those of calls that were submitted earlier and wait for arguments, too."""
        found: set[object] = set()
        for object_id in self._missing_of(task):
            maker = self._tasks.get(object_id[: -ids.INDEX_BYTES])
            if maker is None:
                found.add(self.subject_of(object_id).at.worker_id)
            elif maker.waits_for_arguments:
                found |= roots.get(maker.task_id, EMPTY)
            else:
                found.add((maker.template, maker.state))
        return frozenset(found)

    def subject_of(self, object_id: bytes) -> common_pb2.WaitSubject:
        """The object, with its owner."""
        at = common_pb2.Address()
        if object_id in self._references:
            at.ParseFromString(self._borrowing.owner_of(object_id))
        return Subject(kind=Subject.OBJECT, id=object_id, at=at if at.worker_id else self._env.address)

    def in_store(self, object_id: bytes) -> common_pb2.WaitSubject:
        """The object, as this node's store knows it."""
        at, name = self._raylet_at(self._env.raylet), ids.object_name(object_id)
        return Subject(kind=Subject.STORE, id=object_id, name=name, at=at)

    def awaited(self, object_id: bytes) -> common_pb2.WaitSubject:
        """Of an object that somebody here waits for: who knows what it waits for."""
        if self._plasma.is_fetched(object_id):
            return self.in_store(object_id)
        return self.subject_of(object_id)

    def in_question(self, object_ids: Sequence[bytes], is_any: bool = False) -> list[bytes]:
        """So many of them as are asked about, those first that decide. Those whose calls are with workers run
        in most cases: where all are needed, these come last. Of calls that are alike one comes before the
        others. is_any: some are enough."""
        num_alike: Counter[object] = Counter()
        order: dict[bytes, tuple[bool, int]] = {}
        for object_id in object_ids:
            task = self._tasks.get(object_id[: -ids.INDEX_BYTES])
            is_with_worker = task is not None and task.is_pushed
            like = None if task is None else id(task.template)
            order[object_id] = is_with_worker is not is_any, num_alike[like]
            num_alike[like] += 1
        return sorted(object_ids, key=order.__getitem__)[:SUBJECTS_TOLD_MAX]

    # ---- objects

    def _of_object(self, object_id: bytes) -> common_pb2.WaitReason:
        name = ids.object_name(object_id)
        row = self._references.get(object_id)
        task = self._tasks.get(object_id[: -ids.INDEX_BYTES])
        stream = self._tasks.stream_of(object_id[: -ids.INDEX_BYTES])
        if stream is not None and (of_stream := self._of_stream(stream, object_id)) is not None:
            return of_stream
        if row is None and task is None:
            return reason_of(WaitCode.UNKNOWN, f"{name} is not known to its owner any more")
        if row is not None and not self._memory_store.is_pending(object_id):
            entry = self._memory_store.get(object_id)
            nodes = [] if entry is None or entry.data is not None else entry.locations or []
            where = f" on node {nodes[0].hex()[:8]}" if nodes else ""
            if self._plasma.is_fetched(object_id):
                text = f"{name} is there{where}, and is wanted on node {self._env.node_id.hex()[:8]}"
                return reason_of(WaitCode.FETCH, text, [self.in_store(object_id)])
            is_error = entry is not None and entry.metadata == serialization.ERROR
            what = ", and is an error" if is_error else ""
            return reason_of(WaitCode.READY, f"{name} is there{where}{what}", node_ids=nodes)
        if row is not None and row.owner is not None:
            return reason_of(WaitCode.OWNER, f"{name} is of another process", [self.subject_of(object_id)])
        if task is None:
            of_group = self._groups.awaited_by(object_id)
            return of_group or reason_of(WaitCode.STARTING, f"{name} is about to be there")
        return reason_of(WaitCode.TASK, f"{name} is made by {named(task)}", [self._subject(task)])

    def _of_stream(self, stream: Stream, object_id: bytes) -> common_pb2.WaitReason | None:
        """Of what is neither an item that is there, or to come, nor the end of the generator."""
        index = int.from_bytes(object_id[-ids.INDEX_BYTES :], "little")
        if index == 0:
            return self._of_generator_object(stream, object_id)
        if not stream.is_ended or index <= stream.num_received + 1:
            return None
        left = stream.num_received - stream.num_taken
        what = f"and {left} of them are not taken" if left else "and all of them were taken"
        generator = f"the generator of task {stream.task_id.hex()[:8]}…"
        text = f"{generator} is over: it has yielded {_count(stream.num_received, 'item')}, {what}"
        return reason_of(WaitCode.READY, text)

    def _of_generator_object(self, stream: Stream, object_id: bytes) -> common_pb2.WaitReason:
        """Who is to take its items?"""
        task = self._tasks.get(stream.task_id)
        name = "a generator that is over" if task is None else named(task)
        asked = Subject(kind=Subject.OBJECT, id=object_id, name=name, creator_task_id=stream.made_by)
        if (taken := self._runs(asked)) is not None:
            return taken
        process = f"(pid {self._env.pid})"
        who = f"the driver {process}" if self._env.is_driver else f"whoever has it in its process {process}"
        return reason_of(WaitCode.BACKPRESSURE, f"the items of {name} are for {who}")

    def items_awaited_by(self, task_id: bytes) -> list[bytes]:
        """See GeneratorStreams.awaited_by."""
        return self._tasks.items_awaited_by(task_id)

    # ---- calls

    def _subject(self, task: PendingTask) -> common_pb2.WaitSubject:
        """Where it was submitted: here."""
        return Subject(kind=Subject.TASK, id=task.task_id, name=named(task), at=self._env.address)

    def _at(self, task: PendingTask, worker: common_pb2.Address) -> common_pb2.WaitSubject:
        """Where it is to run."""
        return Subject(kind=Subject.TASK, id=task.task_id, name=named(task), at=worker, runs_there=True)

    def _of_task(self, task: PendingTask) -> common_pb2.WaitReason:
        if task.waits_for_arguments:
            return self._of_arguments(task)
        if task.template.spec.type == common_pb2.ACTOR_TASK:
            return self._of_call(task, self._actor_tasks.actor(task.template.spec.actor_task.actor_id))
        if task.template.spec.type == common_pb2.ACTOR_CREATION_TASK:
            text = f"{named(task)} waits for the head to register the actor"
            return reason_of(WaitCode.HEAD, text, [THE_HEAD])
        lease = self._normal_tasks.lease_of(task)
        if lease is not None:
            return self._of_pushed(task, lease)
        return self._of_queued(task, self._normal_tasks.queue_of(task))

    def _of_arguments(self, task: PendingTask) -> common_pb2.WaitReason:
        missing = self._missing_of(task)
        text = f"{named(task)} waits for {_count(len(missing), 'argument')}{looked_at(len(missing))}"
        asked_about = self.in_question(missing)
        return reason_of(
            WaitCode.DEPENDENCIES,
            text,
            map(self.subject_of, asked_about),
            num_others=len(missing) - len(asked_about),
        )

    def _missing_of(self, task: PendingTask) -> list[bytes]:
        args = [arg.reference.object_id for arg in task.request.args if arg.WhichOneof("arg") == "reference"]
        return [object_id for object_id in args if self._memory_store.is_pending(object_id)]

    def _of_pushed(self, task: PendingTask, lease: Lease) -> common_pb2.WaitReason:
        first = lease.tasks[0]
        if trouble := lease.peer.channel.trouble:
            text = f"{named(task)} is with a worker that {trouble}"
            return reason_of(WaitCode.UNREACHABLE, text, unblock=LOOK_AT_IT)
        if first is task:
            where = f"worker {lease.address.worker_id.hex()[:8]} on node {lease.address.node_id.hex()[:8]}"
            return reason_of(
                WaitCode.WORKER, f"{named(task)} is with {where}", [self._at(task, lease.address)]
            )
        text = f"{named(task)} is behind {named(first)} on its worker"
        return reason_of(WaitCode.BEHIND_OTHERS, text, [self._subject(first)])

    def _of_queued(self, task: PendingTask, queue: SchedulingQueue | None) -> common_pb2.WaitReason:
        resources = bundle_resources.plain(ResourceSet.from_proto(task.template.spec.resources))
        needs = f", and needs {resources}" if resources else ""
        if queue is None:
            text = f"{named(task)} has lost its worker, and is about to run again"
            return reason_of(WaitCode.RETRY_PAUSE, text)
        leases = [
            Subject(kind=Subject.LEASE, id=lease_id, name=named(task), at=self._raylet_at(raylet))
            for lease_id, raylet in queue.requested.items()
        ]
        if leases:
            text = f"{named(task)} waits for a worker{needs}"
            return reason_of(WaitCode.LEASE, text, leases[:1])
        runs = [self._subject(lease.tasks[0]) for lease in queue.leases.values() if lease.tasks]
        if runs:
            text = (
                f"{named(task)} waits for one of {_count(len(runs), 'worker')} that this process has{needs}"
            )
            some, num_others = runs[:SUBJECTS_TOLD_MAX], len(runs) - SUBJECTS_TOLD_MAX
            return reason_of(WaitCode.BEHIND_OTHERS, text, some, is_any=True, num_others=num_others)
        return reason_of(WaitCode.STARTING, f"{named(task)} is about to ask for a worker")

    def _raylet_at(self, raylet: RayletServiceStub) -> common_pb2.Address:
        node = self._env.node
        if raylet is self._env.raylet:
            return common_pb2.Address(node_id=node.node_id, host=node.host, port=node.node_manager_port)
        host, _, port = self._peers.target_of(raylet).rpartition(":")
        return common_pb2.Address(host=host, port=int(port or 0))

    # ---- calls of actors

    def _of_call(self, task: PendingTask, actor: CalledActor) -> common_pb2.WaitReason:
        name = named(task)
        if actor.state is CalledActorState.CONNECTED and actor.worker is not None:
            if task.state is PUSHED:
                at_actor = self._at(task, actor.worker)
                # An actor that calls itself knows both ends of the call.
                here = self._runs(at_actor) if actor.worker.worker_id == self._env.worker_id else None
                return here or reason_of(WaitCode.WORKER, f"{name} is with its actor", [at_actor])
            sent = [self._at(each, actor.worker) for each in list(actor.in_flight.values())[:1]]
            before = [each for each in actor.queue if each is not task and each.waits_for_arguments][:1]
            waits_for = [self._subject(each) for each in before] or sent
            num_queued = actor.queue.index(task) if task in actor.queue else 0
            text = f"{name} is behind {_count(len(actor.in_flight) + num_queued, 'call')}"
            return reason_of(WaitCode.BEHIND_OTHERS, text, waits_for)
        if actor.state is CalledActorState.DISCONNECTED:
            text = f"{name} waits, since its actor cannot be reached"
            return reason_of(WaitCode.UNREACHABLE, text, unblock=LOOK_AT_IT)
        creation = self._tasks.get(ids.TaskID.for_actor_creation(actor.actor_id).binary())
        if creation is not None and not actor.is_registered_here:
            return reason_of(WaitCode.ACTOR, f"{name} waits for its actor", [self._subject(creation)])
        return reason_of(
            WaitCode.ACTOR,
            f"{name} waits, since its actor {actor.state.value}",
            [Subject(kind=Subject.ACTOR, id=actor.actor_id)],
        )

    def _of_owned(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """An actor that was made here: what keeps it alive?"""
        actor = self._actor_tasks.actor(subject.id)
        row = self._references.get(actor.creation_id)
        name, process = f"actor {subject.name}", f"(pid {self._env.pid})"
        if row is None:
            return reason_of(WaitCode.STARTING, f"{name} is about to end: nobody has a handle of it any more")
        if not (row.local or row.contained or row.borrowers):
            calls = [*actor.in_flight.values(), *actor.queue, *actor.unresolved.values()]
            holders = {task for task in self._tasks.values() if actor.creation_id in task.arg_ids}
            text = f"{name}, of which nobody has a handle, ends after {_count(len(calls), 'call')}"
            if given := holders.difference(calls):
                calls = [*given, *calls]
                text = f"{name} is held by {_count(len(given), 'call')} that it was given to"
            some, num_others = calls[:SUBJECTS_TOLD_MAX], len(calls) - SUBJECTS_TOLD_MAX
            return reason_of(
                WaitCode.OWNED,
                text,
                map(self._subject, some),
                num_others=num_others,
                # They may keep it, or give it to others.
                is_unsure=bool(given),
            )
        if self._env.is_driver:
            text = f"{name} is held until the driver {process} drops its handles or kills it"
            return reason_of(WaitCode.OWNED, text)
        made_by = Subject(kind=Subject.ACTOR, id=subject.id, name=name, creator_task_id=actor.made_by)
        if (by_call := self._runs(made_by)) is not None:
            return by_call
        who = f"process {self._env.worker_id.hex()[:8]} {process}, which made it,"
        return reason_of(WaitCode.OWNED, f"{name} is held until {who} drops its handles or kills it")


def named(task: PendingTask) -> str:
    spec = task.template.spec
    of_actor = spec.type == common_pb2.ACTOR_TASK
    return f"{task.name}()" + (f" of actor {spec.actor_task.actor_id.hex()[:8]}" if of_actor else "")


def _history_of(task: PendingTask) -> str:
    if not task.attempt:
        return ""
    why = task.last_failure
    if isinstance(why, bytes):
        # The last line of an error begins with its class. What follows may be a value of the job's, and
        # whoever asks may be of another.
        why = retry_notices.told(why).rstrip().rpartition("\n")[2].partition(":")[0]
    times = "once" if task.attempt == 1 else f"{task.attempt} times"
    left = retry_notices.left(task.retries_left)
    return f"{named(task)} has run {times} and is run again ({left}): {told_to_anybody(why)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

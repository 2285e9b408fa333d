"""Calls to actors: one queue per actor, pushed straight to its worker in the order of submission.

Called under the core worker's lock; never blocks.

The GCS says where the actor lives (WatchActor, a long poll by version). A call whose arguments are not there
yet holds later ones back: a caller's calls run in the order in which it made them, unless the actor allows
otherwise.

What becomes of an actor, as its callers see it, is called_actor.py's table.

Where its node is drained it moves: its process gives back the calls that it has not begun, and they wait, as
new ones do, for the next process.

A call that was sent when the connection broke is answered when the GCS has said what became of the actor, and
the raylet what the process had answered when it died (last_answers.py):
ActorDiedError with the cause, or ActorUnavailableError if it lives on; with max_task_retries it is sent
again. That costs a retry, unless it did not begin: of an actor that runs one call after another only the
first without an answer did. A process that lives says which had not begun (TakeBackCalls): these are sent
again in any case, and none of them begins twice.

A call that could be sent while the actor is RESTARTING is ActorUnavailableError as well, as in Ray: only
actors with max_task_retries, and calls with retries of their own, wait for it. Calls always wait for the
first creation, also if that takes several processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any
from weakref import WeakValueDictionary

from ray_mono.common import ids
from ray_mono.common.exceptions import ActorUnavailableError, PendingCallsLimitExceeded
from ray_mono.common.our_bug import InternalError
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.job_warnings import JobWarnings
from ray_mono.core_worker.objects.future_resolver import FutureResolver
from ray_mono.core_worker.peers import Peer, PeerPool
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_submission.actor_probes import ActorProbes
from ray_mono.core_worker.task_submission.called_actor import CalledActor, creation_failed
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.last_answers import LastAnswers, beside_items
from ray_mono.core_worker.task_submission.pending_task import PendingTask, Together
from ray_mono.core_worker.task_submission.shared_push import SharedPush, take_together
from ray_mono.core_worker.task_submission.task_manager import CANCELLED, DONE, NOT_STARTED, Reply, TaskManager
from ray_mono.core_worker.task_wire import PLAIN, RUN_US, USUAL_ANSWER, plains_of
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

Address = common_pb2.Address

RESTARTING = "it is restarting"
_has_args = attrgetter("has_args")


class ActorTaskSubmitter:
    """The actors that this process calls."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        resolver: FutureResolver,
        peers: PeerPool,
        tasks: TaskManager,
        dependencies: DependencyResolver,
        warnings: JobWarnings,
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._resolver = resolver
        self._peers = peers
        self._tasks = tasks
        self._dependencies = dependencies
        self._warnings = warnings
        self._last_answers = LastAnswers(env, peers)
        self._probes = ActorProbes(env, peers, self._reached)
        # Handles, calls under way and connections keep an actor. One that is only known by its name goes with
        # the last of them.
        self._actors: WeakValueDictionary[bytes, CalledActor] = WeakValueDictionary()

    def actor(self, actor_id: bytes) -> CalledActor:
        actor = self._actors.get(actor_id)
        if actor is None:
            actor = self._actors[actor_id] = CalledActor(actor_id, self._env.config)
        return actor

    def describe(self) -> dict[str, Any]:
        """For DumpState."""
        return {actor_id.hex(): actor.describe() for actor_id, actor in self._actors.items()}

    def check_pending(self, actor: CalledActor) -> None:
        """Raises PendingCallsLimitExceeded where the actor takes no more calls from here."""
        waiting = actor.num_waiting
        limit = actor.rules.max_pending_calls
        if 0 <= limit <= waiting:
            raise PendingCallsLimitExceeded(
                f"actor {actor.actor_id.hex()} has {waiting} calls of this process pending;"
                f" max_pending_calls={limit}"
            )

    def submit(self, actor: CalledActor, task: PendingTask) -> None:
        if actor.takes_at_once and not task.has_args:
            # The usual case, kept short.
            self._push(actor, task)
            return
        if actor.peer is not None and not actor.queue and not task.has_args and actor.has_room:
            self._warn_of_many(actor, task)
            self._push(actor, task)
            return
        if actor.is_dead:
            self._fail_dead(actor, task)
            self._memory_store.mark_seen(actor.creation_id)
            return
        if actor.peer is None:
            self.watch(actor)
        self._warn_of_many(actor, task)
        task.look_again_for_arguments()
        if actor.rules.is_unordered and task.has_args:
            actor.unresolved[task.task_id] = task
        else:
            actor.queue.append(task)
        self._dependencies.resolve(
            task,
            lambda resolved: self._resolved(actor, resolved),
            lambda failed, error: self._not_called(actor, failed),
        )

    def submit_all(self, actor: CalledActor, tasks: Sequence[PendingTask]) -> None:
        """As submit, in order."""
        if actor.peer is None or actor.is_dead or True in map(_has_args, tasks):
            for task in tasks:
                self.submit(actor, task)
            return
        self._warn_of_many(actor, tasks[-1])
        actor.queue.extend(tasks)
        self._pump(actor)

    def _warn_of_many(self, actor: CalledActor, task: PendingTask) -> None:
        waiting = actor.num_waiting
        if not actor.warns_of(waiting):
            return
        text = (
            f"{waiting:,} calls of one process wait for actor {actor.actor_id.hex()}, the latest of "
            f"{task.template.title}(). Each holds its arguments: get results before more calls are made, or "
            "give the actor max_pending_calls."
        )
        self._warnings.tell("excess_queueing_warning", text)

    def _resolved(self, actor: CalledActor, task: PendingTask) -> None:
        if actor.unresolved.pop(task.task_id, None) is not None:
            actor.queue.append(task)
        if actor.is_restarting and not actor.waits_for_restart(task):
            actor.unqueue(task)
            self._tasks.fail_unless_cancelled(task, ActorUnavailableError(RESTARTING, actor.actor_id))
        self._pump(actor)

    def _not_called(self, actor: CalledActor, task: PendingTask) -> None:
        """An argument is an error: the call is not made, and holds back none of those behind it."""
        if actor.unresolved.pop(task.task_id, None) is None:
            actor.unqueue(task)
        self._pump(actor)

    def _pump(self, actor: CalledActor) -> None:
        while actor.queue and actor.peer is not None and actor.has_room:
            task = actor.queue[0]
            if task.waits_for_arguments:
                return
            if not task.together or not self._push_together(actor, task.together):
                self._push(actor, actor.queue.popleft())
        if actor.holds_back and not actor.is_looked_at:
            self._look_later(actor)

    def _look_later(self, actor: CalledActor) -> None:
        """If nothing is answered meanwhile, what was sent may wait for what waits here: more is sent."""
        actor.note_look(True)
        num_answered = actor.num_answered

        def look() -> None:
            actor.note_look(False)
            if actor.holds_back and actor.num_answered == num_answered:
                actor.allow_more()
            self._pump(actor)

        self._env.reactor.call_later(self._env.config.no_answer_s, look)

    def _push(self, actor: CalledActor, task: PendingTask) -> None:
        peer, worker = actor.peer, actor.worker
        if peer is None or worker is None:
            raise InternalError(f"a call is sent where no connection is: {actor.story}")
        payload = task.usual_push()
        actor.send(task, payload)
        on_reply = partial(self._on_reply, actor, worker, task)
        if payload is None or not peer.push(task.template, payload, on_reply):
            peer.push_request(task.template, task.request, on_reply)

    def _push_together(self, actor: CalledActor, together: Together) -> bool:
        """Those calls of a `map` that are first share a frame. False where the very first has to go alone."""
        peer, worker, config = actor.peer, actor.worker, self._env.config
        if peer is None or worker is None or not peer.knows(actor.queue[0].template):
            return False
        most = min(together.most or config.chunk_max, actor.room)
        if most <= 1 or len(actor.queue) <= 1:
            return False
        tasks = take_together(actor.queue, most, config.chunk_bytes_max)
        actor.send_all(tasks)
        shared = SharedPush(tasks)
        shared.send(
            peer,
            partial(self._on_last_answers, actor, worker, shared),
            partial(self._on_answers, actor, worker, shared),
        )
        return True

    def _on_answers(self, actor: CalledActor, worker: Address, shared: SharedPush, payload: bytes) -> None:
        """Of some of the calls that travelled together."""
        answers = core_worker_pb2.PushTasksReply.FromString(payload)
        values = plains_of(answers)
        if values:
            tasks, new = shared.answered_with(answers.first, values)
            self._tasks.complete_all_usual(*actor.answered_all(tasks, new))
            if actor.queue and (not actor.queue[0].together or actor.takes_a_frame):
                self._pump(actor)
            return
        for task in shared.answered(answers.first, answers.count):
            self._on_answer(actor, worker, task, answers.reply)

    def _on_last_answers(
        self,
        actor: CalledActor,
        worker: Address,
        shared: SharedPush,
        payload: bytes,
        error: RpcError | None,
    ) -> None:
        if error is not None:
            actor.lose_frame(shared)
            self._disconnected(actor, worker)
        else:
            self._on_answers(actor, worker, shared, payload)

    def _on_reply(
        self,
        actor: CalledActor,
        worker: Address,
        task: PendingTask,
        payload: bytes,
        error: RpcError | None,
    ) -> None:
        if error is None and len(payload) > USUAL_ANSWER.size:
            run_tag, _, value_tag, size = USUAL_ANSWER.unpack_from(payload)
            if run_tag == RUN_US and value_tag == PLAIN and size + USUAL_ANSWER.size == len(payload):
                # The usual case, kept short: DONE, and one small value.
                if actor.answered(task):
                    self._tasks.complete_usual(task, payload[USUAL_ANSWER.size :])
                    if actor.queue:
                        self._pump(actor)
                return
        if error is not None:
            self._disconnected(actor, worker)
        else:
            self._on_answer(actor, worker, task, Reply.FromString(payload))

    def _on_answer(self, actor: CalledActor, worker: Address, task: PendingTask, reply: Any) -> None:
        if reply.status != DONE:
            if reply.status == NOT_STARTED:
                self._given_back(actor, worker, task)
            elif reply.status != CANCELLED:
                self._disconnected(actor, worker)
            elif actor.answered(task):
                self._tasks.fail_cancelled(task)
                self._pump(actor)
            return
        if not actor.answered(task):
            # The GCS said sooner that its process is gone: it has failed since, or waits to be sent again.
            self._tasks.answered_late(task, reply)
            return
        self._tasks.complete(task, reply, worker)
        if actor.queue:
            self._pump(actor)

    def _given_back(self, actor: CalledActor, worker: Address, task: PendingTask) -> None:
        """The actor moves to another node, and the call did not begin: it waits for that."""
        if not self._not_begun(actor, task):
            return
        actor.is_left(worker.worker_id)
        if actor.worker is not None and actor.worker.worker_id == worker.worker_id:
            actor.disconnect()
            self.watch(actor)

    def _not_begun(self, actor: CalledActor, task: PendingTask) -> bool:
        """It was sent, and waits again. Returns whether it had no answer."""
        if not actor.answered(task):
            return False
        if self._tasks.is_cancelled(task):
            self._tasks.fail_cancelled(task)
        else:
            actor.given_back(task)
        return True

    def forget_calls(self) -> None:
        """None is sent any more, and no answer counts: all of them are about to fail."""
        for actor in list(self._actors.values()):
            actor.take_all()

    def cancel(self, task: PendingTask, request: Any) -> None:
        """Drops a pending call that waits here; request (CancelTaskRequest) goes to the actor for one that
        was sent. Where the actor cannot be reached, that one is settled with the others that were sent: it
        may run there, and keep what it was given."""
        actor = self.actor(task.template.spec.actor_task.actor_id)
        if task.task_id in actor.in_flight:
            if actor.peer is not None:
                actor.peer.stub.CancelTask.start(request, lambda reply, error: None)
            return
        actor.unresolved.pop(task.task_id, None)
        with contextlib.suppress(ValueError):
            actor.queue.remove(task)
        self._tasks.fail_cancelled(task)
        # It may have held back those behind it.
        self._pump(actor)

    # ---- where it lives

    def _disconnected(self, actor: CalledActor, worker: Address, left: Peer | None = None) -> None:
        """What was sent stays in `in_flight` until the GCS says more. left: where the connection did not
        break, and brings answers still."""
        if actor.worker is not None and actor.worker.worker_id == worker.worker_id:
            actor.disconnect()
            self.watch(actor)
            self._probes.later(actor, worker, left)

    def _reached(self, actor: CalledActor, worker: Address, left: Peer | None, not_begun: bytes) -> None:
        if left is not None:
            actor.connect(worker, left)
            self._pump(actor)
            return
        for task in actor.sent_from(not_begun):
            self._not_begun(actor, task)
        self._connect(actor, worker, "the connection to it broke")

    def killed(self, actor_id: bytes) -> None:
        """This process had it killed: the next call must not reach the process that is about to end."""
        actor = self._actors.get(actor_id)
        if actor is not None and actor.worker is not None:
            self._disconnected(actor, actor.worker, actor.peer)

    def watch(self, actor: CalledActor) -> None:
        """One long poll per actor, open while something depends on its answer."""
        if actor.is_watched or actor.is_dead or self._env.reactor.is_closed:
            return
        actor.note_watch(True)
        request = gcs_pb2.WatchActorRequest(actor_id=actor.actor_id, after_version=actor.version)
        self._env.gcs.WatchActor.start(request, partial(self._on_watched, actor))

    def registered(self, actor: CalledActor) -> None:
        """The GCS has it: from now on it is watched by its callers."""
        actor.note_watch(False)
        self.watch(actor)

    def _on_watched(self, actor: CalledActor, info: Any, error: RpcError | None) -> None:
        if error is not None:
            actor.note_watch(False)
            self._not_watched(actor, error)
        elif lost := actor.lost_process(info):
            self._hear_out(actor, *lost, info)
        else:
            self._heard(actor, info)

    def _hear_out(self, actor: CalledActor, worker: Address, peer: Peer, info: common_pb2.ActorInfo) -> None:
        """Its process is gone. What that had answered counts."""

        def told(reply: Any) -> None:
            if reply is not None:
                for task, answer in beside_items(peer, actor.in_flight, reply.answers):
                    self._on_reply(actor, worker, task, answer, None)
                if reply.plain:
                    self._tasks.complete_all_usual(*actor.answered_in_frame(reply))
                are_all = self._last_answers.are_all(reply)
                if are_all and reply.has_moved:
                    for task in list(actor.in_flight.values()):
                        self._not_begun(actor, task)
                actor.is_heard_out(are_all)
            if not actor.is_dead:
                self._heard(actor, info)

        self._last_answers.ask(worker, peer, told)

    def _heard(self, actor: CalledActor, info: common_pb2.ActorInfo) -> None:
        """What the GCS says of it."""
        actor.note_watch(False)
        actor.heard(info)
        if info.state == common_pb2.ALIVE and actor.leaves(info.address.worker_id):
            self.watch(actor)
        elif info.state == common_pb2.ALIVE:
            if actor.worker is None or actor.worker.worker_id != info.address.worker_id:
                worker = common_pb2.Address.FromString(info.address.SerializeToString())
                self._connect(actor, worker, "it was restarted")
        elif info.state == common_pb2.DEAD:
            self.dies(actor, info.death_cause)
        elif info.state == common_pb2.RESTARTING:
            lived = actor.restart()
            self._settle_sent(actor, RESTARTING)
            if lived:
                self._fail_unsent(actor)
            self.watch(actor)
        else:
            actor.is_created()
            self.watch(actor)

    def _not_watched(self, actor: CalledActor, error: RpcError) -> None:
        if error.code is StatusCode.NOT_FOUND and not self._registers_later(actor):
            self.dies(actor, creation_failed(actor.why_unknown, self._why_not_created(actor)))
            return
        # Not here and now: this may be the watch of a call that is not in the queue yet.
        self._env.reactor.call_later(self._env.config.watch_retry_s, partial(self._watch_again, actor, error))

    def _watch_again(self, actor: CalledActor, error: RpcError) -> None:
        """After UNAVAILABLE nobody is left to say where the actor lives."""
        if error.code is not StatusCode.UNAVAILABLE:
            self.watch(actor)
        elif not actor.is_connected:
            lost = ActorUnavailableError(f"the GCS cannot be reached: {error.message}", actor.actor_id)
            for task in actor.take_all():
                self._tasks.fail_unless_cancelled(task, lost)

    def _registers_later(self, actor: CalledActor) -> bool:
        """Whether its owner is alive and has not registered it yet: the arguments of its constructor are not
        there. Of an actor of its own this process has told the GCS before it asks."""
        if actor.is_registered_here or actor.creation_id not in self._references:
            return False
        self._resolver.ask_owner(actor.creation_id)
        return self._memory_store.is_pending(actor.creation_id)

    def _why_not_created(self, actor: CalledActor) -> bytes:
        """The error that stands for an actor of which the GCS was never told; empty where it is of another
        session."""
        entry = self._memory_store.get(actor.creation_id)
        return entry.data or b"" if entry is not None and entry.metadata == serialization.ERROR else b""

    def _connect(self, actor: CalledActor, worker: Address, why: str) -> None:
        """Calls go to `worker` from now on. What was sent before is settled, with `why`."""
        peer = self._peers.peer(worker)
        if peer.is_closed:
            # It died between the GCS's answer and now: the GCS will hear of it too.
            if not actor.is_connected:
                actor.disconnect()
            self.watch(actor)
            self._probes.later(actor, worker)
            return
        self._settle_sent(actor, why)
        actor.connect(worker, peer)
        peer.channel.on_close(lambda reason: self._disconnected(actor, worker))
        self._creation_done(actor, serialization.CREATED, b"")
        self._pump(actor)

    def _creation_done(self, actor: CalledActor, metadata: bytes, data: bytes) -> None:
        """The actor is alive or dead: where it is owned here, its creation object gets its value."""
        object_id = actor.creation_id
        if object_id not in self._references:
            return
        if metadata == serialization.ERROR or self._memory_store.is_pending(object_id):
            self._memory_store.put_inline(object_id, metadata, data)
        if metadata == serialization.ERROR:
            self._references.drop_nested(object_id)  # its arguments: it starts no more

    def _settle_sent(self, actor: CalledActor, why: str) -> None:
        """Calls that the lost incarnation did not answer: again where retries allow, else
        ActorUnavailableError."""
        again = []
        for task in actor.take_sent():
            if task.retries_left and not self._tasks.is_cancelled(task):
                if not task.came_back:
                    self._tasks.next_attempt(task, f"its actor is unavailable: {why}")
                again.append(task)
            else:
                self._tasks.fail_unless_cancelled(task, ActorUnavailableError(why, actor.actor_id))
        actor.queue_again(again)

    def _fail_unsent(self, actor: CalledActor) -> None:
        """The actor restarts: what could have been sent does not wait for it."""
        for task in actor.take_queue():
            if actor.waits_for_restart(task):
                actor.queue.append(task)
            else:
                self._tasks.fail_unless_cancelled(task, ActorUnavailableError(RESTARTING, actor.actor_id))

    def dies(self, actor: CalledActor, cause: common_pb2.DeathCause) -> None:
        """For good, perhaps before it lived."""
        if actor.is_dead:
            return
        actor.die(cause)
        creation = self._tasks.get(ids.TaskID.for_actor_creation(actor.actor_id).binary())
        if creation is not None:
            self._fail_dead(actor, creation)  # its arguments are not needed any more
        waiting = actor.take_all()
        for task in waiting:
            self._fail_dead(actor, task)
        self._creation_done(actor, *actor.death_value())
        if waiting:
            self._memory_store.mark_seen(actor.creation_id)

    def _fail_dead(self, actor: CalledActor, task: PendingTask) -> None:
        if self._tasks.is_cancelled(task):
            self._tasks.fail_cancelled(task)
        elif self._tasks.is_pending(task):
            self._tasks.fail_serialized(task, *actor.death_value())

"""Calls to actors: one queue per actor, pushed straight to its worker in the order of submission.

Called under the core worker's lock; never blocks.

The GCS says where the actor lives (WatchActor, a long poll by version). A call whose arguments are not there yet
holds later ones back: a caller's calls run in the order in which it made them, unless the actor allows otherwise.

    actor   UNKNOWN ──ALIVE──► CONNECTED ──connection lost──► UNCERTAIN ──ALIVE again──► CONNECTED
                                                                 │──RESTARTING──► calls fail, or wait where
                                                                 │                the actor has retries
                                                                 └──DEAD──► DEAD: every call fails with the cause

A call that was sent when the connection broke is answered when the GCS has said what became of the actor:
ActorDiedError with the cause, or ActorUnavailableError if it lives on; with max_task_retries it is sent again. A call
that could be sent while the actor is RESTARTING is ActorUnavailableError as well, as in Ray: only actors with
max_task_retries, and calls with retries of their own, wait for it. Calls always wait for the first creation, also if
that takes several processes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ray_mono.common.exceptions import (
    ActorUnavailableError,
    PendingCallsLimitExceeded,
)
from ray_mono.core_worker.task_submission.called_actor import EXCESS_BYTES_MAX, NO_ANSWER_S, Actor, story_of
from ray_mono.core_worker.task_submission.task_manager import CANCELLED, DONE, PendingTask
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2
from ray_mono.rpc.surface import RpcError, StatusCode

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker

RESTARTING = "it is restarting"
WATCH_RETRY_S = 0.2
PROBE_S = 1.0
"""How long a lost actor's death may take to become known before its last address is tried again."""


class ActorTaskSubmitter:
    """The actors that this process calls."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        # Kept by handles, calls under way and connections: one that is only known by its name goes with the last of them.
        self.actors: WeakValueDictionary[bytes, Actor] = WeakValueDictionary()

    def actor(self, actor_id: bytes) -> Actor:
        actor = self.actors.get(actor_id)
        if actor is None:
            actor = self.actors[actor_id] = Actor(actor_id)
        return actor

    def fail_creation(self, actor: Actor, message: str, error: bytes = b"") -> None:
        """The actor is dead before it lived; error: why, a serialized RayTaskError or ActorDiedError."""
        cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.CREATION_FAILED, message=message)
        if error:
            cause.error.CopyFrom(common_pb2.SerializedObject(metadata=serialization.ERROR, data=error))
        self._dead(actor, cause)

    def check_pending(self, actor: Actor) -> None:
        """Raises PendingCallsLimitExceeded where the actor takes no more calls from here."""
        waiting = actor.num_waiting
        limit = actor.rules.max_pending_calls
        if 0 <= limit <= waiting:
            raise PendingCallsLimitExceeded(
                f"actor {actor.actor_id.hex()} has {waiting} calls of this process pending; max_pending_calls={limit}"
            )

    def submit(self, actor: Actor, task: PendingTask) -> None:
        if actor.state == common_pb2.DEAD:
            self._fail_dead(actor, task)
            self._core.memory_store.mark_seen(actor.creation_id)
            return
        if actor.peer is None:
            self.watch(actor)
        elif not actor.queue and not task.has_args and actor.has_room:
            # The usual case, kept short: nothing is before it, and nothing has to be waited for.
            if actor.excess:
                self._warn_of_many(actor, task)
            self._push(actor, task)
            return
        self._warn_of_many(actor, task)
        if actor.rules.is_unordered and task.has_args:
            actor.unresolved[task.task_id] = task
        else:
            actor.queue.append(task)
        task.num_unresolved = -1
        self._core.tasks.resolve(
            task,
            lambda resolved: self._resolved(actor, resolved),
            lambda failed, error: self._not_called(actor, failed),
        )

    def _warn_of_many(self, actor: Actor, task: PendingTask) -> None:
        waiting = actor.num_waiting
        if waiting < actor.warn_at:
            return
        actor.warn_at = 2 * waiting
        what = f"{waiting:,} calls of one process wait for actor {actor.actor_id.hex()}, the latest of {task.template.title}()"
        advice = "Each holds its arguments: get results before more calls are made, or give the actor max_pending_calls."
        self._core.warn_driver("excess_queueing_warning", f"{what}. {advice}")

    def _resolved(self, actor: Actor, task: PendingTask) -> None:
        task.num_unresolved = 0
        if actor.unresolved.pop(task.task_id, None) is not None:
            actor.queue.append(task)
        if actor.state == common_pb2.RESTARTING and not actor.waits_for_restart(task):
            actor.unqueue(task)
            self._fail(task, ActorUnavailableError(RESTARTING, actor.actor_id))
        self._pump(actor)

    def _not_called(self, actor: Actor, task: PendingTask) -> None:
        """An argument is an error: the call is not made, and holds back none of those behind it."""
        if actor.unresolved.pop(task.task_id, None) is None:
            actor.unqueue(task)
        self._pump(actor)

    def _pump(self, actor: Actor) -> None:
        while actor.queue and actor.peer is not None and actor.has_room:
            if actor.queue[0].num_unresolved:
                return
            self._push(actor, actor.queue.popleft())
        if actor.holds_back and not actor.is_looked_at:
            self._look_later(actor)

    def _look_later(self, actor: Actor) -> None:
        """If nothing is answered meanwhile, what was sent may wait for what waits here: more is sent."""
        actor.is_looked_at = True
        num_answered = actor.num_answered

        def look() -> None:
            actor.is_looked_at = False
            if actor.holds_back and actor.num_answered == num_answered:
                actor.excess_bytes_max += EXCESS_BYTES_MAX
            self._pump(actor)

        self._core.reactor.call_later(NO_ANSWER_S, look)

    def _push(self, actor: Actor, task: PendingTask) -> None:
        assert actor.peer is not None and actor.worker is not None
        request, worker = task.request, actor.worker
        request.sequence_number = actor.sequence_number
        actor.sequence_number += 1
        actor.sent(task)
        actor.peer.push(
            task.template,
            request,
            lambda reply, error: self._on_reply(actor, worker, task, reply, error),
        )

    def _on_reply(
        self, actor: Actor, worker: common_pb2.Address, task: PendingTask, reply: Any, error: RpcError | None
    ) -> None:
        if error is not None or reply.status != DONE:
            if error is not None or reply.status != CANCELLED:
                self._disconnected(actor, worker)
            elif actor.answered(task):
                self._core.tasks.fail_cancelled(task)
                self._pump(actor)
            return
        if not actor.answered(task):
            # The GCS said sooner that its process is gone: it has failed since, or waits to be sent again.
            return
        self._core.tasks.complete(task, reply, worker)
        if actor.queue:
            self._pump(actor)

    def cancel(self, task: PendingTask, request: Any) -> None:
        """Drops a pending call that waits here; request (CancelTaskRequest) goes to the actor for one that was sent."""
        actor = self.actor(task.template.spec.actor_task.actor_id)
        if task.task_id in actor.in_flight and actor.peer is not None:
            actor.peer.stub.CancelTask.start(request, lambda reply, error: None)
            return
        actor.answered(task)
        actor.unresolved.pop(task.task_id, None)
        with contextlib.suppress(ValueError):
            actor.queue.remove(task)
        self._core.tasks.fail_cancelled(task)
        # It may have held back those behind it.
        self._pump(actor)

    # ---- where it lives

    def _disconnected(self, actor: Actor, worker: common_pb2.Address) -> None:
        """What was sent stays in `in_flight` until the GCS says more."""
        if actor.worker is not None and actor.worker.worker_id == worker.worker_id:
            actor.peer = actor.worker = None
            self.watch(actor)
            self._core.reactor.call_later(PROBE_S, lambda: self._probe(actor, worker))

    def _probe(self, actor: Actor, worker: common_pb2.Address) -> None:
        """The GCS has no news of an actor that was lost: perhaps only the connection broke, which it cannot know."""
        if actor.peer is not None or actor.state != common_pb2.ALIVE or self._core.reactor.is_closed:
            return

        def answered(reply: Any, error: RpcError | None) -> None:
            if actor.peer is not None or actor.state != common_pb2.ALIVE:
                return
            if error is None:
                self._connect(actor, worker, "the connection to it broke")
            else:
                self._core.reactor.call_later(PROBE_S, lambda: self._probe(actor, worker))

        # Any call does: this one changes nothing.
        self._core.stub_for(worker).RemoveObjectLocation.start(
            core_worker_pb2.ObjectLocationRequest(), answered
        )

    def killed(self, actor_id: bytes) -> None:
        """This process had it killed: the next call must not reach the process that is about to end."""
        actor = self.actors.get(actor_id)
        if actor is not None and actor.worker is not None:
            self._disconnected(actor, actor.worker)

    def watch(self, actor: Actor) -> None:
        """One long poll per actor, open while something depends on its answer."""
        if actor.watching or actor.state == common_pb2.DEAD or self._core.reactor.is_closed:
            return
        actor.watching = True
        request = gcs_pb2.WatchActorRequest(actor_id=actor.actor_id, after_version=actor.version)
        self._core.gcs.WatchActor.start(request, lambda reply, error: self._on_watched(actor, reply, error))

    def _on_watched(self, actor: Actor, info: Any, error: RpcError | None) -> None:
        actor.watching = False
        if error is not None:
            if error.code is StatusCode.NOT_FOUND and not self._registers_later(actor):
                message = "the cluster does not know this actor: it belongs to another session"
                self.fail_creation(actor, message, self._why_not_created(actor))
            elif error.code is StatusCode.UNAVAILABLE:
                # Not here and now: this may be the watch of a call that is not in the queue yet.
                self._core.reactor.call_later(WATCH_RETRY_S, lambda: self._gcs_lost(actor))
            else:
                self._core.reactor.call_later(WATCH_RETRY_S, lambda: self.watch(actor))
            return
        actor.version = info.version
        actor.num_restarts = info.num_restarts
        actor.pending_reason = info.pending_reason
        if info.state == common_pb2.ALIVE:
            actor.state = info.state
            self._alive(actor, info)
        elif info.state == common_pb2.DEAD:
            actor.story = story_of(info)
            self._dead(actor, info.death_cause)
        else:
            lived = actor.state != common_pb2.PENDING_CREATION
            actor.state = info.state
            if info.state == common_pb2.RESTARTING:
                actor.peer = actor.worker = None
                self._settle_sent(actor, RESTARTING)
                if lived:
                    self._fail_unsent(actor)
            self.watch(actor)

    def _gcs_lost(self, actor: Actor) -> None:
        """Nobody is left to say where the actor lives."""
        if actor.peer is not None:
            return
        for task in actor.take_all():
            self._fail(task, ActorUnavailableError("the connection to the GCS is lost", actor.actor_id))

    def _registers_later(self, actor: Actor) -> bool:
        """Whether its owner is alive and has not registered it yet: the arguments of its constructor are not there."""
        if actor.creation_id not in self._core.references:
            return False
        self._core.ownership.ask_owner(actor.creation_id)
        entry = self._core.memory_store.get(actor.creation_id)
        return entry is not None and not entry.ready

    def _why_not_created(self, actor: Actor) -> bytes:
        """The error that stands for an actor of which the GCS was never told; empty where it is of another session."""
        entry = self._core.memory_store.get(actor.creation_id)
        return entry.data or b"" if entry is not None and entry.metadata == serialization.ERROR else b""

    def _alive(self, actor: Actor, info: Any) -> None:
        if actor.worker is not None and actor.worker.worker_id == info.address.worker_id:
            return
        worker = common_pb2.Address()
        worker.CopyFrom(info.address)
        self._connect(actor, worker, "it was restarted")

    def _connect(self, actor: Actor, worker: common_pb2.Address, why: str) -> None:
        """Calls go to `worker` from now on. What was sent before is settled, with `why`."""
        peer = self._core.peer(worker)
        if peer.channel.is_closed:
            # It died between the GCS's answer and now: the GCS will hear of it too.
            self.watch(actor)
            self._core.reactor.call_later(PROBE_S, lambda: self._probe(actor, worker))
            return
        self._settle_sent(actor, why)
        actor.worker = worker
        actor.peer = peer
        actor.sequence_number = 0
        peer.channel.on_close(lambda reason: self._disconnected(actor, worker))
        self._core.creation_done(actor.creation_id, serialization.CREATED, b"")
        self._pump(actor)

    def _settle_sent(self, actor: Actor, why: str) -> None:
        """Calls that the lost incarnation did not answer: again where retries allow, else ActorUnavailableError."""
        sent = list(actor.in_flight.values())
        actor.nothing_in_flight()
        again = []
        for task in sent:
            if task.retries_left:
                self._core.tasks.next_attempt(task, f"its actor is unavailable: {why}")
                again.append(task)
            else:
                self._fail(task, ActorUnavailableError(why, actor.actor_id))
        actor.queue.extendleft(reversed(again))

    def _fail_unsent(self, actor: Actor) -> None:
        """The actor restarts: what could have been sent does not wait for it."""
        waiting, actor.queue = actor.queue, deque()
        for task in waiting:
            if actor.waits_for_restart(task):
                actor.queue.append(task)
            else:
                self._fail(task, ActorUnavailableError(RESTARTING, actor.actor_id))

    def _fail(self, task: PendingTask, error: BaseException) -> None:
        """Its actor is out of reach."""
        if task.task_id in self._core.tasks.cancelled:
            self._core.tasks.fail_cancelled(task)
        else:
            self._core.tasks.fail(task, error)

    def _dead(self, actor: Actor, cause: common_pb2.DeathCause) -> None:
        actor.state = common_pb2.DEAD
        actor.death = common_pb2.DeathCause()
        actor.death.CopyFrom(cause)
        actor.peer = actor.worker = None
        waiting = actor.take_all()
        for task in waiting:
            self._fail_dead(actor, task)
        metadata, data = actor.death_value()
        self._core.creation_done(actor.creation_id, metadata, data)
        if waiting:
            self._core.memory_store.mark_seen(actor.creation_id)

    def _fail_dead(self, actor: Actor, task: PendingTask) -> None:
        if task.task_id in self._core.tasks.cancelled:
            self._core.tasks.fail_cancelled(task)
            return
        metadata, data = actor.death_value()
        self._core.tasks.fail_serialized(task, metadata, data)

"""Placement groups as this process knows them: those that it made, and those that somebody here waits for.

    create    named ──RegisterPlacementGroup──► answer, since the name may be taken
              any   ──RegisterPlacementGroup, settled──► answer when it is created or removed: not waited
                      for, so that wait() mostly finds it here; a failure shows in ready() and wait()
    wait, ready ──WatchPlacementGroup──► until the group is created or removed
    remove    ──RemovePlacementGroup───► not waited for

All of these go over one connection, so that none overtakes another: who removes a group has registered it,
and who asks what became of one that this process removed hears that. A head that comes back gets again what
had no answer, in the same order (gcs_channel.py): one that lost its store hears so of groups without a place.

One long poll per group is open, while its registration or somebody who waits depends on its answer. What the
registration brought counts for one wait: later the group may have been removed by others, so that the GCS is
asked again.

`ready` runs no task: its object is this process's, and gets its value when the GCS has answered.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ray_mono.common.exceptions import PlacementGroupNameTaken, RaySystemError, TaskPlacementGroupRemoved
from ray_mono.common.explanation import WaitCode
from ray_mono.common.ids import PlacementGroupID, object_name
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.wait_messages import reason_of
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, disconnected
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.long_waits import LongWaits
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_submission.removed_groups import RemovedGroups
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError, StatusCode

Info = common_pb2.PlacementGroupInfo
Subject = common_pb2.WaitSubject

ANSWER_S = 1.0
"""So long the head may take to say how a group is, where nobody waits for more."""
BUNDLES_MAX = 1_000
"""Of so many groups of others the bundles are kept, for those that inherit them."""


class Outcome(enum.Enum):
    """What whoever waits for a group is told."""

    CREATED = "created"
    REMOVED = "removed"
    FAILED = "failed"


class _WaitedFor:
    """A group that the GCS is asked about."""

    __slots__ = ("failure", "group_id", "is_watched", "outcome", "registration", "waiting")

    def __init__(self, group_id: bytes, registration: Info | None = None) -> None:
        self.group_id = group_id
        # Of one that was made here.
        self.registration = registration
        self.is_watched = False
        # Of one that was made here: what its registration brought, until somebody takes it.
        self.outcome: Outcome | None = None
        self.failure = ""
        self.waiting: list[Callable[[Outcome], None]] = []

    def tell(self, outcome: Outcome) -> None:
        """It is known what became of it."""
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback(outcome)


class GcsPlacementGroups:
    """Those of one process; an interface.PlacementGroups."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        dropped: DroppedReferences,
        blocked: BlockedNotice,
        long_waits: LongWaits,
        removed: RemovedGroups,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._context = context
        self._references = references
        self._memory_store = memory_store
        self._dropped = dropped
        self._blocked = blocked
        self._long_waits = long_waits
        self._removed = removed
        self._home = home
        self._timeout_s = env.config.gcs_timeout_s
        self._groups: dict[bytes, _WaitedFor] = {}
        # By object of `ready` that is not there: its group.
        self._ready: dict[bytes, bytes] = {}
        self._bundles: dict[bytes, tuple[ResourceSet, ...]] = {}

    # ---- made and removed

    def create(self, wanted: Info) -> bytes:
        env, context = self._env, self._context
        if env.reactor.is_closed:
            raise disconnected()
        request = Info()
        request.CopyFrom(wanted)
        with env.lock:
            job = context.job
            group_id = PlacementGroupID.for_job(job.job_id, env.rng).binary()
            request.placement_group_id, request.job_id = group_id, job.job_id
            request.namespace = job.namespace
            request.creator.CopyFrom(env.address)
            request.creator_task_id = context.task_id()
            request.outlives_job = job.outlives_job or request.is_detached
            if not request.is_detached:
                request.creator_actor_id = context.detached_actor_id()
        if request.name:
            self._register_named(request)
        with env.lock:
            group = self._groups[group_id] = _WaitedFor(group_id, request)
            self._watch(group)
        return group_id

    def _register_named(self, request: Info) -> None:
        try:
            registration = gcs_pb2.RegisterPlacementGroupRequest(group=request)
            with self._blocked.asks_head(f"a placement group with the name {request.name!r}"):
                self._env.gcs.RegisterPlacementGroup(registration, timeout_s=self._timeout_s)
        except RpcError as error:
            if error.code is not StatusCode.ALREADY_EXISTS:
                raise RaySystemError(f"the placement group could not be registered: {error}") from None
            other = self.named(request.name, request.namespace)
            has_it = "another one" if other is None else other.placement_group_id.hex()
            raise PlacementGroupNameTaken(
                f"the name {request.name!r} is taken in namespace {request.namespace!r}, by placement group"
                f" {has_it}"
            ) from None

    def remove(self, group_id: bytes) -> None:
        if self._env.reactor.is_closed:
            raise disconnected()
        with self._env.lock:
            if self._is_removed(group_id):
                # First: a worker that has nothing to do goes back to its node before the bundles end, and so
                # is not killed, with what it owns, as one that runs something in them.
                self._env.reactor.flush()
            request = gcs_pb2.RemovePlacementGroupRequest(placement_group_id=group_id)
            self._env.gcs.RemovePlacementGroup.start(request, lambda reply, error: None)

    def _is_removed(self, group_id: bytes) -> bool:
        """Returns whether leases end by that."""
        ends_leases = self._removed.add(group_id)
        group = self._groups.pop(group_id, None)
        if group is not None:
            group.tell(Outcome.REMOVED)
        return ends_leases

    # ---- waited for

    def wait(self, group_id: bytes, timeout_s: float | None) -> bool:
        if self._env.reactor.is_closed:
            raise disconnected()
        waiter = Waiter(self._env.reactor)
        outcomes: list[Outcome] = []

        def told(outcome: Outcome) -> None:
            outcomes.append(outcome)
            waiter.set()

        with self._env.lock:
            group = self._waited_for(group_id)
            self._when_known(group, told)
        if not outcomes:
            try:
                subject = Subject(kind=Subject.PLACEMENT_GROUP, id=group_id)
                with self._blocked.noted(WaitCode.PLACEMENT_GROUP, _named(group_id), subject):
                    wait = partial(self._blocked.wait, waiter)
                    self._long_waits.wait(wait, [group_id], timeout_s, kind_name="placement_group")
            finally:
                with self._env.lock:
                    if not outcomes:
                        group.waiting.remove(told)
        if Outcome.REMOVED in outcomes:
            raise _removed(group_id)
        if Outcome.FAILED in outcomes:
            raise RaySystemError(group.failure)
        if outcomes:
            return True
        if self._env.reactor.is_closed:
            raise disconnected()
        return timeout_s is not None and timeout_s < ANSWER_S and self._is_created(group_id)

    def _is_created(self, group_id: bytes) -> bool:
        """As the head says now: it had no time to say so of a group that was created long ago. Raises
        ValueError for one that is removed."""
        row = self._row_at_once(group_id)
        if row is not None and row.state == common_pb2.PLACEMENT_GROUP_REMOVED:
            raise _removed(group_id)
        return row is not None and row.state == common_pb2.PLACEMENT_GROUP_CREATED

    def _row_at_once(self, group_id: bytes) -> Info | None:
        """None where the head does not know it, or does not answer within ANSWER_S."""
        waiter = Waiter(self._env.reactor)
        rows: list[Info | None] = []

        def told(row: Info | None, error: RpcError | None) -> None:
            rows.append(row)
            waiter.set()

        request = gcs_pb2.GetPlacementGroupRequest(placement_group_id=group_id)
        self._env.gcs.GetPlacementGroup.start(request, told)
        self._blocked.wait(waiter, ANSWER_S)
        return rows[0] if rows else None

    def ready(self, group_id: bytes, handle: Any) -> ObjectRef[Any]:
        value = serialization.serialize(handle, "a placement group's handle")
        with self._env.lock:
            if self._env.reactor.is_closed:
                raise disconnected()
            self._dropped.drain()
            object_id = self._context.get().next_put_id()
            self._references.add_owned(object_id)
            ref: ObjectRef[Any] = ObjectRef(object_id, self._home)
            group = self._waited_for(group_id)

            def known(outcome: Outcome) -> None:
                self._ready.pop(object_id, None)
                if object_id not in self._references:
                    return
                told = value
                if outcome is Outcome.REMOVED:
                    told = serialization.serialize_error(TaskPlacementGroupRemoved.of(group_id))
                elif outcome is Outcome.FAILED:
                    told = serialization.serialize_error(RaySystemError(group.failure))
                self._memory_store.put_inline(object_id, told.metadata, told.to_bytes())

            self._ready[object_id] = group_id
            self._when_known(group, known)
        return ref

    def awaited_by(self, object_id: bytes) -> common_pb2.WaitReason | None:
        """Why an object of `ready` is not there; None for another object. Lock held."""
        group_id = self._ready.get(object_id)
        if group_id is None:
            return None
        text = f"{object_name(object_id)} waits for {_named(group_id)}"
        return reason_of(WaitCode.PLACEMENT_GROUP, text, [Subject(kind=Subject.PLACEMENT_GROUP, id=group_id)])

    def story_of(self, object_id: bytes) -> str:
        """For people: the group that an object of `ready` waits for, and why, as the head says now; empty for
        another object. The lock must not be held."""
        group_id = self._ready.get(object_id)
        if group_id is None:
            return ""
        row = self._row_at_once(group_id)
        why = "" if row is None else row.pending_reason
        return f"{_named(group_id)} ({why})" if why else _named(group_id)

    def _waited_for(self, group_id: bytes) -> _WaitedFor:
        group = self._groups.get(group_id)
        if group is None:
            group = _WaitedFor(group_id)
            if group_id in self._removed:
                group.outcome = Outcome.REMOVED
            else:
                self._groups[group_id] = group
        return group

    def _when_known(self, group: _WaitedFor, callback: Callable[[Outcome], None]) -> None:
        """callback(outcome) runs once, under the lock: now, if that is known, or later. Lock held."""
        if group.outcome is None:
            group.waiting.append(callback)
            self._watch(group)
            return
        if group.outcome is Outcome.CREATED:
            del self._groups[group.group_id]
        callback(group.outcome)

    def _watch(self, group: _WaitedFor) -> None:
        if group.is_watched or self._env.reactor.is_closed:
            return
        group.is_watched = True
        gcs, told = self._env.gcs, partial(self._on_settled, group)
        if group.registration is not None:
            registration = gcs_pb2.RegisterPlacementGroupRequest(group=group.registration, settled=True)
            gcs.RegisterPlacementGroup.start(registration, told)
        else:
            watch = gcs_pb2.WatchPlacementGroupRequest(placement_group_id=group.group_id, settled=True)
            gcs.WatchPlacementGroup.start(watch, told)

    def _on_settled(self, group: _WaitedFor, info: Any, error: RpcError | None) -> None:
        group.is_watched = False
        if self._groups.get(group.group_id) is not group:
            return
        if error is not None:
            self._not_settled(group, error)
        elif info.state == common_pb2.PLACEMENT_GROUP_REMOVED:
            self._is_removed(group.group_id)
        elif group.waiting or group.registration is None:
            del self._groups[group.group_id]
            group.tell(Outcome.CREATED)
        else:
            group.outcome = Outcome.CREATED

    def _not_settled(self, group: _WaitedFor, error: RpcError) -> None:
        if error.code is StatusCode.UNAVAILABLE:
            # Nobody is left to say what becomes of it. Whoever waits next asks again.
            group.failure = f"the GCS cannot be reached: {error.message}"
            if group.registration is None:
                del self._groups[group.group_id]
            group.tell(Outcome.FAILED)
        elif group.registration is None:
            # Whoever made it may not have been heard yet.
            again = partial(self._watch_if_wanted, group)
            self._env.reactor.call_later(self._env.config.watch_retry_s, again)
        elif error.code is StatusCode.NOT_FOUND:
            self._is_removed(group.group_id)  # so long ago that nothing is known of it any more
        else:
            group.failure = f"the placement group could not be registered: {error.message}"
            group.outcome = Outcome.FAILED
            group.tell(Outcome.FAILED)

    def _watch_if_wanted(self, group: _WaitedFor) -> None:
        if self._groups.get(group.group_id) is not group:
            return
        if group.waiting:
            self._watch(group)
        else:
            del self._groups[group.group_id]

    # ---- asked of the GCS

    def row(self, group_id: bytes) -> Info | None:
        return self._get(gcs_pb2.GetPlacementGroupRequest(placement_group_id=group_id))

    def named(self, name: str, namespace: str) -> Info | None:
        return self._get(gcs_pb2.GetPlacementGroupRequest(name=name, namespace=namespace))

    def rows(self) -> Sequence[Info]:
        return self._env.gcs.GetAllPlacementGroups(common_pb2.Empty(), timeout_s=self._timeout_s).groups

    def _get(self, request: gcs_pb2.GetPlacementGroupRequest) -> Info | None:
        try:
            with self._blocked.asks_head("a placement group"):
                return self._env.gcs.GetPlacementGroup(request, timeout_s=self._timeout_s)
        except RpcError as error:
            if error.code is not StatusCode.NOT_FOUND:
                raise
            return None

    def bundles_of(self, group_id: bytes) -> tuple[ResourceSet, ...]:
        """What the bundles of a group hold, in plain names; empty for one that the GCS does not know. Raises
        RpcError where the GCS does not answer."""
        known = self._bundles.get(group_id)
        if known is None:
            row = self.row(group_id)
            if row is None:
                return ()
            known = tuple(ResourceSet.from_proto(bundle.resources) for bundle in row.bundles)
            with self._env.lock:
                if len(self._bundles) >= BUNDLES_MAX:
                    self._bundles.clear()
                self._bundles[group_id] = known
        return known

    def describe(self) -> dict[str, int]:
        """For DumpState."""
        return {
            "placement_groups_known": len(self._groups),
            "placement_group_watches": sum(group.is_watched for group in self._groups.values()),
        }


def _removed(group_id: bytes) -> ValueError:
    return ValueError(f"placement group {group_id.hex()} does not exist any more: it was removed")


def _named(group_id: bytes) -> str:
    return f"placement group {group_id.hex()[:8]}"

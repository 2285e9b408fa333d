"""What a worker does about the calls that it has: its links of the chains that docs/internals/explain.md
tells of. It only looks. Lock held.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ray_mono.common.explanation import MOVING, WaitCode
from ray_mono.common.our_bug import known
from ray_mono.common.wait_messages import SUBJECTS_TOLD_MAX, looked_at, reason_of
from ray_mono.core_worker.context import TaskContext, WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.futures import ObjectFutures
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_execution.await_chain import AwaitChain, Awaits
from ray_mono.core_worker.task_execution.call import KnownSpec, RunningActor
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_submission.wait_reasons import WaitReasons
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject

NAMES_TOLD_MAX = 4
"""Of methods that are first."""


class RunReasons:
    """Of one worker."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        running: Running,
        blocked: BlockedNotice,
        futures: ObjectFutures,
        plasma: PlasmaStoreProvider,
        reasons: WaitReasons,
        queued: Callable[[], Iterable[tuple[KnownSpec, bytes, int]]],
    ) -> None:
        """queued(): TaskReceiver.queued."""
        self._queued = queued
        self._env = env
        self._context = context
        self._running = running
        self._blocked = blocked
        self._futures = futures
        self._plasma = plasma
        self._reasons = reasons
        self._look_anew()

    def _look_anew(self) -> None:
        """What is the same for all calls at one moment is looked at once for each question."""
        self._await_chain = AwaitChain(self._futures.object_of)
        # By lock: who may have it, and how many others.
        self._holders: dict[asyncio.Lock, tuple[list[TaskContext], int]] = {}

    def of(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason | None:
        self._look_anew()
        if subject.kind == Subject.TASK:
            return self._of_call(subject)
        if subject.kind == Subject.WORKER:
            return self._of_worker(subject)
        if subject.kind == Subject.ACTOR and subject.runs_there:
            return self._of_living()
        maker = self._running.find(subject.creator_task_id)
        if maker is None:
            return None
        if subject.kind == Subject.ACTOR:
            text = f"{subject.name} is held until {_named(maker)}, which made it, drops its handles"
            # It may have given it to others, or to its actor.
            return reason_of(WaitCode.OWNED, text, [self._subject(maker)], is_unsure=True)
        if subject.kind == Subject.PLACEMENT_GROUP:
            text = f"{subject.name} is held until {_named(maker)}, which made it, removes it"
            return reason_of(WaitCode.HELD_BY_GROUP, text, [self._subject(maker)], is_unsure=True)
        text = f"the items of {subject.name} are for {_named(maker)}, which called it"
        return reason_of(WaitCode.BACKPRESSURE, text, [self._subject(maker)])

    def waiting(self) -> list[tuple[common_pb2.WaitSubject, int]]:
        """What waits here: the task that runs, in its code; calls of this worker's actor, in their code or
        for their turn. Those that wait alike together: one of them, and how many they are."""
        self._look_anew()
        task, running = self._running.task, self._running
        if running.actor is None and task is not None and task.kind.actor_id:
            return []  # a constructor, of which the head tells
        begun = running.begun()
        here = [each for each in (task, *running.calls.values()) if each is not None]
        alike: dict[object, list[common_pb2.WaitSubject]] = {}
        for each in dict.fromkeys(here):
            code = self._of_running(each).code
            if code not in MOVING:
                alike.setdefault((each.kind.shown_name, each in begun, code), []).append(self._subject(each))
        found = [(subjects[0], len(subjects)) for subjects in alike.values()]
        return found if running.actor is None else [*found, *self._queued_calls(running.actor)]

    def _queued_calls(self, actor: RunningActor) -> Iterator[tuple[common_pb2.WaitSubject, int]]:
        """Those of the actor that have not begun, by method: one, and how many."""
        alike: dict[str, tuple[bytes, int]] = {}
        for spec, task_id, num in self._queued():
            name = _of_actor(spec.task_name or f"{actor.class_name}.{spec.name}", actor.actor_id)
            alike[name] = task_id, num + alike.get(name, (b"", 0))[1]
        for name, (task_id, num) in alike.items():
            yield self._here_is(task_id, name), num

    def _of_call(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        task = self._running.find(subject.id)
        if task is not None:
            return self._of_running(task)
        return self._of_waiting(subject.name, list(self._running.begun()))

    def _of_waiting(self, name: str, begun: Sequence[TaskContext]) -> common_pb2.WaitReason:
        """A call that has not begun. begun: what is before it."""
        if not begun:
            return reason_of(WaitCode.STARTING, f"{name} is about to begin on {self._here}, or has ended")
        before = list(dict.fromkeys(map(_named, begun)))
        told = " and ".join(before[:NAMES_TOLD_MAX])
        if len(before) > NAMES_TOLD_MAX:
            told += f" and {len(before) - NAMES_TOLD_MAX} others"
        # With several threads it takes one of them.
        at_once = f" ({len(begun)} calls that run at the same time)" if len(begun) > 1 else ""
        text = f"{name} is behind {told}{at_once} on {self._here}"
        some, num_others = begun[:SUBJECTS_TOLD_MAX], len(begun) - SUBJECTS_TOLD_MAX
        return reason_of(
            WaitCode.BEHIND_OTHERS, text, map(self._subject, some), is_any=True, num_others=num_others
        )

    def _of_worker(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if self._running.actor is not None:
            return self._of_actor(subject.name, self._running.actor)
        task = self._running.task
        if task is None:
            return reason_of(WaitCode.STARTING, f"{self._here} is idle, and about to take or give back")
        return self._of_running(task)

    def _of_living(self) -> common_pb2.WaitReason:
        """What this worker's actor does. It waits for what its calls wait for."""
        calls = self._running.under_way()
        if not calls:
            return reason_of(WaitCode.READY, f"it has no calls on {self._here}")
        what = f"{len(calls)} call{'' if len(calls) == 1 else 's'}"
        some, num_others = calls[:SUBJECTS_TOLD_MAX], max(0, len(calls) - SUBJECTS_TOLD_MAX)
        text = f"it has {what} under way{looked_at(len(calls))}"
        return reason_of(WaitCode.READY, text, map(self._subject, some), num_others=num_others)

    def _of_actor(self, name: str, actor: RunningActor) -> common_pb2.WaitReason:
        """What it holds it holds until it ends, of which whoever made it knows."""
        kept_by = [Subject(kind=Subject.ACTOR, id=actor.actor_id, name=name, at=actor.owner)]
        is_detached = ", which is detached," if actor.is_detached else ""
        text = f"actor {name}{is_detached} holds what it has on {self._here} until it ends"
        calls = map(self._subject, list(self._running.begun())[:SUBJECTS_TOLD_MAX])
        waits_for = calls if actor.is_detached else [*kept_by, *calls]
        return reason_of(WaitCode.HELD_BY_ACTOR, text, waits_for, unblock="end that actor, or give it less")

    def _of_running(self, task: TaskContext) -> common_pb2.WaitReason:
        if without_room := self._plasma.without_room_of(task.task_id):
            text = f"{_named(task)} on {self._here} waits for room in its node's object store"
            return reason_of(WaitCode.GET, text, [self._reasons.in_store(without_room[0])])
        began_s = self._running.begun().get(task)
        if awaited := self._blocked.waited_for_by(task.task_id):
            num_enough = self._blocked.enough_for(task.task_id)
            where = "in its code" if began_s is not None else "before it begins"
            text = f"{_named(task)} on {self._here} waits {where} for"
            return self._of_values(text, awaited, num_enough, self._blocked.is_timed(task.task_id))
        if began_s is None:
            group = task.kind.concurrency_group
            before = [each for each in self._running.begun() if each.kind.concurrency_group == group]
            where = f" (concurrency group {group})" if group else ""
            return self._of_waiting(f"{_named(task)}{where}", before)
        if (wait := self._blocked.other_wait_of(task.task_id)) is not None:
            text = f"{_named(task)} on {self._here} waits in its code for {wait.what}"
            subjects = [] if wait.subject is None else [wait.subject]
            return reason_of(wait.code, text, subjects, unblock=wait.unblock)
        if (blocker := self._who_blocks(task)) is not None:
            text = f"{_named(task)} is behind {_named(blocker)}, which blocks its event loop, on {self._here}"
            return reason_of(WaitCode.BEHIND_OTHERS, text, [self._subject(blocker)])
        awaits = self._awaits(task)
        text = f"{_named(task)} on {self._here} waits in its code for"
        if awaits.object_ids:
            return self._of_values(text, awaits.object_ids, awaits.num_enough, awaits.is_timed)
        if awaits.lock is not None:
            return self._of_lock(text, awaits.lock, awaits.is_lexical, awaits.is_timed)
        if awaited := self._asked_for_by(task.task_id):
            text = f"{_named(task)} on {self._here} has asked for, and may wait in its code for"
            return self._of_values(text, awaited, is_timed=awaits.is_timed, is_unsure=True)
        if awaits.signal:
            text = f"{_named(task)} on {self._here} waits in its code in {awaits.signal}"
            text += _or_a_time(awaits.is_timed)
            unblock = "have other code of that actor do what it waits for, or cancel the call"
            return reason_of(WaitCode.SIGNAL, text, unblock=unblock, times_out=awaits.is_timed)
        if task is self._running.task and _waits_for_threads():
            if awaited := self._blocked.waited_for_by(self._context.threads_task_id):
                text = f"{_named(task)} on {self._here} may wait in its code for its threads, and these for"
                return self._of_values(text, awaited, is_unsure=True)
        for_s = time.perf_counter() - began_s
        return reason_of(WaitCode.RUNNING, f"{_named(task)} runs on {self._here}, for {for_s:.0f} s so far")

    def _asked_for_by(self, task_id: bytes) -> list[bytes]:
        return [*self._futures.awaited_by(task_id), *self._reasons.items_awaited_by(task_id)]

    def _awaits(self, task: TaskContext) -> Awaits:
        """Its coroutine, if it is one's."""
        actor = self._running.actor
        running = None if actor is None else actor.coroutine_of(task)
        return Awaits() if running is None else self._await_chain.of(running[0])

    def _who_blocks(self, task: TaskContext) -> TaskContext | None:
        """The call whose code blocks its event loop."""
        actor = self._running.actor
        running = None if actor is None else actor.coroutine_of(task)
        blocker = None if running is None else self._blocked.who_blocks(running[1])
        return None if blocker is None or blocker == task.task_id else self._running.find(blocker)

    def _of_lock(
        self, text: str, lock: asyncio.Lock, is_lexical: bool, is_timed: bool
    ) -> common_pb2.WaitReason:
        """Who has it nobody knows, but none of those that want it."""
        if lock not in self._holders:
            actor = known(self._running.actor, "the actor of a coroutine")
            begun = [each for each in self._running.begun() if self._awaits(each).lock is not lock]
            num_others = max(0, len(begun) - SUBJECTS_TOLD_MAX) + actor.num_beside_calls()
            self._holders[lock] = begun[:SUBJECTS_TOLD_MAX], num_others
        calls, num_others = self._holders[lock]
        return reason_of(
            WaitCode.LOCK,
            f"{text} a lock that another call of its actor has{_or_a_time(is_timed)}",
            map(self._subject, calls),
            is_any=True,
            times_out=is_timed,
            # What the actor's code has started may have it, or a call that is over, until a later one.
            num_others=num_others + (not is_lexical),
        )

    def _of_values(
        self,
        text: str,
        awaited: Sequence[bytes],
        num_enough: int | None = None,
        is_timed: bool = False,
        is_unsure: bool = False,
    ) -> common_pb2.WaitReason:
        """text goes on with what is awaited. num_enough: so many of them are; None: all are needed. is_timed:
        the wait ends when a time is over. is_unsure: one of these may be enough, or none of them needed."""
        is_any = num_enough is not None and num_enough < len(awaited)
        what = f"{len(awaited)} object{'' if len(awaited) == 1 else 's'}"
        what = f"{num_enough} of {what}" if is_any else what
        what += looked_at(len(awaited))
        what += _or_a_time(is_timed)
        is_any = is_any or is_unsure
        asked_about = self._reasons.in_question(awaited, is_any)
        return reason_of(
            WaitCode.GET,
            f"{text} {what}",
            map(self._reasons.awaited, asked_about),
            is_any=is_any,
            num_needed=num_enough or 0,
            times_out=is_timed,
            num_others=len(awaited) - len(asked_about) + is_unsure,
        )

    def _subject(self, task: TaskContext) -> common_pb2.WaitSubject:
        return self._here_is(task.task_id, _named(task))

    def _here_is(self, task_id: bytes, name: str) -> common_pb2.WaitSubject:
        return Subject(kind=Subject.TASK, id=task_id, name=name, at=self._env.address, runs_there=True)

    @property
    def _here(self) -> str:
        env = self._env
        return f"worker {env.worker_id.hex()[:8]} (pid {env.pid}, node {env.node_id.hex()[:8]})"


def _or_a_time(is_timed: bool) -> str:
    return ", or until a time is over" if is_timed else ""


def _waits_for_threads() -> bool:
    """The main thread stands in a lock, an event, a join or a future of Python's."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename == threading.__file__


def _named(task: TaskContext) -> str:
    return _of_actor(task.kind.shown_name, task.kind.actor_id)


def _of_actor(name: str, actor_id: bytes) -> str:
    return f"{name}()" + (f" of actor {actor_id.hex()[:8]}" if actor_id else "")

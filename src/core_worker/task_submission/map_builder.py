"""`f.map(items)`: as many tasks as items, made in one pass.

    items, a piece at a time ──► pickled, outside of the lock
                             ──► ids, pending tasks, counts, references: in bulk
                             ──► the submitter, whose frames they share (shared_push.py)

The first pieces are on their way while later ones are packed. An item that stays in its list's pickle
(task_builder.py) is usual. Any other is packed as `.remote()` does it, and its task travels alone.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from ray_mono.core_worker.call_template import CallTemplate
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.object_ref import ObjectRef, ReferenceHome, disconnected
from ray_mono.core_worker.task_submission.actor_handles import HeldActor
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.dependency_resolver import DependencyResolver
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask, RetryExceptions, Together
from ray_mono.core_worker.task_submission.task_builder import (
    MethodTemplate,
    Packed,
    TaskBuilder,
    TaskTemplate,
    are_small_numbers,
    stays_inline,
)
from ray_mono.core_worker.task_submission.task_manager import TaskManager

PIECE_ITEMS = 512
"""Packed, and then counted under the lock, at a time: some milliseconds."""
FIRST_PIECE_ITEMS = 64

_Send = Callable[[list[PendingTask]], None]


class _Collector:
    """The cycle collector. Objects that are made in bulk, and live, have it look at all of them again and
    again, which takes longer than to make them. So it rests while a `map` makes its tasks, and not while
    items are pickled, which runs code of the user's. Two threads may do so at once: it rests when either says
    so, and goes on in the end."""

    def __init__(self) -> None:
        self._was_on = False

    def rest(self) -> None:
        if gc.isenabled():
            self._was_on = True
            gc.disable()

    def go_on(self) -> None:
        if self._was_on:
            self._was_on = False
            gc.enable()


@dataclass(frozen=True)
class _Kind:
    """What the tasks of one `map` share."""

    call: CallTemplate
    actor_id: bytes
    """Empty for normal tasks."""
    retries: int
    retry_exceptions: RetryExceptions
    resubmit: Callable[[PendingTask], None] | None
    held: Sequence[ObjectRef[Any]]
    """What each of them holds besides its argument."""
    together: Together


class MapBuilder:
    """Makes the tasks of a `map`, of a template that returns one value."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        builder: TaskBuilder,
        tasks: TaskManager,
        dependencies: DependencyResolver,
        normal_tasks: NormalTaskSubmitter,
        actor_tasks: ActorTaskSubmitter,
        home: ReferenceHome,
    ) -> None:
        self._env = env
        self._context = context
        self._builder = builder
        self._tasks = tasks
        self._dependencies = dependencies
        self._normal_tasks = normal_tasks
        self._actor_tasks = actor_tasks
        self._home = home

    def submit_tasks(
        self, template: TaskTemplate, items: Sequence[Any], chunk: int, refs: list[ObjectRef[Any]]
    ) -> None:
        """See CoreInterface.submit_tasks."""
        options = template.options
        kind = _Kind(
            template.call,
            b"",
            options.max_retries,
            options.retry_exceptions,
            template.resubmit,
            template.captured,
            Together(chunk),
        )
        self._submit(kind, items, refs, lambda tasks: self._send(template, tasks))

    def submit_actor_tasks(
        self,
        held: HeldActor,
        template: MethodTemplate,
        items: Sequence[Any],
        chunk: int,
        refs: list[ObjectRef[Any]],
    ) -> None:
        """See CoreInterface.submit_actor_tasks."""
        actor = held.actor
        if actor.rules.max_pending_calls >= 0:
            for item in items:
                refs.extend(self._builder.submit_actor_task(held, template, [None, item]))
            return
        call = self._builder.method_call(actor, template)
        kind = _Kind(
            call,
            actor.actor_id,
            template.max_task_retries,
            template.retry_exceptions,
            template.resubmit,
            () if held.creation_ref is None else (held.creation_ref,),
            Together(chunk),
        )
        self._submit(kind, items, refs, lambda tasks: self._actor_tasks.submit_all(actor, tasks))

    def _submit(
        self,
        kind: _Kind,
        items: Sequence[Any],
        refs: list[ObjectRef[Any]],
        send: _Send,
    ) -> None:
        reactor, collector = self._env.reactor, _Collector()
        begin, end = 0, FIRST_PIECE_ITEMS
        try:
            while begin < len(items):
                if reactor.is_closed:
                    raise disconnected()
                are_short = self._submit_piece(kind, items[begin:end], refs, send, collector)
                # Each that travels alone takes as long as a call of `.remote()`.
                begin, end = end, end + (PIECE_ITEMS if are_short else self._env.config.turn_calls)
                reactor.take_turn()
                if reactor.interrupted:
                    reactor.raise_if_interrupted()
        finally:
            collector.go_on()

    def _submit_piece(
        self,
        kind: _Kind,
        items: Sequence[Any],
        refs: list[ObjectRef[Any]],
        send: _Send,
        collector: _Collector,
    ) -> bool:
        """Returns whether all of them stay inline."""
        packed: dict[int, Packed] = {}
        if not are_small_numbers(items):
            for position, item in enumerate(items):
                if stays_inline(item):
                    continue
                collector.go_on()
                try:
                    packed[position] = self._builder.pack([None, item], kind.call.title)
                except BaseException:
                    self._submit_packed(kind, items[:position], packed, refs, send)
                    raise
        collector.rest()
        self._submit_packed(kind, items, packed, refs, send)
        return not packed

    def _submit_packed(
        self,
        kind: _Kind,
        items: Sequence[Any],
        packed: dict[int, Packed],
        refs: list[ObjectRef[Any]],
        send: _Send,
    ) -> None:
        """packed: those that do not stay inline, by position."""
        if not items:
            return
        with self._env.lock:
            tasks = self._make(kind, items, packed)
            made = self._tasks.add_all_pending(tasks)
            refs += map(ObjectRef, made, repeat(self._home))
            send(tasks)

    def _make(self, kind: _Kind, items: Sequence[Any], packed: dict[int, Packed]) -> list[PendingTask]:
        """Lock held."""
        parent = self._context.get()
        depth = parent.kind.depth + 1
        task_ids = parent.next_task_ids(kind.actor_id or self._context.job.nil_actor, len(items))
        number = self._builder.next_numbers(len(items))
        alone = {
            position: self._new(kind, task_ids[position], depth, number + position, own)
            for position, own in packed.items()
        }
        if len(alone) == len(items):
            return list(alone.values())
        tasks = self._new(kind, task_ids[0], depth, number).with_items(task_ids, items)
        for position, task in alone.items():
            tasks[position] = task
        return tasks

    def _new(
        self, kind: _Kind, task_id: bytes, depth: int, number: int, packed: Packed | None = None
    ) -> PendingTask:
        """One that travels alone; without `packed`, what others are made like."""
        flat, args, refs = packed or (b"", [], [])
        arg_ids = [ref._id for ref in (*kind.held, *refs)]
        together = kind.together if packed is None else None
        return PendingTask(
            task_id,
            kind.call,
            flat,
            args,
            depth,
            arg_ids,
            kind.retries,
            kind.retry_exceptions,
            kind.resubmit,
            number,
            together,
        )

    def _send(self, template: TaskTemplate, tasks: list[PendingTask]) -> None:
        """Normal tasks. Those that travel alone go as those of `.remote()`. If they have messages for
        arguments, it is looked first whether these are there."""
        together: list[PendingTask] = []
        for task in tasks:
            if task.together:
                together.append(task)
                continue
            if together:
                self._normal_tasks.submit_all(template.queue, together)
                together = []
            if task.has_args:
                self._dependencies.resolve(task, template.resubmit)
            else:
                self._normal_tasks.submit(template.queue, task)
        if together:
            self._normal_tasks.submit_all(template.queue, together)

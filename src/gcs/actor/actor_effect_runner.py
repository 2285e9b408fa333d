"""Carries out what the actor manager decides: rows at once, what others can see of it after their commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never

from ray_mono.common.ids import ActorID, JobID
from ray_mono.gcs.actor.actor_effects import (
    Effect,
    EndActorWorker,
    GoOnCreating,
    Place,
    RowChanged,
    RowForgotten,
    StopPlacing,
)
from ray_mono.gcs.actor.actor_ender import ActorEnder
from ray_mono.gcs.actor.actor_scheduler import ActorScheduler
from ray_mono.gcs.actor.actor_table import ActorTable
from ray_mono.gcs.storage.write_through import WriteThrough


class ActorEffectRunner:
    """Of one GCS. It decides nothing, and waits for nothing."""

    def __init__(
        self,
        table: ActorTable,
        scheduler: ActorScheduler,
        ender: ActorEnder,
        writes: WriteThrough,
        on_deaths: Callable[[list[JobID], list[ActorID]], None],
    ) -> None:
        """on_deaths(job_ids, actor_ids) is told whose actors died, and which, when their rows are written."""
        self._table = table
        self._scheduler = scheduler
        self._ender = ender
        self._writes = writes
        self._on_deaths = on_deaths

    def run(self, effects: Iterable[Effect]) -> None:
        """In their order."""
        bereaved: set[JobID] = set()
        dead: list[ActorID] = []
        for effect in effects:
            match effect:
                case RowChanged(actor, announced):
                    self._table.row_changed(actor, announced)
                    if actor.death is not None:
                        bereaved.add(actor.registration.job_id)
                        dead.append(actor.actor_id)
                case RowForgotten(actor_id):
                    self._table.forget(actor_id)
                case StopPlacing(actor_id):
                    self._scheduler.stop(actor_id)
                case GoOnCreating(actor_id, incarnation):
                    self._scheduler.go_on_creating(actor_id, incarnation)
                case Place():
                    self._scheduler.place(effect)
                case EndActorWorker():
                    self._after_commit_end(effect)
                case _:
                    assert_never(effect)
        if bereaved:
            self._on_deaths(sorted(bereaved), dead)

    def _after_commit_end(self, effect: EndActorWorker) -> None:
        address = None if effect.force else self._table.address(effect.actor_id)
        self._writes.after_commit(lambda: self._ender.end(effect, address))

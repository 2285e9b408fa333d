"""Pulls, alive: carries out what the PullManager decides.

Fetches are started and stopped, and who waits is told of a failure.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, assert_never

from ray_mono.common.our_bug import known
from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.no_room import NoRoom
from ray_mono.object_manager.pull_manager import (
    Pull,
    PullEffect,
    PullLost,
    PullManager,
    StartFetch,
    StopFetch,
)
from ray_mono.object_manager.seams import Arrival


class Fetcher(Protocol):
    """Carries fetches out, and reports their end to the NodeStore."""

    def start_fetch(self, fetch: StartFetch) -> None: ...

    def stop_fetch(self, object_id: ObjectKey) -> None:
        """The fetch that runs is for nobody; nothing is reported any more."""
        ...

    def arriving(self, object_id: ObjectKey) -> Arrival | None:
        """What has come of an object that is on its way here; None where there is none."""
        ...

    def forget(self, object_id: ObjectKey) -> None:
        """The pull is over: what an earlier fetch left half done goes."""
        ...


def spread(node_id: NodeKey, object_id: ObjectKey, holders: Sequence[NodeKey]) -> list[NodeKey]:
    """The holders in an order of this node's own, so that not all nodes ask the same one first."""
    return sorted(holders, key=lambda holder: zlib.crc32(node_id + object_id + holder))


class Pulls:
    """All objects that are on their way to this node.

    Without a fetcher there are none: the store is alone.
    """

    def __init__(
        self,
        node_id: NodeKey,
        manager: PullManager,
        no_room: NoRoom,
        on_lost: Callable[[ObjectKey, str], None],
        on_unobtainable: Callable[[ObjectKey, str], None],
    ) -> None:
        """on_lost(object_id, reason): nobody gave it. on_unobtainable(object_id, error): there is no room."""
        self._node_id = node_id
        self._manager = manager
        self._no_room = no_room
        self._on_lost = on_lost
        self._on_unobtainable = on_unobtainable
        self._fetcher: Fetcher | None = None

    def attach(self, fetcher: Fetcher) -> None:
        """There are other nodes, and this is who fetches from them."""
        self._fetcher = fetcher

    def __len__(self) -> int:
        return len(self._manager)

    def __contains__(self, object_id: ObjectKey) -> bool:
        return object_id in self._manager

    # ---- questions

    @property
    def num_active(self) -> int:
        return self._manager.num_active

    def of(self, object_id: ObjectKey) -> Pull | None:
        """For people: the pull of an object."""
        return self._manager.of(object_id)

    def all(self) -> list[Pull]:
        """For people."""
        return self._manager.pulls()

    def arriving(self, object_id: ObjectKey) -> Arrival | None:
        """What has come of an object that is on its way here; None where there is none."""
        return None if self._fetcher is None else self._fetcher.arriving(object_id)

    # ---- who waits

    def want(self, object_id: ObjectKey, locations: Sequence[NodeKey], priority: Priority) -> None:
        if self._fetcher is None:
            self._on_lost(object_id, "this store runs alone and copies nothing")
        else:
            self._manager.want(object_id, spread(self._node_id, object_id, locations), priority)

    def unwant(self, object_id: ObjectKey) -> None:
        self._manager.unwant(object_id)
        if object_id not in self._manager:
            self._forget(object_id)

    def cancel(self, object_id: ObjectKey) -> None:
        """The object was freed, appeared here by itself, or who wants it gives way."""
        self._carry_out(self._manager.cancel(object_id))
        self._forget(object_id)

    def schedule(self, obtainable_bytes: int) -> None:
        """There are places again, or memory came free."""
        self._carry_out(self._manager.schedule(obtainable_bytes))

    # ---- how a fetch ended

    def fetched(self, object_id: ObjectKey) -> None:
        self._manager.fetched(object_id)

    def failed(self, object_id: ObjectKey, reason: str, has_brought: bool) -> None:
        self._carry_out(self._manager.fetch_failed(object_id, reason, has_brought))

    def sent_on(self, object_id: ObjectKey, relay: NodeKey) -> None:
        self._carry_out(self._manager.sent_on(object_id, relay))

    def announced(self, object_id: ObjectKey) -> None:
        self._carry_out(self._manager.announced(object_id))

    def found_no_memory(self, object_id: ObjectKey, size_bytes: int) -> None:
        self._carry_out(self._manager.no_memory(object_id, size_bytes))

    def never_fits(self, object_id: ObjectKey, error: StoreFull) -> None:
        text = self._no_room.ever(object_id, self._manager.asked(object_id), error)
        self.cancel(object_id)
        self._on_unobtainable(object_id, text)

    def check_invariants(self) -> None:
        """Raises InternalError."""
        self._manager.check_invariants()

    def _carry_out(self, effects: Iterable[PullEffect]) -> None:
        for effect in effects:
            match effect:
                case StartFetch():
                    known(self._fetcher, "the fetcher").start_fetch(effect)
                case StopFetch(object_id):
                    known(self._fetcher, "the fetcher").stop_fetch(object_id)
                case PullLost(object_id, reason):
                    self._forget(object_id)
                    self._on_lost(object_id, reason)
                case _:
                    assert_never(effect)

    def _forget(self, object_id: ObjectKey) -> None:
        if self._fetcher is not None:
            self._fetcher.forget(object_id)

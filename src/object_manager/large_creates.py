"""Objects that get a file of their own instead of room in the store, and are read there by everybody
(Spills), or restored like any other. An object that is larger than the store, or for which readers leave no
room, is written by its client. A copy from another node that has no room here (admission.py) is written by
the fetch, and never restored. Room is taken on the disk before the file is granted, so that no write dies for
lack of it. Who finds none is refused at once: no reader that lets go would help, or it has waited for that
already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ray_mono.object_manager.create_queue import RoomWanted
from ray_mono.object_manager.errors import StoreFull
from ray_mono.object_manager.keys import ClientKey, ObjectKey
from ray_mono.object_manager.pending_answers import was_given
from ray_mono.object_manager.spill_files import Extent
from ray_mono.object_manager.spills import Spills, why_not_written
from ray_mono.object_manager.store import Store
from ray_mono.object_manager.stored_object import StoredObject


class LargeCreates:
    """Those of a node's clients."""

    def __init__(
        self,
        store: Store,
        spills: Spills,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        settle: Callable[[], None],
    ) -> None:
        self._store = store
        self._spills = spills
        self._spawn = spawn
        self._settle = settle
        self._making: dict[tuple[ObjectKey, ClientKey], asyncio.Future[Extent]] = {}

    def takes(self, size_bytes: int) -> bool:
        """Whether an object of this size is for a file of its own."""
        return self._spills.has_disk and not self._store.can_hold(size_bytes)

    async def create(self, wanted: RoomWanted, why: str = "", is_primary: bool = True) -> Extent:
        """The file, and the object is in the table. Raises ObjectExists, StoreFull.

        why: it has no room in memory, if not for its size.
        """
        if not why:
            # Why others could not be written says nothing of this one.
            memory = self._store.describe_memory(tells_of_disk=False)
            why = f"wanted {wanted.size_bytes} bytes, more than the store can hold: {memory}"
        self._store.check_new(wanted.object_id, wanted.owner, is_primary)
        extents = self._spills.plan_files(wanted.object_id, wanted.size_bytes)
        key = (wanted.object_id, wanted.client)
        answer: asyncio.Future[Extent] = asyncio.get_running_loop().create_future()
        self._making[key] = answer
        self._spawn(self._make(extents, why, answer), f"make a file for {wanted.object_id.hex()}")
        try:
            return self._enter(wanted, await answer, is_primary)
        except BaseException:
            if was_given(answer):
                self._spills.remove(answer.result().file)
            raise
        finally:
            if self._making.get(key) is answer:
                del self._making[key]

    def give_up(self, object_id: ObjectKey, client: ClientKey) -> bool:
        """The client does not want it any more. False where it does not wait for any."""
        answer = self._making.get((object_id, client))
        if answer is None or answer.done():
            return False
        answer.set_exception(StoreFull("the client gave it up"))
        return True

    def _enter(self, wanted: RoomWanted, extent: Extent, is_primary: bool) -> Extent:
        if not self._store.is_connected(wanted.client):
            raise StoreFull("the client's connection ended")
        self._store.check_new(wanted.object_id, wanted.owner, is_primary)
        self._store.create_on_disk(
            StoredObject(
                wanted.object_id,
                0,
                extent.size_bytes,
                wanted.metadata,
                wanted.owner,
                wanted.client,
                is_primary,
                has_memory=False,
                is_on_disk=True,
                goes_with_readers=not is_primary,
            ),
            extent,
        )
        return extent

    async def _make(self, extents: list[Extent], why: str, answer: asyncio.Future[Extent]) -> None:
        """The first of these files for which its disk has room."""
        reasons: dict[str, None] = {}
        for extent in extents:
            if answer.done():
                break
            try:
                await self._spills.make_file(extent)
            except OSError as error:
                reasons[why_not_written(error)] = None
                continue
            if answer.done():
                self._spills.remove(extent.file)
            else:
                answer.set_result(extent)
        if not answer.done():
            answer.set_exception(StoreFull("; ".join((why, *reasons))))
        self._settle()

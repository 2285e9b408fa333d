"""Durable before answered: collects the writes of one turn of the loop and commits them together.

Managers `put` rows while they handle an event, and go on. Whoever answers a caller first awaits `flushed`.
What others may learn of (publications, messages to raylets) is handed to `after_commit`. A task commits what
has gathered, and runs on while more has gathered meanwhile. It begins when a turn of the loop has brought
nothing more: requests that arrived together are begun one a turn where they wait for something
(rpc/framed_server.py), and share one commit.

A store that refuses a write ends the service: memory is then ahead of the store, and only a new start puts
them together again. But room for it is waited for (`room.py`): a person may make some, and a new start would
find none either.

Nobody is answered by a head that another one may have replaced: where the store has not confirmed this head
lately, an answer waits for a commit, which may be one without writes. All answers of a turn share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ray_mono.gcs.storage.room import Room
from ray_mono.gcs.storage.table_storage import Table, TableStorage, Write
from ray_mono.rpc.surface import RpcError, StatusCode

GATHER_TURNS_MAX = 200
GATHER_MAX_S = 0.02
"""A commit begins after so many turns, or so long, in any case. A hundred requests that came together take
about 10 ms: they share a commit, and what follows from it (placement groups: a round)."""


class WriteThrough:
    """The only writer of a TableStorage."""

    def __init__(
        self,
        storage: TableStorage,
        on_failure: Callable[[Exception], None],
        room: Room | None = None,
    ) -> None:
        """on_failure(error) runs once: the store refused a write, or an action raised. Nothing is written
        then. room: who waits for it; None: nobody.
        """
        self._room = room or Room()
        self._storage = storage
        self._on_failure = on_failure
        self._failure: Exception | None = None
        self._is_closing = False
        # The last write of a row within a batch is the one that counts.
        self._writes: dict[tuple[Table, bytes], bytes | None] = {}
        self._actions: list[Callable[[], object]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        # Whether the store is to be asked even where it need not be.
        self._asks_store = False

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        self._writes[table, key] = value
        self._start()

    def delete(self, table: Table, key: bytes) -> None:
        self._writes[table, key] = None
        self._start()

    def after_commit(self, action: Callable[[], object]) -> None:
        """action() runs when all written up to now is durable, after earlier actions; never at once."""
        self._actions.append(action)
        self._start()

    async def flushed(self) -> None:
        """Returns when everything written up to now is durable, and this head is the latest.

        Raises RpcError UNAVAILABLE where the store failed.
        """
        if not self._storage.is_confirmed(0):
            self._start()
        if self._task is not None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(done)
            await done
        self._raise_failure()

    async def confirmed(self) -> None:
        """Returns when this head is the latest, at once where that is known. For what waits for no write.

        Raises RpcError UNAVAILABLE where the store failed, or has another head.
        """
        if not self._storage.is_confirmed(0):
            await self.flushed()
        self._raise_failure()

    async def confirm(self) -> None:
        """As `confirmed`, but asks the store in any case."""
        self._asks_store = True
        self._start()
        await self.flushed()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RpcError(StatusCode.UNAVAILABLE, f"the GCS lost its store: {self._failure}")

    async def close(self) -> None:
        """Returns when nothing is under way any more. What there is no room for is not written."""
        self._is_closing = True
        self._room.give_up()
        if self._task is not None:
            await asyncio.wait({self._task})

    def _start(self) -> None:
        if self._task is None and self._failure is None:
            self._task = asyncio.get_running_loop().create_task(self._drain(), name="gcs write-through")

    async def _drain(self) -> None:
        waiters: list[asyncio.Future[None]] = []
        try:
            while self._writes or self._actions or self._waiters or self._asks_store:
                await self._gather()
                writes = [Write(table, key, value) for (table, key), value in self._writes.items()]
                actions, waiters = self._actions, self._waiters
                self._writes, self._actions, self._waiters = {}, [], []
                if writes or self._asks_store or not self._storage.is_confirmed(0):
                    self._asks_store = False
                    await self._room.until(partial(self._storage.commit, writes))
                for action in actions:
                    action()
                release(waiters)
        except Exception as error:
            self._failure = error
            if not self._is_closing:
                self._on_failure(error)
            release(waiters + self._waiters)
        finally:
            self._task = None

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        until_s, gathered = loop.time() + GATHER_MAX_S, -1
        for _ in range(GATHER_TURNS_MAX):
            before, gathered = gathered, len(self._writes) + len(self._actions) + len(self._waiters)
            if gathered == before or loop.time() > until_s:
                return
            await asyncio.sleep(0)


def release(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)

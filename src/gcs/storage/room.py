"""No room for the head's store, on its disk or in its Redis, is no end: what has to be written is tried again
until there is some, with growing pauses and one warning, as with a Redis that is away. What was not written
was not acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray_mono.common.backoff import Backoff
from ray_mono.gcs.storage.table_storage import StorageError, StorageFullError

RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class Room:
    """Waits for it, for one store."""

    def __init__(
        self, retry_for_s: float = 0.0, on_full: Callable[[str], None] = lambda message: None
    ) -> None:
        """on_full(message): there is none, which is waited for; each time once."""
        self._retry_for_s = retry_for_s
        self._on_full = on_full
        self._is_given_up = False

    def give_up(self) -> None:
        """Nothing waits from now on."""
        self._is_given_up = True

    async def until(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        """step(), again while there is no room for it. Raises StorageError, as step does, and where there has
        been none for retry_for_s."""
        waited_s, has_waited = 0.0, False
        pauses = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while True:
            try:
                answer = await step()
            except StorageFullError as error:
                if self._is_given_up or not self._retry_for_s:
                    raise
                if waited_s >= self._retry_for_s:
                    message = f"{error}: there has been no room for it for {waited_s:.0f} s"
                    raise StorageError(message) from error
                if not has_waited:
                    logger.warning(
                        "There is no room for the head's store: %s. Nothing is lost, and what has to be"
                        " written waits. Trying again for %g s, then this GCS ends",
                        error,
                        self._retry_for_s,
                    )
                    self._on_full(str(error))
            else:
                if has_waited:
                    logger.warning("There is room for the head's store again, after %.1f s", waited_s)
                return answer
            has_waited = True
            pause_s = pauses.next_s()
            await asyncio.sleep(pause_s)
            waited_s += pause_s

"""What outsiders check about generators: with backpressure, no more items wait to be taken than may."""

from __future__ import annotations

from tests.simulation.loop import SimulationError


class StreamCheckFailed(SimulationError):
    """An invariant about generators does not hold."""


class StreamJournal:
    """Told by those who make items and by those who take them."""

    def __init__(self) -> None:
        self._taken: dict[bytes, int] = {}
        # Nobody takes any more: they run to their ends. An ordered set.
        self._dropped: dict[bytes, None] = {}
        self.num_taken = 0

    def made(self, task_id: bytes, number: int, backpressure: int) -> None:
        """The task makes its `number`-th item."""
        taken = self._taken.get(task_id, 0)
        if backpressure and number - taken > backpressure and task_id not in self._dropped:
            raise StreamCheckFailed(
                f"generator {task_id.hex()[:12]} makes item {number} while {taken} are taken,"
                f" with backpressure {backpressure}"
            )

    def taken(self, task_id: bytes) -> None:
        self._taken[task_id] = self._taken.get(task_id, 0) + 1
        self.num_taken += 1

    def dropped(self, task_id: bytes) -> None:
        self._dropped[task_id] = None

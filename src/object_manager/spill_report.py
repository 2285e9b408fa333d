"""What people are told of spilling: how much was written and how fast. They are told first after so many
bytes, and again each time that these have doubled. A machine without I/O.
"""

from __future__ import annotations

_MIB = 1 << 20


class SpillReport:
    """Of one node. Files are written beside each other: what counts is how long any was."""

    def __init__(self, first_bytes: int) -> None:
        """first_bytes: 0 is never."""
        self._next_bytes = first_bytes
        self._written_bytes = 0
        self._num_objects = 0
        self._num_writing = 0
        self._since_s = 0.0
        self._busy_s = 0.0

    def begun(self, now_s: float) -> None:
        """A file is being written."""
        if not self._num_writing:
            self._since_s = now_s
        self._num_writing += 1

    def ended(self, size_bytes: int, num_objects: int, now_s: float) -> str:
        """It is written, or (with nothing) could not be. What to tell, or ""."""
        self._busy_s += now_s - self._since_s
        self._since_s = now_s
        self._num_writing -= 1
        self._written_bytes += size_bytes
        self._num_objects += num_objects
        if not self._next_bytes or self._written_bytes < self._next_bytes:
            return ""
        while self._next_bytes <= self._written_bytes:
            self._next_bytes *= 2
        speed = self._written_bytes / _MIB / self._busy_s if self._busy_s else 0.0
        return (
            f"Spilled {self._written_bytes / _MIB:.0f} MiB, {self._num_objects} objects, write throughput"
            f" {speed:.0f} MiB/s: objects in use take more than the object store has room for."
            " RAY_MONO_verbose_spill_logs=0, set where the node is started, turns this message off"
        )

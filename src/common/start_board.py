"""What a worker has begun and runs, where its raylet can read it without asking: a page of memory that both
map.

    worker, before a normal task starts    begun := the task's number; then: is its lease closed?
                                           If so, the task does not start.
    raylet, to take back what waits        closed := the lease; a moment later: which task of the lease has
                                           begun?

A task's number is its lease's number and its place among the tasks pushed on that lease, from 1. Each side
writes first and then reads. So a task that is taken back never starts: either its worker saw that the lease
is closed, or the raylet saw that the task has begun. One processor may see the write of another some
microseconds late, also where the writer is stopped right after it. For that the raylet waits SETTLE_S. The
answer is exact whether the worker runs, is frozen, stopped or dead.

The worker also says the name of the task that it runs, until the task is over, which is before its answer
leaves. So the raylet knows what a worker ran that died, and whether one that is stopped runs anything. A name
is written only if it differs from the last one.

The raylet also says until when an actor's code may run here (raylet/head_lease.py).

Answers of tasks that came together share a send, and so do those of an actor's short calls. Until that
leaves, the worker keeps them here as well, so that its death loses none. Answers of an actor's calls are kept
with their task's id, since an actor has no lease; those of its calls that came together with the id of the
first of these, as if they were of lease 0.

Answers that have left may be lost with their connection. So an actor's worker also says whose connections
have ended, and for whom it has an answer still when the next call begins: of these callers' calls nobody
knows which were answered. There is room for the latest of them, since each finds the actor again within
seconds, or asks then. And a worker says when its actor has gone on elsewhere: what has no answer then never
begins.

The memory is the worker's (memfd); its raylet maps it by /proc when the worker registers. Cost to a task:
some 0.3 µs.
"""

from __future__ import annotations

import mmap
import os
import weakref
from struct import Struct
from time import CLOCK_BOOTTIME, CLOCK_MONOTONIC, clock_gettime_ns

SETTLE_S = 0.005
_PAGE_BYTES = 4096
_BYTES = 17 * _PAGE_BYTES
_BEGUN, _CLOSED, _IDENTITY, _NAME_BYTES, _HEAD_LEASE, _HEAD_LEASE_AWAKE = 0, 1, 2, 3, 7, 8
_FRAME_START, _FRAME_END = 32, 56
_HAS_MOVED, _LOST_CALLERS, _LOST_CALLERS_MAX = 9, 10, 256
_NAME_START = 8 * (_LOST_CALLERS + _LOST_CALLERS_MAX)
_NAME_BYTES_MAX = _PAGE_BYTES - _NAME_START
# Behind the first page: answers that are kept. Those that follow each other and are one object, as most are,
# are kept once: how many there are, the size of one, and its bytes, which end with a cell.
_KEPT_FIRST, _KEPT_BYTES = _PAGE_BYTES // 8, _PAGE_BYTES // 8 + 1
_KEPT_START = _PAGE_BYTES + 16
_KEPT_HEAD = Struct("<QQ")
# Of a call of an actor: the size of its answer, and its task's id. _KEPT_FIRST is 0 then.
_CALL_HEAD = Struct("<Q24s")
_CALL_HEAD_BYTES = _CALL_HEAD.size
_KEPT_MAX = 1 << 16
"""More than any worker is sent ahead."""
_NO_LEASE = _NO_END = (1 << 64) - 1
_NONE_KEPT, _CALLS_KEPT = -1, -2
LEASE_SHIFT = 32
LEASES_MASK = (1 << 32) - 1


class StartBoard:
    """The worker's side, made once by each worker."""

    def __init__(self, worker_id: bytes) -> None:
        self.fd = os.memfd_create("ray_mono-start-board", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd).atexit = False
        os.ftruncate(self.fd, _BYTES)
        self._memory = mmap.mmap(self.fd, _BYTES)
        self._cells = memoryview(self._memory).cast("Q")
        self._cells[_CLOSED] = _NO_LEASE
        self._cells[_IDENTITY] = cell_of(worker_id)
        self._cells[_HEAD_LEASE] = _NO_END
        self._name: str | None = None
        self._name_bytes = 0
        # The number whose answer follows those that are kept, if there are any.
        self._kept_next = _NONE_KEPT
        self._kept_end = _KEPT_START
        # Of a frame's calls: the frame.
        self._frame_id = b""
        # The answer that was kept last, how often, and the cell that says so.
        self._last: bytes | None = None
        self._num_last = 0
        self._num_last_cell = 0
        # Where the answer of a call stands that was kept last.
        self._last_start = 0
        self._call_size = 0
        self._pack_call = Struct("<Q24s0s").pack_into
        self._num_lost_callers = 0

    def may_begin(self, number: int, name: str) -> bool:
        """The task of this number and name is about to start: whether it may."""
        cells = self._cells
        cells[_BEGUN] = number
        if cells[_CLOSED] == number >> LEASE_SHIFT:
            return False
        if name is not self._name:
            self._write(name)
        cells[_NAME_BYTES] = self._name_bytes
        return True

    def is_time_over(self) -> bool:
        """Whether an actor may run elsewhere by now."""
        return clock_gettime_ns(CLOCK_BOOTTIME) >= self._cells[_HEAD_LEASE] and (
            clock_gettime_ns(CLOCK_MONOTONIC) >= self._cells[_HEAD_LEASE_AWAKE]
        )

    def time_left_s(self) -> float:
        """Until is_time_over."""
        left_ns = self._cells[_HEAD_LEASE] - clock_gettime_ns(CLOCK_BOOTTIME)
        awake_left_ns = self._cells[_HEAD_LEASE_AWAKE] - clock_gettime_ns(CLOCK_MONOTONIC)
        return max(left_ns, awake_left_ns, 0) / 1e9

    def rest(self) -> None:
        """Nothing runs."""
        self._cells[_NAME_BYTES] = 0

    def keep(self, number: int, answer: bytes) -> bool:
        """The answer of the task of this number, which has not left. False where it does not follow the one
        that was kept last, or there is no room: it is not kept."""
        if number == self._kept_next:
            if answer is self._last:
                self._num_last = self._cells[self._num_last_cell] = self._num_last + 1
                self._kept_next = number + 1
                return True
        elif self._kept_next != _NONE_KEPT:
            return False
        start = self._kept_end
        size = len(answer)
        end = start + _KEPT_HEAD.size + (size + 7 & ~7)
        if end > _BYTES:
            return False
        if start == _KEPT_START:
            self._cells[_KEPT_FIRST] = number
        self._memory[start : start + _KEPT_HEAD.size + size] = _KEPT_HEAD.pack(1, size) + answer
        self._last, self._num_last, self._num_last_cell = answer, 1, start // 8
        self._kept_next, self._kept_end = number + 1, end
        self._cells[_KEPT_BYTES] = end - _KEPT_START
        return True

    def keep_call(self, task_id: bytes, answer: bytes) -> bool:
        """The answer of an actor's call, which has not left: its PushTaskReply. False where it is not kept:
        there is no room, or others are kept."""
        # Each of an actor's short calls comes here: nothing is looked up twice, and the struct of answers of
        # this size, as most have, is at hand.
        size, start = len(answer), self._kept_end
        if size != self._call_size:
            self._call_size = size
            self._pack_call = Struct(f"<Q24s{size}s").pack_into
        end = start + _CALL_HEAD_BYTES + (size + 7 & ~7)
        if end > _BYTES or self._kept_next != _CALLS_KEPT:
            if end > _BYTES or self._kept_next != _NONE_KEPT:
                return False
            self._kept_next = _CALLS_KEPT
            self._cells[_KEPT_FIRST] = 0
        self._pack_call(self._memory, start, size, task_id, answer)
        self._kept_end = end
        self._cells[_KEPT_BYTES] = end - _KEPT_START
        self._last_start = start
        return True

    def keep_more(self, more: bytes) -> bool:
        """More of the answer that keep_call kept last. False where there is no room: it is not kept."""
        size_cell = self._last_start // 8
        num_bytes = self._cells[size_cell]
        start = self._last_start + _CALL_HEAD_BYTES + num_bytes
        end = start + len(more)
        if end > _BYTES:
            return False
        self._memory[start:end] = more
        self._cells[size_cell] = num_bytes + len(more)
        self._kept_end = end + 7 & ~7
        self._cells[_KEPT_BYTES] = self._kept_end - _KEPT_START
        return True

    def keep_of_frame(self, frame_id: bytes, place: int, answer: bytes) -> bool:
        """As keep, of an actor's call that came together with others; False also where those of another frame
        are kept. frame_id: the first one's task id. place: from 1."""
        # Each call of a map comes here, most with the answer of the one before.
        if place == self._kept_next and answer is self._last and frame_id is self._frame_id:
            self._num_last = self._cells[self._num_last_cell] = self._num_last + 1
            self._kept_next = place + 1
            return True
        if self._kept_next == _NONE_KEPT:
            self._memory[_FRAME_START:_FRAME_END] = self._frame_id = frame_id
        elif frame_id != self._frame_id:
            return False
        return self.keep(place, answer)

    def caller_lost(self, worker_id: bytes) -> None:
        """The connection of an actor's caller has ended, or may end with answers that have not left."""
        self._cells[_LOST_CALLERS + self._num_lost_callers % _LOST_CALLERS_MAX] = cell_of(worker_id)
        self._num_lost_callers += 1

    def caller_came(self, worker_id: bytes) -> None:
        """On a new connection. What it sent before is settled: it waits for no answer of an earlier one."""
        lost = cell_of(worker_id)
        for place in range(min(self._num_lost_callers, _LOST_CALLERS_MAX)):
            if self._cells[_LOST_CALLERS + place] == lost:
                self._cells[_LOST_CALLERS + place] = 0

    def moved(self) -> None:
        """The actor goes on elsewhere: no call begins here any more, and those that have are answered."""
        self._cells[_HAS_MOVED] = 1

    def forget_kept(self) -> None:
        """They have left."""
        self._cells[_KEPT_BYTES] = 0
        self._kept_next, self._kept_end = _NONE_KEPT, _KEPT_START

    def _write(self, name: str) -> None:
        self.rest()  # half a name is none
        written = name.encode(errors="replace")[:_NAME_BYTES_MAX]
        self._memory[_NAME_START : _NAME_START + len(written)] = written
        self._name, self._name_bytes = name, len(written)


class BoardOfAnother:
    """The raylet's side. Raises OSError where there is no such worker, ValueError where it is another's."""

    def __init__(self, pid: int, fd: int, worker_id: bytes) -> None:
        # Not blocking: whatever else may have that number.
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(opened, _BYTES)
        finally:
            os.close(opened)
        self._cells = memoryview(self._memory).cast("Q")
        if self._cells[_IDENTITY] != cell_of(worker_id):
            self.close()
            raise ValueError(f"process {pid} is not worker {worker_id.hex()}")

    def leases(self) -> set[int]:
        """Of which it says something."""
        return {self._cells[_BEGUN] >> LEASE_SHIFT, self._cells[_KEPT_FIRST] >> LEASE_SHIFT}

    @property
    def last_begun(self) -> int:
        """The number of the task that began last. It changes with each task."""
        return self._cells[_BEGUN]

    def begun(self, lease_number: int) -> int:
        """The place of the task of this lease that began last; 0 for none."""
        begun = self._cells[_BEGUN]
        return begun & LEASES_MASK if begun >> LEASE_SHIFT == lease_number else 0

    def running(self) -> str:
        """The name of the task that it runs, or ran when it died; empty for none."""
        num_bytes = min(self._cells[_NAME_BYTES], _NAME_BYTES_MAX)
        return self._memory[_NAME_START : _NAME_START + num_bytes].decode(errors="ignore")

    def runs(self, lease_number: int, place: int) -> bool:
        """Whether the task at this place of the lease has begun and is not over."""
        return self.begun(lease_number) == place and self._cells[_NAME_BYTES] > 0

    def kept(self, lease_number: int) -> tuple[int, list[bytes]]:
        """Answers of tasks of this lease that had not left: the first one's place, and each of them in
        order. None where they leave just now.

        The worker may go on meanwhile. It adds answers behind those that are read. It writes over them only
        when it has said that it keeps none, or others.
        """
        first, num_bytes = self._cells[_KEPT_FIRST], self._cells[_KEPT_BYTES]
        if not first or first >> LEASE_SHIFT != lease_number:
            return 0, []
        found: list[tuple[int, bytes]] = []
        start, end = _KEPT_START, _KEPT_START + min(num_bytes, _BYTES - _KEPT_START)
        while start + _KEPT_HEAD.size <= end:
            count, size = self._cells[start // 8], self._cells[start // 8 + 1]
            start += _KEPT_HEAD.size
            found.append((count, self._memory[start : start + size]))
            start += size + 7 & ~7
        if self._cells[_KEPT_FIRST] != first or self._cells[_KEPT_BYTES] < num_bytes:
            return 0, []
        if sum(count for count, _ in found) > _KEPT_MAX:
            return 0, []  # the worker's code has written here
        return first & LEASES_MASK, [answer for count, answer in found for _ in range(count)]

    def kept_calls(self) -> list[tuple[bytes, bytes]]:
        """Answers of an actor's calls that had not left: the ids of their tasks, and PushTaskReplies."""
        num_bytes = self._cells[_KEPT_BYTES]
        if self._cells[_KEPT_FIRST]:
            return []
        found = []
        start, end = _KEPT_START, _KEPT_START + min(num_bytes, _BYTES - _KEPT_START)
        while start + _CALL_HEAD.size <= end:
            size, task_id = _CALL_HEAD.unpack_from(self._memory, start)
            start += _CALL_HEAD.size
            found.append((task_id, self._memory[start : start + size]))
            start += size + 7 & ~7
        return found

    def kept_of_frame(self) -> tuple[bytes, int, list[bytes]]:
        """Answers of an actor's calls that came together and had not left: the task id of the first of these
        calls, the place of the first answer, and each of them in order."""
        return self._memory[_FRAME_START:_FRAME_END], *self.kept(0)

    @property
    def has_moved(self) -> bool:
        """Whether its actor had gone on elsewhere before it ended."""
        return self._cells[_HAS_MOVED] > 0

    def lost_callers(self) -> list[int]:
        """Each as cell_of says."""
        return [each for each in self._cells[_LOST_CALLERS : _LOST_CALLERS + _LOST_CALLERS_MAX] if each]

    def lease_ends(self, at_ns: int, awake_ns: int) -> None:
        """As in node_time.py."""
        self._cells[_HEAD_LEASE_AWAKE] = awake_ns
        self._cells[_HEAD_LEASE] = at_ns

    def close_lease(self, lease_number: int) -> None:
        """No task of this lease begins any more. What has begun is certain after SETTLE_S."""
        self._cells[_CLOSED] = lease_number

    def close(self) -> None:
        self._cells.release()
        self._memory.close()


def cell_of(worker_id: bytes) -> int:
    """How a board names a worker."""
    return int.from_bytes(worker_id[:8], "little")

"""Answers of an actor's calls that share a send, and items of generators that share one (item_sender.py).
Until that has left, they are on the start board as well, before the user's code goes on. So whatever that
does to the process (os._exit, a crash, a signal), its raylet can tell the callers what was answered
(common/start_board.py, last_words.py, last_answers.py).

    an answer ──keep──► on the board, collected ──whoever flushes──► written ──► left
                        on the board, written ─────────────────────────────────► left
                                                  flushed(): the board forgets what has left

Calls of a concurrent actor end on many threads. Were each to take the core worker's lock for its answer, it
would wait for the thread that reads calls, and that one for it. So the board has a lock of its own, and
whoever flushes writes all that is collected. Nobody waits for it: whoever finds it taken does without the
board, which is right wherever it is full, too. So a finalizer of the user's may run, and do what it likes,
where it is held.

The board has room for 64 KiB. What finds no room there does not wait for others, but is sent at once. If
its caller does not read as fast, and the socket is full, or TCP holds it back (ReactorSocket.has_unsent), the
worker waits until it has left, but not for long: others may need it, and a caller may be stopped. From then
on that caller is on the board as one whose answers may be lost, as long as its connection lasts. The core
worker's lock is held, where nothing else is said.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Protocol

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.reference_counting.borrowing import CALLER
from ray_mono.core_worker.task_execution.call import Call, Reply

_NOT_WAITED_FOR = "not waited for until"
_MAY_BE_LOST = "answers may be lost"


class ItemSource(Protocol):
    """A generator's sender of items."""

    task_id: bytes
    num_made: int
    """So many items have been yielded."""

    @property
    def has_unsent(self) -> bool:
        """Whether some are collected, or have not left."""


class KeptAnswers:
    """Of one worker."""

    def __init__(self, env: Environment, board: StartBoard) -> None:
        self._env = env
        self._board = board
        self._keep_call = board.keep_call
        self.keep_next_of_frame = board.keep_of_frame
        """As keep_of_frame, of what follows one that was kept, and not flushed. Each call of a map comes
        here."""
        self._board_lock = threading.Lock()
        self.has_some = False
        self.collected: deque[tuple[Call, bytes]] = deque()
        """Answers that are kept, and not written."""
        # Those whose answers are kept: connections, and senders of items.
        self._ways: list[Any] = []
        self._latest: Any = None
        # The number of the item that follows the one that was kept last; 0 where that one is not kept.
        self._next_item = 0

    def keep(self, call: Call, answer: bytes, is_written: bool = True) -> bool:
        """answer: a PushTaskReply. False: it has to leave now.

        It is written, and not flushed. Or it is collected, and whoever flushes next has to write it: then any
        thread calls this, without the lock.
        """
        lock = self._board_lock
        if not lock.acquire(False):
            return False
        try:
            if not self.keep_alone(call, answer):
                return False
            if not is_written:
                self.collected.append((call, answer))
        finally:
            lock.release()
        return True

    def keep_alone(self, call: Call, answer: bytes) -> bool:
        """As keep, written, of an actor that runs one call at a time: nobody else writes here meanwhile."""
        if not self._keep_call(call.task_id, answer):
            return False
        connection = call.answer_to.connection
        if connection is not self._latest:
            self._note(connection)
        return True

    def keep_of_frame(self, connection: Any, frame_id: bytes, index: int, plain: bytes) -> bool:
        """As keep_alone, the usual answer of the call at this index of a frame. frame_id: its first task's
        id."""
        if not self.keep_next_of_frame(frame_id, index + 1, plain):
            return False
        if connection is not self._latest:
            self._note(connection)
        return True

    def keep_item(self, sender: ItemSource, item: bytes) -> bool:
        """As keep, of the item that a generator's sender has collected last, and not sent. item: a part of an
        answer with this item (task_wire.py)."""
        number, is_kept = sender.num_made, False
        if self._board_lock.acquire(False):
            try:
                if sender is self._latest and number == self._next_item:
                    is_kept = self._board.keep_more(item)
                else:
                    part = Reply(first_item=number).SerializeToString() + item
                    is_kept = self._board.keep_call(sender.task_id, part)
                    if is_kept:
                        self._note(sender)
            finally:
                self._board_lock.release()
        self._next_item = number + 1 if is_kept else 0
        return is_kept

    def leave(self, connection: Any) -> None:
        """What was written for this caller leaves, before the user's code goes on. Without the lock."""
        clock, config, state = self._env.clock, self._env.config, connection.state
        if (
            connection.has_unsent
            and clock.time_s() >= state.get(_NOT_WAITED_FOR, 0.0)
            and not connection.drain(config.unread_answer_s)
        ):
            state[_NOT_WAITED_FOR] = clock.time_s() + config.unread_again_s
            with self._env.lock:
                self.may_be_lost(connection)

    def may_be_lost(self, connection: Any) -> None:
        """The next call begins, and an answer for this caller has not left: if that ends the process, nobody
        knows which of the caller's calls had begun."""
        state = connection.state
        if CALLER in state and _MAY_BE_LOST not in state:
            state[_MAY_BE_LOST] = True
            self._board.caller_lost(state[CALLER])

    def _note(self, way: Any) -> None:
        # Loops, here and below: a generator takes longer than all the rest.
        self._latest, self.has_some = way, True
        for each in self._ways:
            if each is way:
                return
        self._ways.append(way)

    def flushed(self) -> None:
        """What was written has left, as far as callers took it. To be called while there are some."""
        if not self._board_lock.acquire(False):
            return
        try:
            if self.collected:
                return
            for each in self._ways:
                if each.has_unsent:
                    return
            self._board.forget_kept()
            self._ways.clear()
            self._latest, self.has_some = None, False
        finally:
            self._board_lock.release()

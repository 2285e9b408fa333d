"""Answers of an actor's calls that share a send. Until that has left, they are on the start board as well,
before the next call begins. So whatever that call does to the process (os._exit, a crash, a signal), its
raylet can tell the callers what was answered (common/start_board.py, last_answers.py).

The board has room for 64 KiB. What finds no room there does not wait for others, but is sent at once. A
caller that does not read (it is stopped, say, and the socket is full) is not helped by that: of its answers,
those on the board survive. Lock held.
"""

from __future__ import annotations

from typing import Any

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.task_execution.call import Call


class KeptAnswers:
    """Of one worker."""

    def __init__(self, board: StartBoard) -> None:
        self._board = board
        self.has_some = False
        # Those whose answers are kept.
        self._connections: list[Any] = []
        self._latest: Any = None

    def keep(self, call: Call, answer: bytes) -> bool:
        """answer: a PushTaskReply, which is written and not flushed. False: it has to leave now."""
        if not self._board.keep_call(call.task_id, answer):
            return False
        connection = call.answer_to.connection
        if connection is not self._latest:
            self._note(connection)
        return True

    def keep_of_frame(self, connection: Any, frame_id: bytes, index: int, plain: bytes) -> bool:
        """As keep, the usual answer of the call at this index of a frame. frame_id: its first task's id."""
        if not self._board.keep_of_frame(frame_id, index + 1, plain):
            return False
        if connection is not self._latest:
            self._note(connection)
        return True

    def _note(self, connection: Any) -> None:
        self._latest, self.has_some = connection, True
        if all(each is not connection for each in self._connections):
            self._connections.append(connection)

    def flushed(self) -> None:
        """What was written has left, as far as callers took it. To be called while there are some."""
        if not any(each.has_unsent for each in self._connections):
            self._board.forget_kept()
            self._connections.clear()
            self._latest, self.has_some = None, False

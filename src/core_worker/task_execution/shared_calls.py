"""Calls that came in one frame (PushTasks), at their worker. Each is a call like any other; what they share
is their place in the queue, and their answers' way back.

    usual answer, of a call that shared_runner.py ran ──► collected
                      ├── enough of them, the last of the frame, or the call ran long ──► sent
                      └── shared_answers_s later ──► sent
    any other answer ──► what is collected is sent, then this one

While answers are collected, the start board keeps them, too. If the worker dies, its raylet reads them there
(common/start_board.py; of actors kept_answers.py). Lock held.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Sequence
from typing import Any, final

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.task_execution.call import NO_EXTRAS, Call, KnownSpec, Reply
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_wire import USUAL_ANSWER, shared_answers, task_ids_of
from ray_mono.protobuf import core_worker_pb2
from ray_mono.rpc.reactor_server import ServerCall

_NOT_STARTED = Reply(status=Reply.NOT_STARTED)


class SharedAnswers:
    """The answers of one frame."""

    __slots__ = (
        "_board",
        "_call",
        "_collected_max",
        "_env",
        "_first",
        "_frame_id",
        "_is_armed",
        "_is_kept",
        "_kept",
        "_num_left",
        "_plains",
        "_run_us",
    )

    def __init__(
        self,
        env: Environment,
        call: ServerCall,
        num_calls: int,
        board: StartBoard | None,
        kept: KeptAnswers | None = None,
        frame_id: bytes = b"",
    ) -> None:
        """board: of normal tasks. kept: of an actor's calls; then frame_id is the first one's task id."""
        self._env = env
        self._kept = kept
        self._frame_id = frame_id
        self._call = call
        self._num_left = num_calls
        self._board = board
        self._collected_max = env.config.shared_answers_max
        # Collected: usual answers of calls that follow each other, from this one on; how long those ran.
        self._first = 0
        self._plains: list[bytes] = []
        self._run_us = 0
        self._is_armed = False
        self._is_kept = False

    @property
    def connection(self) -> Any:
        return self._call.connection

    def collect(self, index: int, number: int, run_us: int, plain: bytes) -> bool:
        """The call at this index has returned this small value. Whether the answers are to be sent now.
        number: see StartBoard."""
        plains = self._plains
        is_first = not plains
        if is_first:
            self._first = index
        elif self._first + len(plains) != index:
            self._send()
            plains, self._first, is_first = self._plains, index, True
        plains.append(plain)
        self._run_us += run_us
        if self._board is not None:
            if not self._board.keep(number, plain):
                return True
            self._is_kept = True
        elif self._kept is not None:
            is_kept = (
                self._kept.keep_of_frame(self._call.connection, self._frame_id, index, plain)
                if is_first
                else self._kept.keep_next_of_frame(self._frame_id, index + 1, plain)
            )
            if not is_kept:
                return True
        if len(plains) >= self._collected_max or len(plains) == self._num_left:
            return True
        if not self._is_armed:
            self._is_armed = True
            self._env.reactor.call_later(self._env.config.shared_answers_s, self._send_late)
        return False

    def add(self, first: int, count: int, reply: Any, rings: bool = True) -> None:
        """So many calls from this one on have got this answer. rings: see ServerCall.reply."""
        self._send()
        self._say(core_worker_pb2.PushTasksReply(first=first, reply=reply, count=count), count, rings)

    def add_usual(self, index: int, run_us: int, plain: bytes, rings: bool) -> None:
        """The call at this index has returned this small value."""
        self._send()
        self._say(shared_answers(index, [plain], run_us), 1, rings)

    def not_started(self, indices: Sequence[int]) -> None:
        """These calls, in order, do not begin here."""
        begin = 0
        for end in range(1, len(indices) + 1):
            if end == len(indices) or indices[end] != indices[end - 1] + 1:
                self.add(indices[begin], end - begin, _NOT_STARTED)
                begin = end

    def flush(self) -> None:
        """Sends what is collected."""
        self._send()
        self._env.reactor.flush()
        if self._kept is not None and self._kept.has_some:
            self._kept.flushed()
        if self._is_kept and not self._call.connection.has_unsent and self._board is not None:
            self._board.forget_kept()
            self._is_kept = False

    def _send_late(self) -> None:
        self._is_armed = False
        if self._plains:
            self.flush()

    def _send(self) -> None:
        if self._plains:
            plains, self._plains = self._plains, []
            run_us, self._run_us = self._run_us, 0
            self._say(shared_answers(self._first, plains, run_us), len(plains), False)

    def _say(self, answers: Any, count: int, rings: bool) -> None:
        self._num_left -= count
        if self._num_left:
            self._call.part(answers, rings)
        else:
            self._call.reply(answers, rings)


class _OwnAnswer(ServerCall):
    """Of one of these calls: it goes the way of all of them."""

    __slots__ = ("_answers", "_index")

    def __init__(self, answers: SharedAnswers, index: int) -> None:
        super().__init__(answers.connection, index, False)
        self._answers = answers
        self._index = index

    def reply(self, message: Any, rings: bool = True) -> None:
        self._answers.add(self._index, 1, message, rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        """A usual answer: task_wire.py."""
        _, run_us, _, _ = USUAL_ANSWER.unpack_from(payload)
        self._answers.add_usual(self._index, run_us, payload[USUAL_ANSWER.size :], rings)

    def send_bytes(self, payload: bytes) -> None:
        self.reply_bytes(payload, rings=False)
        self._answers.flush()


@final
class SharedCalls:
    """The calls of one frame that have not begun. In a queue it stands for all of them."""

    __slots__ = ("_depth", "_first_number", "answers", "items", "left", "spec", "task_ids")

    def __init__(self, spec: KnownSpec, request: Any, answers: SharedAnswers, first_number: int) -> None:
        """first_number: of the first one; 0 where they have none."""
        self.spec = spec
        self.answers = answers
        self._depth: int = request.depth
        self._first_number = first_number
        self.items: list[Any] = pickle.loads(request.items)
        """The one argument of each: of a type that has nothing inside."""
        self.left = deque(range(len(self.items)))
        """Which have not begun, in order."""
        self.task_ids = task_ids_of(request)

    def number(self, index: int) -> int:
        return self._first_number + index if self._first_number else 0

    def call(self, index: int) -> Call:
        """One of them, as if it had come alone."""
        flat_args = pickle.dumps([None, self.items[index]], 5)
        answer_to = _OwnAnswer(self.answers, index)
        return Call(
            self.spec, self.task_ids[index], self._depth, flat_args, NO_EXTRAS, answer_to, self.number(index)
        )

    def take_out(self, task_id: bytes) -> Call | None:
        """The one with this id, if it has not begun: it will not."""
        index = self.task_ids.index(task_id) if task_id in self.task_ids else -1
        if index not in self.left:
            return None
        self.left.remove(index)
        return self.call(index)

    def give_back(self) -> None:
        """None of them begins here."""
        indices = list(self.left)
        self.left.clear()
        self.answers.not_started(indices)

"""What a worker had begun, and answered without that its answers left, when it died: read off its start board
(common/start_board.py), for whoever had leased it, or called its actor. Plain bookkeeping.
"""

from __future__ import annotations

from collections import OrderedDict

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.protobuf import raylet_pb2

KEPT_MAX = 400
"""Dead workers, with at most the 68 KiB of a board each. They are asked for within seconds or never."""


class LastWords:
    """Of the workers of one node."""

    def __init__(self) -> None:
        # By worker: what it says of each lease.
        self._said: OrderedDict[bytes, dict[int, raylet_pb2.LastWordsReply]] = OrderedDict()
        self._answers: OrderedDict[bytes, raylet_pb2.LastAnswersReply] = OrderedDict()

    def died(self, worker_id: bytes, board: BoardOfAnother | None) -> None:
        """Reads the board, which may be closed then."""
        if board is None:
            return
        self._said[worker_id] = {number: said_of(board, number) for number in board.leases()}
        items = kept_on(board)
        for said in self._said[worker_id].values():
            said.items.extend(items)
        while len(self._said) > KEPT_MAX:
            self._said.popitem(last=False)

    def actor_died(self, worker_id: bytes, board: BoardOfAnother | None) -> None:
        """As died, of an actor's worker."""
        if board is not None:
            self._answers[worker_id] = answers_on(board)
            while len(self._answers) > KEPT_MAX:
                self._answers.popitem(last=False)

    def answers_of(self, worker_id: bytes) -> raylet_pb2.LastAnswersReply:
        """Of an actor's worker that died."""
        return self._answers.get(worker_id) or raylet_pb2.LastAnswersReply()

    def of(self, worker_id: bytes, lease_number: int) -> raylet_pb2.LastWordsReply:
        said = self._said.get(worker_id)
        if said is None or not lease_number:
            return raylet_pb2.LastWordsReply()
        return said.get(lease_number) or raylet_pb2.LastWordsReply(is_known=True)


def said_of(board: BoardOfAnother, lease_number: int) -> raylet_pb2.LastWordsReply:
    """What a worker's board says of a lease."""
    first, plain = board.kept(lease_number)
    return raylet_pb2.LastWordsReply(is_known=True, begun=board.begun(lease_number), first=first, plain=plain)


def kept_on(board: BoardOfAnother) -> list[raylet_pb2.LastAnswer]:
    """Answers that a dead worker's board keeps each with its task's id, and items of generators."""
    return [raylet_pb2.LastAnswer(task_id=task_id, reply=reply) for task_id, reply in board.kept_calls()]


def answers_on(board: BoardOfAnother) -> raylet_pb2.LastAnswersReply:
    """Answers of an actor's calls that are on its worker's board, and whose answers may be lost."""
    said = raylet_pb2.LastAnswersReply(
        is_known=True,
        answers=kept_on(board),
        lost_callers=board.lost_callers(),
        has_moved=board.has_moved,
    )
    frame_id, place, plain = board.kept_of_frame()
    if plain:
        said.MergeFrom(raylet_pb2.LastAnswersReply(frame_id=frame_id, first=place - 1, plain=plain))
    return said

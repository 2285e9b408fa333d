"""What a worker had begun, and answered without that its answers left, when it died: read off its start board
(common/start_board.py), for whoever had leased it. Plain bookkeeping.
"""

from __future__ import annotations

from collections import OrderedDict

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.protobuf import raylet_pb2

KEPT_MAX = 100
"""Boards of dead workers, 68 KiB each. They are asked for within seconds or never."""


class LastWords:
    """Of the workers of one node."""

    def __init__(self) -> None:
        self._boards: OrderedDict[bytes, BoardOfAnother] = OrderedDict()

    def died(self, worker_id: bytes, board: BoardOfAnother | None) -> None:
        if board is None:
            return
        self._boards[worker_id] = board
        while len(self._boards) > KEPT_MAX:
            self._boards.popitem(last=False)

    def of(self, worker_id: bytes, lease_number: int) -> raylet_pb2.LastWordsReply:
        board = self._boards.get(worker_id)
        if board is None or not lease_number:
            return raylet_pb2.LastWordsReply()
        first, plain = board.kept(lease_number)
        return raylet_pb2.LastWordsReply(
            is_known=True, begun=board.begun(lease_number), first=first, plain=plain
        )

"""What a worker had begun, and answered without that its answers left, when it died: read off its start board
(common/start_board.py), for whoever had leased it. Plain bookkeeping.
"""

from __future__ import annotations

from collections import OrderedDict

from ray_mono.common.start_board import BoardOfAnother
from ray_mono.protobuf import raylet_pb2

KEPT_MAX = 100
"""Dead workers, with at most the 68 KiB of a board each. They are asked for within seconds or never."""


class LastWords:
    """Of the workers of one node."""

    def __init__(self) -> None:
        # By worker: what it says of each lease.
        self._said: OrderedDict[bytes, dict[int, raylet_pb2.LastWordsReply]] = OrderedDict()

    def died(self, worker_id: bytes, board: BoardOfAnother | None) -> None:
        """Reads the board, which may be closed then."""
        if board is None:
            return
        self._said[worker_id] = {number: said_of(board, number) for number in board.leases()}
        while len(self._said) > KEPT_MAX:
            self._said.popitem(last=False)

    def of(self, worker_id: bytes, lease_number: int) -> raylet_pb2.LastWordsReply:
        said = self._said.get(worker_id)
        if said is None or not lease_number:
            return raylet_pb2.LastWordsReply()
        return said.get(lease_number) or raylet_pb2.LastWordsReply(is_known=True)


def said_of(board: BoardOfAnother, lease_number: int) -> raylet_pb2.LastWordsReply:
    """What a worker's board says of a lease."""
    first, plain = board.kept(lease_number)
    return raylet_pb2.LastWordsReply(is_known=True, begun=board.begun(lease_number), first=first, plain=plain)

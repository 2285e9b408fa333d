"""Takes back tasks that a worker has not begun, without asking it: it may be frozen, or stopped (common/start_board.py).

The lease stays: its worker runs what it has begun, or nothing moves it; its holder gives it back when all is answered.
"""

from __future__ import annotations

import asyncio

from ray_mono.common.start_board import SETTLE_S, BoardOfAnother
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.wire import lease_number


async def withdraw(board: BoardOfAnother, number: int, last: int) -> raylet_pb2.WithdrawTasksReply:
    """Closes the lease of a worker unless the last task that was pushed on it has begun. number: the lease's."""
    lease = lease_number(number)
    if board.begun(lease) >= last:
        return raylet_pb2.WithdrawTasksReply()
    board.close_lease(lease)
    await asyncio.sleep(SETTLE_S)
    return raylet_pb2.WithdrawTasksReply(is_closed=True, begun=board.begun(lease))

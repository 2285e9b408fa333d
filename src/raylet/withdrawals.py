"""Takes back tasks that a worker has not begun, without asking it: it may be frozen, or stopped (common/start_board.py).

The lease stays: its worker runs what it has begun, or nothing moves it; its holder gives it back when all is answered.
"""

from __future__ import annotations

import asyncio
import logging

from ray_mono.common.start_board import SETTLE_S, BoardOfAnother
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.clients import ClientProcess
from ray_mono.raylet.wire import lease_number

logger = logging.getLogger(__name__)


async def withdraw(process: ClientProcess, number: int, last: int) -> raylet_pb2.WithdrawTasksReply:
    """Closes the lease of a worker unless the last task that was pushed on it has begun. number: the lease's."""
    lease = lease_number(number)
    try:
        board = BoardOfAnother(process.pid, process.board_fd, process.worker_id)
    except (OSError, ValueError) as error:
        logger.warning("worker %s: what it has begun cannot be read: %s", process.worker_id.hex()[:8], error)
        return raylet_pb2.WithdrawTasksReply()
    try:
        if board.begun(lease) >= last:
            return raylet_pb2.WithdrawTasksReply()
        board.close_lease(lease)
        await asyncio.sleep(SETTLE_S)
        return raylet_pb2.WithdrawTasksReply(is_closed=True, begun=board.begun(lease))
    finally:
        board.close()

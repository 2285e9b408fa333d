"""Who cannot be reached, and is nowhere any more.

This node's raylet tells which nodes are dead. Of one that died before that raylet was there the head may know
nothing: its store was lost since, or it has forgotten. So the head is asked for those who cannot be reached,
now and then (common/missing_workers.py).
"""

from __future__ import annotations

from typing import Any

from ray_mono.common.missing_workers import MissingWorkers
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceStub
from ray_mono.rpc.surface import RpcError

ASK_PERIOD_S = 30.0


class MissingPeers:
    """Of one process. Lock held."""

    def __init__(self, gcs: GcsServiceStub, clock: Clock) -> None:
        self._get_all_workers = gcs.GetAllWorkers
        self._clock = clock
        # Who was asked for here since the head has last answered.
        self._unreached: set[bytes] = set()
        self._missing: MissingWorkers[bytes] = MissingWorkers()
        self._gone: set[bytes] = set()
        self._asks_at_s: float | None = None

    def is_gone(self, worker_id: bytes) -> bool:
        """Of one who cannot be reached. To be asked again and again; False while that is not known."""
        now_s = self._clock.time_s()
        if not self._unreached:
            self._asks_at_s = now_s + ASK_PERIOD_S
        self._unreached.add(worker_id)
        if self._asks_at_s is not None and now_s >= self._asks_at_s:
            self._asks_at_s = None
            self._get_all_workers.start(common_pb2.Empty(), self._answered)
        return worker_id in self._gone

    def _answered(self, reply: Any, error: RpcError | None) -> None:
        unreached, self._unreached = self._unreached, set()
        if error is not None:
            return
        is_alive = {row.worker_id: row.is_alive for row in reply.workers}
        now_s = self._clock.time_s()
        self._gone = set(self._missing.dead(unreached, is_alive, reply.missing_dead_after_s, now_s))

"""What the GCS has yet to be told of this node: in order, and kept while the GCS is away, up to a limit.

Anything of the raylet puts something in and goes on; `gcs_client.py` takes it out while it has a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from ray_mono.protobuf import common_pb2, gcs_pb2

logger = logging.getLogger(__name__)


class GcsOutbox:
    """Messages, and two flags: the node's resources may have changed, and it has to register again."""

    def __init__(self, node_id: bytes, messages_max: int) -> None:
        self._node_id = node_id
        self._messages_max = messages_max
        self._messages: deque[tuple[str, Any]] = deque()
        self._is_filled = asyncio.Event()
        self._has_changed_resources = asyncio.Event()
        self._must_register = asyncio.Event()

    # ---- what is to be told

    def resources_changed(self) -> None:
        """They may have: a report follows if they have."""
        self._has_changed_resources.set()

    def register_again(self) -> None:
        """Some lease for an actor may have lost whoever wanted it."""
        self._must_register.set()

    def add_worker(self, worker: common_pb2.WorkerInfo) -> None:
        self._post("AddWorker", worker)

    def report_worker_death(self, worker: common_pb2.WorkerInfo) -> None:
        self._post("ReportWorkerDeath", worker)

    def publish_error(self, error: common_pb2.ErrorInfo) -> None:
        self._publish(gcs_pb2.ERROR, error.job_id, error.SerializeToString())

    def ask_for_garbage(self) -> None:
        self._publish(gcs_pb2.COLLECT_GARBAGE, self._node_id, self._node_id)

    def _publish(self, channel: gcs_pb2.Channel, key: bytes, payload: bytes) -> None:
        message = gcs_pb2.PubMessage(channel=channel, key=key, payload=payload)
        self._post("Publish", gcs_pb2.PublishRequest(message=message))

    def _post(self, method: str, message: Any) -> None:
        if len(self._messages) >= self._messages_max:
            dropped, _ = self._messages.popleft()
            logger.error(
                "the GCS is away and %d reports wait for it: dropped the oldest, a %s",
                len(self._messages) + 1,
                dropped,
            )
        self._messages.append((method, message))
        self._is_filled.set()

    # ---- who tells it

    def __len__(self) -> int:
        return len(self._messages)

    def take(self) -> tuple[str, Any]:
        """The oldest: the GcsService method, and its request. Raises IndexError where there is none."""
        return self._messages.popleft()

    def put_back(self, method: str, message: Any) -> None:
        """One that was taken and may not have arrived is told again first."""
        self._messages.appendleft((method, message))

    async def until_filled(self) -> None:
        while not self._messages:
            self._is_filled.clear()
            await self._is_filled.wait()

    async def until_resources_change(self) -> None:
        """They may have since this returned last."""
        await self._has_changed_resources.wait()
        self._has_changed_resources.clear()

    async def until_it_must_register(self) -> None:
        """Until somebody wants it, after `registers`."""
        await self._must_register.wait()

    def registers(self) -> None:
        """What was the reason for it so far is seen to."""
        self._must_register.clear()

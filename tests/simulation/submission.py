"""What a simulated driver keeps of its work: tasks that have not ended, their queues by shape, the raylets it
talks to.
"""

from __future__ import annotations

import asyncio
import collections
from dataclasses import dataclass, field

from ray_mono.common.resources import ResourceSet
from ray_mono.protobuf import raylet_rpc
from ray_mono.rpc.surface import AsyncChannel
from tests.simulation.workers import TaskScript


@dataclass
class PendingTask:
    """A task that has not ended."""

    task_id: bytes
    script: TaskScript
    resources: ResourceSet
    max_retries: int
    attempt: int = 0
    done: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass
class ShapeQueue:
    """Tasks of one shape, and who works on them."""

    resources: ResourceSet
    tasks: collections.deque[PendingTask] = field(default_factory=collections.deque)
    # Lease ids asked for -> the raylet that was asked last.
    requests: dict[bytes, Raylet] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Raylet:
    """A raylet that this driver talks to."""

    address: str
    channel: AsyncChannel
    stub: raylet_rpc.RayletServiceAsyncStub

"""What the shells of one GCS share: its settings, the doors to the world, and the tasks that end with it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.world import Clock
from ray_mono.gcs.config import GcsConfig
from ray_mono.gcs.raylet_client_pool import RayletClientPool
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.rpc.surface import Transport


@dataclass(frozen=True)
class Environment:
    """One per GcsServer."""

    config: GcsConfig
    transport: Transport
    clock: Clock
    rng: random.Random
    tasks: BackgroundTasks
    writes: WriteThrough
    raylets: RayletClientPool

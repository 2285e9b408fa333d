"""Names of `ray._private.worker` that say what a process is, and what it is connected to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ray_mono._private.driver.init import is_initialized, joined_node
from ray_mono._private.driver.ray_context import RayContext as BaseContext
from ray_mono.core_worker.process import current
from ray_mono.runtime_context import RuntimeContext

__all__ = ["BaseContext", "RESTORE_WORKER_MODE", "SPILL_WORKER_MODE", "_global_node", "_post_init_hooks"]

# Ray's processes that move objects to disk and back; none of ours is one.
SPILL_WORKER_MODE = 3
RESTORE_WORKER_MODE = 4
_post_init_hooks: list[Callable[[], object]] = []
"""Called after each `init`."""
_global_node: _GlobalNode | None


class _GlobalNode:
    """The node of this process. What it has beside these is the driver's Node."""

    # How far Ray lets a log file grow, and how many older ones it keeps.
    max_bytes = 512 << 20
    backup_count = 5

    def get_session_dir_path(self) -> str:
        return current.require().session_dir

    def get_temp_dir_path(self) -> str:
        return os.path.dirname(self.get_session_dir_path())

    def get_logs_dir_path(self) -> str:
        return os.path.join(self.get_session_dir_path(), "logs")

    def get_sockets_dir_path(self) -> str:
        return os.path.join(self.get_session_dir_path(), "sockets")

    @property
    def session_name(self) -> str:
        return os.path.basename(self.get_session_dir_path())

    @property
    def address(self) -> str:
        return RuntimeContext().gcs_address

    gcs_address = address

    @property
    def node_id(self) -> str:
        return RuntimeContext().get_node_id()

    unique_id = node_id

    @property
    def node_ip_address(self) -> str:
        return current.require().node_host

    def __getattr__(self, name: str) -> Any:
        return getattr(joined_node(), name)


def __getattr__(name: str) -> object:
    if name == "_global_node":
        return _GlobalNode() if is_initialized() else None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

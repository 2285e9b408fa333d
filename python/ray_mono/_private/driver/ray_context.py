"""What `init` returns: where the cluster is. Also a context manager that shuts down at its end."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from ray_mono.common.version import VERSION


class RayContext(Mapping[str, Any]):
    """The address info of the cluster, readable as a dict, e.g. `init()["node_id"]`."""

    def __init__(self, address_info: Mapping[str, Any], disconnect: Callable[[], None]) -> None:
        self.address_info = dict(address_info)
        self.dashboard_url: str = self.address_info.get("webui_url") or ""
        self.python_version = platform.python_version()
        self.ray_version = VERSION
        self.ray_commit = ""
        self._disconnect = disconnect

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __repr__(self) -> str:
        address, node_id = self.address_info.get("address"), self.address_info.get("node_id")
        return f"RayContext({address=}, {node_id=})"

    def disconnect(self) -> None:
        """Shuts down, as `shutdown()` does."""
        self._disconnect()

    def __enter__(self) -> RayContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

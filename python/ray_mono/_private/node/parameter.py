"""What a node is started with: one value that `init`, the CLI and tests fill in and Node takes.

None means "not said": whoever knows a default puts it in with `update_if_absent`. Nothing here looks at the
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ray_mono._private.label_selectors import check_labels
from ray_mono._private.node import ray_settings, spilling

DEFAULT_PORT = 6379


@dataclass
class RayParams:
    """Parameters of one node's processes, or of a driver's connection to them.

    Memory is in bytes. Port 0 is any free one.
    """

    # ---- the cluster
    gcs_address: str | None = None
    other_gcs_addresses: tuple[str, ...] = ()
    """More places where the cluster's head may be."""
    """host:port of the GCS to join; None on a head that starts one."""
    gcs_server_port: int | None = None
    """The port of a head's GCS."""
    redis_address: str | None = None
    """Of a Redis that keeps the head's tables: host:port, several of them, unix:/path or a URL.

    None: a file of the session keeps them.
    """
    redis_username: str | None = None
    """redis_address's user; None: its default."""
    redis_namespace: str | None = None
    """This cluster's name among those that share redis_address; None: "default"."""
    redis_embedded: bool = False
    """Start a redis-server of our own for them."""
    redis_password: str | None = None
    """The cluster's secret, and redis_address's password. "": no authentication. None: found or generated."""
    keep_node_without_gcs: bool = False
    """Whether a head's node goes on when its GCS dies, which may be started again by hand then."""
    system_config: Mapping[str, Any] = field(default_factory=dict)
    """Cluster-wide settings, which the GCS hands out. A service's own stand under its name: "gcs",
    "object_manager" or "raylet". Ray's names stand by themselves (ray_settings.py, spilling.py)."""

    # ---- this node
    node_ip_address: str | None = None
    object_manager_port: int | None = None
    node_manager_port: int | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    object_store_memory: int | None = None
    object_spilling_directory: str | None = None
    """Where objects go for which the store has no room, a directory or a storage's URI.

    None: as system_config says, else the session's.
    """
    resources: Mapping[str, float] | None = None
    labels: Mapping[str, str] | None = None
    temp_dir: str | None = None
    include_log_monitor: bool = True
    maximum_startup_concurrency: int | None = None
    """Workers that may be starting at once; None: the raylet's default."""
    num_prestart_workers: int | None = None
    """Workers started before anybody asks; None: the raylet's default."""
    env_vars: Mapping[str, str] | None = None
    """Set in every process of the node."""
    log_level: str = "info"
    grace_period_s: float = 5.0
    """How long the services may take to end by themselves before they are killed."""

    def update(self, **values: Any) -> None:
        """Sets what is given. Raises TypeError for a name that is no parameter."""
        for name, value in self._known(values).items():
            setattr(self, name, value)

    def update_if_absent(self, **values: Any) -> None:
        """Sets what nobody has set yet. Raises TypeError for a name that is no parameter."""
        for name, value in self._known(values).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def check(self, is_head: bool) -> None:
        """Raises ValueError or TypeError, naming the parameter: values that cannot be, alone or together."""
        ray_settings.check(self.system_config)
        spilling.check(self.system_config, self.object_spilling_directory)
        for name in ("gcs_server_port", "object_manager_port", "node_manager_port"):
            port = getattr(self, name)
            if port is not None and (
                isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536
            ):
                raise ValueError(f"{name} must be a port number from 0 (any free one) to 65535, got {port!r}")
        for name in ("maximum_startup_concurrency", "num_prestart_workers"):
            count = getattr(self, name)
            if count is not None and (not isinstance(count, int) or count < (name[0] == "m")):
                raise ValueError(
                    f"{name} must be a whole number of at least {int(name[0] == 'm')}, got {count!r}"
                )
        check_labels({} if self.labels is None else self.labels)
        if self.env_vars is not None and not isinstance(self.env_vars, Mapping):
            raise ValueError(f"env_vars must be a dict from strings to strings, got {self.env_vars!r}")
        if is_head and self.gcs_address is not None:
            raise ValueError(
                f"a head starts its own GCS, so gcs_address must be absent, got {self.gcs_address!r}"
            )
        if not is_head and self.gcs_address is None:
            raise ValueError("gcs_address is missing: which cluster is the node to join?")
        if self.redis_embedded and self.redis_address is not None:
            raise ValueError(
                "redis_embedded starts a Redis of our own: "
                f"redis_address {self.redis_address!r} makes no sense"
            )
        if self.redis_address is None and (self.redis_username or self.redis_namespace):
            raise ValueError("redis_username and redis_namespace belong to a redis_address, which is missing")
        if not is_head and (self.redis_embedded or self.redis_address is not None):
            raise ValueError(
                "redis_address and redis_embedded belong to the head: other nodes never speak to Redis"
            )

    @staticmethod
    def _known(values: dict[str, Any]) -> dict[str, Any]:
        names = {item.name for item in fields(RayParams)}
        for name in values:
            if name not in names:
                raise TypeError(f"{name!r} is no parameter of a node; there are {', '.join(sorted(names))}")
        return values

"""Settings of one raylet: a value that main checks once; the environment is never read later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from ray_mono.common.scheduling.resources import CPU, SCALE, ResourceSet
from ray_mono.common.setting_rules import rule_of

_CHECKED = (
    "gcs_reconnect_timeout_s",
    "idle_worker_timeout_s",
    "max_lineage_bytes",
    "memory_monitor_refresh_ms",
    "memory_kill_wait_s",
    "memory_usage_threshold",
    "report_period_s",
    "task_oom_retries",
    "task_oom_retry_delay_base_ms",
    "worker_exit_grace_s",
    "worker_register_timeout_s",
)


@dataclass(frozen=True)
class RayletConfig:
    """Everything that a raylet is told. The simulator uses small values to reach the limits."""

    node_id: bytes
    gcs_address: str
    """"unix:/path" or "host:port"."""
    socket_path: str
    """Unix socket for the node's own workers and drivers."""
    host: str
    """The node's address: where the TCP port listens and what others are told."""
    session_dir: str
    total: ResourceSet
    other_gcs_addresses: tuple[str, ...] = ()
    """More places where the head may be."""
    port: int = 0
    hostname: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    is_head: bool = False
    head_stays_here: bool = False
    """The GCS runs on this node, and none elsewhere can take over from it."""
    pid: int = 0
    # ---- the node's object manager
    store_socket: str = ""
    """Empty: no store (a raylet alone, for debugging)."""
    store_file: str = ""
    object_manager_port: int = 0
    # ---- worker pool
    maximum_startup_concurrency: int = 0
    """Workers that start at once; 0: max(4, CPUs). Starting is CPU work, so more only makes each of them
    later.
    """
    num_prestart_workers: int = -1
    """Workers kept ready beside actors; -1: the number of CPUs, which is what a burst of tasks needs at
    first.
    """
    idle_worker_timeout_s: float = 5.0
    """An idle worker above the soft limit (the number of CPUs) ends after this: a new one costs milliseconds,
    its caches more.
    """
    worker_register_timeout_s: float = 60.0
    """From the fork to the registration. A healthy start takes 0.1 s; a machine that swaps takes long."""
    worker_exit_grace_s: float = 5.0
    """Between a polite end and SIGKILL."""
    exit_status_wait_s: float = 1.0
    """After a worker's connection ended: how long the report of its death waits for the exit status."""
    # ---- leases
    lease_queue_max: int = 200_000
    """Queued leases; a request above it fails with RESOURCE_EXHAUSTED. About 100 MB of memory."""
    infeasible_warning_s: float = 2.0
    """How long a lease that fits no node waits before its driver is warned: a node may be just joining."""
    pending_warning_s: float = 30.0
    """The same for a lease that fits, but only into what living actors hold."""
    spill_hold_s: float = 1.0
    """How long a lease that was sent to another node is deducted from what that node reported."""
    # ---- memory (memory_guard.py); most names and values are Ray's
    memory_monitor_refresh_ms: int = 250
    """How often it is looked whether memory runs short; 0: never, so that the kernel kills what it likes."""
    memory_usage_threshold: float = 0.95
    """Above this part of the memory a worker is killed."""
    memory_kill_wait_s: float = 5.0
    """How long a killed worker's memory may take to come back before another one is killed: a process of a
    hundred gigabytes takes seconds to end."""
    memory_root: str = "/"
    """Where `proc` and `sys` are, for tests."""
    task_oom_retries: int = -1
    """How often a task is run again whose worker was killed for memory; -1: any number of times."""
    task_oom_retry_delay_base_ms: int = 1000
    """The pause before the first of these; it doubles with each."""
    max_lineage_bytes: int = 0
    """Of finished tasks that a driver or a worker of the node keeps to make lost objects again; 0: as its
    environment says, else as CoreWorkerConfig does."""
    # ---- the shell
    tick_period_s: float = 0.25
    """Timeouts are looked at this often."""
    report_period_s: float = 0.05
    """Changes of resources are gathered this long before the GCS hears of them."""
    connect_timeout_s: float = 10.0
    """One attempt to reach the GCS or the store."""
    gcs_reconnect_timeout_s: float = 60.0
    """A node that no GCS has confirmed for this long ends, and its actors with it (head_lease.py). Shorter: a
    node that was cut off is replaced sooner. Longer: a head may be away longer."""
    gcs_outbox_max: int = 10_000
    """Reports that wait while the GCS is away; above it the oldest is dropped, and the log says so."""

    def __post_init__(self) -> None:
        if len(self.node_id) != 28:
            raise ValueError(f"node_id takes 28 bytes, got {self.node_id!r}")
        if self.num_prestart_workers < -1:
            raise ValueError(
                f"num_prestart_workers must be at least 0 (or -1: the CPUs), got {self.num_prestart_workers}"
            )
        if self.maximum_startup_concurrency < 0:
            given = self.maximum_startup_concurrency
            raise ValueError(f"maximum_startup_concurrency takes 1 or more (0: max(4, CPUs)), got {given}")
        for name in _CHECKED:
            if complaint := complaint_about(name, getattr(self, name)):
                raise ValueError(f"{name} {complaint}, got {getattr(self, name)}")

    @property
    def num_cpus(self) -> int:
        """Whole CPUs, rounded up, of the node."""
        return -(-self.total.get(CPU) // SCALE)

    @property
    def startup_concurrency(self) -> int:
        return self.maximum_startup_concurrency or max(4, self.num_cpus)

    @property
    def prestart(self) -> int:
        return self.num_cpus if self.num_prestart_workers < 0 else self.num_prestart_workers


def complaint_about(name: str, value: Any) -> str:
    """What is wrong with this value of one of the settings; empty where nothing is."""
    words, is_right = rule_of(name)
    if isinstance(value, str) or is_right(value):
        return ""
    return "must be finite" if value == inf else f"must be {words}"

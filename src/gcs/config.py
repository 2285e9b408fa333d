"""Settings of one GCS: what this service alone goes by, under the key "gcs" of the cluster's JSON.

Those that the whole cluster shares travel to everyone as `ClusterInfo.config_json`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class GcsConfig:
    """Settings of one GCS process. Raises ValueError naming the field that is out of range."""

    listen: tuple[str, ...] = ("127.0.0.1:0",)
    """Addresses to answer at: "host:port" (0: any free port), "unix:/path".

    The first "host:port" is the one advertised.
    """
    node_ip: str = ""
    """The host that others are told to reach this GCS at; empty: the host of the address listened at."""
    session_dir: str = ""
    """Told to nodes that join; empty where there is none (tests, the simulator)."""
    cluster_config_json: str = "{}"
    """Cluster-wide settings, handed to everyone as they are."""

    health_check_period_s: float = 3.0
    """Between two checks of a healthy raylet, as in Ray. With the threshold, a silent host dies in 15 s."""
    health_check_timeout_s: float = 5.0
    """For one answer. Raylets run no user code, so only a machine in deep trouble takes seconds."""
    health_check_failures_max: int = 5
    """Checks in a row that may fail before the node is dead."""
    health_check_hint_period_s: float = 0.1
    """Between checks after a raylet's connection ended: a dead process is soon known, a bad link forgiven."""
    node_return_timeout_s: float = 60.0
    """How long a node of an earlier GCS on this store may take to register again; it is dead after that."""

    fence_margin_s: float = 2.0
    """Beyond a silent node's lease, and a twentieth of it for the clocks, before its actors are started
    elsewhere: what a node takes to kill its workers. Its lease is gcs_reconnect_timeout_s of its raylet."""

    head_notice_period_s: float = 1.0
    """How long such a node may take to find this head by itself before it is told, again and again."""
    adoption_grace_s: float = 10.0
    """How long a head on an empty store hears what the head before it knew, and refuses nothing. Usually all
    have told within a second, and it is over then; a process that was stopped tells nothing."""
    first_node_wait_s: float = 1.0
    """How long such a head waits for its first node: raylets look for a head twice a second."""

    pending_warning_s: float = 2.0
    """How long an actor waits for a place before its driver is told why: a worker starts within that. So does
    a placement group that no node could hold."""
    group_warning_s: float = 30.0
    """How long a placement group waits for a place beside actors and groups before its driver is told why."""
    lease_retry_period_s: float = 0.2
    """First pause after a raylet refused or failed a lease; doubles up to lease_retry_period_max_s."""
    lease_retry_period_max_s: float = 5.0
    connect_timeout_s: float = 5.0
    """For a connection to a raylet or a worker."""
    death_report_grace_s: float = 1.0
    """How long a broken connection to a new actor's worker waits for the raylet to report its exit status."""
    restart_backoff_s: float = 0.1
    """Pause before an actor whose constructor ended its worker twice in a row is tried again; doubles."""
    restart_backoff_max_s: float = 5.0

    redis_retry_for_s: float = 30.0
    """How long a Redis that does not answer may stall the cluster before the GCS ends. A failover of Sentinel
    takes less."""
    disk_retry_for_s: float = 600.0
    """The same of a store without room, on a disk or in Redis. Who has to make some takes longer."""
    confirm_period_s: float = 0.1
    """Between looks whether the lease on the store has to be renewed; well below redis_lease.LEASE_S."""

    subscriber_queue_max: int = 10_000
    """Messages held for one subscriber that does not read: a few MB."""
    dead_nodes_max: int = 1_000
    """Rows of the dead, and of finished jobs, that are kept for those who ask later; the oldest go."""
    dead_workers_max: int = 1_000
    dead_actors_max: int = 1_000
    removed_placement_groups_max: int = 1_000
    finished_jobs_max: int = 1_000
    task_events_max: int = 100_000
    """Some 5 MB: half a minute of a busy machine, and as much as viewers take."""
    dead_age_max_s: float = 86_400.0
    """Such rows, and task events, go after this, too."""
    kv_bytes_max: int = 1 << 30
    """Of all keys and values; more are refused."""

    answering_callers_max: int = 10_000
    """Living processes whose latest calls are kept with their answers (answers.py)."""
    kept_answers_max: int = 1_000
    """Of one such process: so many calls that must not be done twice may be under way."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 < value < inf:
                raise ValueError(f"GcsConfig.{field.name} must be above 0 and finite, got {value!r}")
        if not self.listen:
            raise ValueError("GcsConfig.listen must name at least one address, got none")


def settings_from_json(cluster_config_json: str) -> dict[str, Any]:
    """The GCS's own settings out of the cluster's JSON: {"gcs": {"health_check_period_s": 1}}.

    Raises ValueError.
    """
    try:
        config = json.loads(cluster_config_json)
    except json.JSONDecodeError as error:
        raise ValueError(f"the cluster's configuration is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("gcs", {}), dict):
        raise ValueError(
            'the cluster\'s configuration must be an object, and so must its "gcs"; '
            f"got {cluster_config_json}"
        )
    tunable = {field.name for field in dataclasses.fields(GcsConfig) if field.type in ("float", "int")}
    settings = config.get("gcs", {})
    for name, value in settings.items():
        if name not in tunable:
            raise ValueError(f'"gcs" has no setting {name!r}; accepted are {", ".join(sorted(tunable))}')
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f'"gcs" setting {name!r} must be a number, got {value!r}')
    return settings

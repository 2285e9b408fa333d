"""Ray's flat names of settings in `_system_config`, and what each means here.

A cluster's settings stand under its services ("gcs", "object_manager", "raylet"), each with the service's own
names and units. Ray has one list of names. `normalized` puts Ray's where they belong. Those of spilling stay
as they are (spilling.py). The environment of whoever starts a node may have them as RAY_MONO_<name>, or, as
for Ray, as RAY_<name>: a program that is moved here brings them along. The first of these wins over the
second, and `_system_config` over both. The head's count for all nodes that were told nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from ray_mono._private.node import spilling
from ray_mono.common.setting_rules import ABOVE_ZERO, rule_of

SERVICES = ("gcs", "object_manager", "raylet")
VARIABLE_PREFIXES = ("RAY_MONO_", "RAY_")

# Ray's name, whose setting it is, its name there, and what one of Ray's units is in ours.
_SETTINGS: dict[str, tuple[str, str, float]] = {
    "gcs_rpc_server_reconnect_timeout_s": ("raylet", "gcs_reconnect_timeout_s", 1),
    "health_check_failure_threshold": ("gcs", "health_check_failures_max", 1),
    "health_check_period_ms": ("gcs", "health_check_period_s", 0.001),
    "health_check_timeout_ms": ("gcs", "health_check_timeout_s", 0.001),
    "idle_worker_killing_time_threshold_ms": ("raylet", "idle_worker_timeout_s", 0.001),
    "kill_worker_timeout_milliseconds": ("raylet", "worker_exit_grace_s", 0.001),
    "max_lineage_bytes": ("raylet", "max_lineage_bytes", 1),
    "maximum_gcs_dead_node_cached_count": ("gcs", "dead_nodes_max", 1),
    "maximum_gcs_dead_worker_cached_count": ("gcs", "dead_workers_max", 1),
    "maximum_gcs_destroyed_actor_cached_count": ("gcs", "dead_actors_max", 1),
    "memory_monitor_refresh_ms": ("raylet", "memory_monitor_refresh_ms", 1),
    "memory_usage_threshold": ("raylet", "memory_usage_threshold", 1),
    "raylet_report_resources_period_milliseconds": ("raylet", "report_period_s", 0.001),
    "task_events_max_num_task_in_gcs": ("gcs", "task_events_max", 1),
    "task_oom_retries": ("raylet", "task_oom_retries", 1),
    "task_oom_retry_delay_base_ms": ("raylet", "task_oom_retry_delay_base_ms", 1),
    "worker_register_timeout_seconds": ("raylet", "worker_register_timeout_s", 1),
}
# Those that count something. The others take parts of it as well.
_WHOLE = frozenset(
    {
        "health_check_failure_threshold",
        "max_lineage_bytes",
        "maximum_gcs_dead_node_cached_count",
        "maximum_gcs_dead_worker_cached_count",
        "maximum_gcs_destroyed_actor_cached_count",
        "memory_monitor_refresh_ms",
        "task_events_max_num_task_in_gcs",
        "task_oom_retries",
        "task_oom_retry_delay_base_ms",
    }
)
# What is always so here, and why; other values are refused.
_FIXED: dict[str, tuple[Any, str]] = {
    "health_check_initial_delay_ms": (0, "a node is checked from its start on"),
    "lineage_pinning_enabled": (True, "what makes lost objects again is always kept"),
    "min_memory_free_bytes": (-1, "memory_usage_threshold alone says when memory is short"),
    "worker_killing_policy_by_group": (True, "workers are killed by groups of owners"),
}
# How often Ray looks. Here nobody looks again and again, so that any number is as good.
_POLLED = frozenset({"local_fs_monitor_interval_ms", "object_store_full_delay_ms"})
FLAT = frozenset({*_SETTINGS, *_FIXED, *_POLLED}) | spilling.SETTINGS


def check(system_config: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError naming the setting."""
    for name, value in system_config.items():
        if name in SERVICES:
            if not isinstance(value, Mapping):
                raise TypeError(f"_system_config[{name!r}] must be a dict of settings, got {value!r}")
        elif name not in FLAT:
            raise ValueError(
                f"_system_config has no setting {name!r}; accepted are {', '.join(SERVICES)}, each with a"
                f" dict of its settings, and of Ray's names {', '.join(sorted(FLAT))}"
            )
        elif name not in spilling.SETTINGS:
            _check_value(f"_system_config[{name!r}]", name, value)
    for name, (service, ours, _) in _SETTINGS.items():
        if name in system_config and ours in system_config.get(service, {}):
            raise ValueError(
                f"_system_config[{name!r}] and _system_config[{service!r}][{ours!r}] are one setting: give"
                " one of them"
            )


def normalized(system_config: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """By services, but for those of spilling. Raises ValueError for what the environment has."""
    around = _from(environ)
    if system_config.keys() & spilling.TEXTS:
        around = {name: value for name, value in around.items() if name not in spilling.TEXTS}
    spilling.check(around, None)
    flat = {**around, **{name: system_config[name] for name in system_config if name in FLAT}}
    config = {name: value for name, value in flat.items() if name in spilling.SETTINGS}
    for service in SERVICES:
        own = {
            ours: value if factor == 1 else value * factor
            for name, (whose, ours, factor) in _SETTINGS.items()
            if whose == service and (value := flat.get(name)) is not None
        }
        own.update(system_config.get(service, {}))
        if own:
            config[service] = own
    return config


def merged(cluster: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A node's: what it was not told is as the cluster has it."""
    services = {
        service: {**cluster.get(service, {}), **own.get(service, {})}
        for service in SERVICES
        if service in cluster or service in own
    }
    return {**cluster, **own, **services}


def _from(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the raylet reads by itself (raylet/arguments.py) is left to it, since each node has its own. But
    who starts the node hears what is wrong with it."""
    found: dict[str, Any] = {}
    for name in FLAT:
        variable = next((each for prefix in VARIABLE_PREFIXES if environ.get(each := prefix + name)), None)
        if variable is None:
            continue
        value: Any = environ[variable]
        if name not in spilling.TEXTS:
            with contextlib.suppress(ValueError):
                value = json.loads(value.lower())
            if name == spilling.IS_ON and value in (0, 1):
                value = bool(value)
        if name not in spilling.SETTINGS:
            _check_value(variable, name, value)
        elif isinstance(value, str) and name not in spilling.TEXTS:
            raise ValueError(f"{variable} must be a number, true or false, got {value!r}")
        if _SETTINGS.get(name, ("", ""))[:2] != ("raylet", name):
            found[name] = value
    return found


def _check_value(where: str, name: str, value: Any) -> None:
    if name in _FIXED:
        fixed, why = _FIXED[name]
        if value != fixed:
            raise ValueError(f"{where} can only be {fixed!r} here, since {why}; got {value!r}")
        return
    service, ours, _ = _SETTINGS.get(name, ("", name, 1))
    accepted, is_accepted = ABOVE_ZERO if service == "gcs" else rule_of(ours)
    kinds = int if name in _WHOLE else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not is_accepted(value):
        what = "a whole number" if name in _WHOLE else "a finite number"
        raise ValueError(f"{where} must be {what}, {accepted}; got {value!r}")

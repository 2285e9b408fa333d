"""Ray's flat names of settings: what each means here, what is refused, and who wins."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_mono._private.node import ray_settings
from ray_mono.gcs.config import GcsConfig
from ray_mono.raylet.arguments import settings_of

ALL: dict[str, Any] = {
    "gcs_rpc_server_reconnect_timeout_s": 30,
    "health_check_failure_threshold": 2,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 250,
    "idle_worker_killing_time_threshold_ms": 1000,
    "kill_worker_timeout_milliseconds": 2000,
    "lineage_pinning_enabled": True,
    "local_fs_monitor_interval_ms": 100,
    "max_lineage_bytes": 1000,
    "maximum_gcs_dead_node_cached_count": 10,
    "maximum_gcs_dead_worker_cached_count": 11,
    "maximum_gcs_destroyed_actor_cached_count": 12,
    "memory_monitor_refresh_ms": 0,
    "memory_usage_threshold": 0.5,
    "min_memory_free_bytes": -1,
    "object_store_full_delay_ms": 100,
    "raylet_report_resources_period_milliseconds": 100,
    "task_events_max_num_task_in_gcs": 13,
    "task_oom_retries": -1,
    "task_oom_retry_delay_base_ms": 14,
    "worker_killing_policy_by_group": True,
    "worker_register_timeout_seconds": 15,
}


def test_each_of_rays_names_is_a_setting_of_a_service() -> None:
    ray_settings.check(ALL)
    config = ray_settings.normalized(ALL, {})
    assert config == {
        "gcs": {
            "health_check_failures_max": 2,
            "health_check_period_s": 0.5,
            "health_check_timeout_s": 0.25,
            "dead_nodes_max": 10,
            "dead_workers_max": 11,
            "dead_actors_max": 12,
            "task_events_max": 13,
        },
        "raylet": {
            "gcs_reconnect_timeout_s": 30,
            "idle_worker_timeout_s": 1.0,
            "worker_exit_grace_s": 2.0,
            "max_lineage_bytes": 1000,
            "memory_monitor_refresh_ms": 0,
            "memory_usage_threshold": 0.5,
            "report_period_s": 0.1,
            "task_oom_retries": -1,
            "task_oom_retry_delay_base_ms": 14,
            "worker_register_timeout_s": 15,
        },
    }
    # The services take them.
    GcsConfig(**config["gcs"])
    assert settings_of(json.dumps(config["raylet"]), {}) == config["raylet"]


def test_a_services_own_settings_and_those_of_spilling_stay_as_they_are() -> None:
    given = {"gcs": {"dead_nodes_max": 3}, "min_spilling_size": 5, "health_check_period_ms": 1000}
    assert ray_settings.normalized(given, {}) == {
        "gcs": {"dead_nodes_max": 3, "health_check_period_s": 1.0},
        "min_spilling_size": 5,
    }


def test_the_environment_has_them_too_and_loses() -> None:
    environ = {
        "RAY_MONO_health_check_period_ms": "1000",
        "RAY_MONO_health_check_timeout_ms": "2000",
        "RAY_MONO_automatic_object_spilling_enabled": "0",
        "RAY_MONO_object_spilling_directory": "/a",
        "RAY_MONO_memory_usage_threshold": "0.5",  # the raylet of each node reads it
        "RAY_MONO_nonsense": "1",
        # As they are called where a program for Ray comes from.
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "7",
    }
    assert ray_settings.normalized({"health_check_period_ms": 500}, environ) == {
        "gcs": {"health_check_period_s": 0.5, "health_check_timeout_s": 2.0, "health_check_failures_max": 7},
        "automatic_object_spilling_enabled": False,
        "object_spilling_directory": "/a",
    }
    config = json.dumps({"type": "filesystem", "params": {"directory_path": "/b"}})
    given = ray_settings.normalized({"object_spilling_config": config}, environ)
    assert "object_spilling_directory" not in given and given["object_spilling_config"] == config


def test_a_node_that_joins_has_the_clusters_where_it_was_told_nothing() -> None:
    cluster = {"gcs": {"dead_nodes_max": 3}, "raylet": {"max_lineage_bytes": 1}, "min_spilling_size": 5}
    own = {"raylet": {"task_oom_retries": 2}, "min_spilling_size": 6}
    assert ray_settings.merged(cluster, own) == {
        "gcs": {"dead_nodes_max": 3},
        "raylet": {"max_lineage_bytes": 1, "task_oom_retries": 2},
        "min_spilling_size": 6,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scheduler_spread_threshold": 0.5}, "no setting 'scheduler_spread_threshold'; accepted are gcs"),
        (
            {"health_check_period_ms": "1"},
            r"\['health_check_period_ms'\] must be a finite number, above 0; got '1'",
        ),
        ({"health_check_period_ms": True}, "must be a finite number, above 0; got True"),
        ({"health_check_period_ms": 0}, "must be a finite number, above 0; got 0"),
        ({"idle_worker_killing_time_threshold_ms": -1}, "must be a finite number, 0 or more; got -1"),
        ({"memory_usage_threshold": 95}, "must be a finite number, above 0 and at most 1; got 95"),
        ({"memory_usage_threshold": float("nan")}, "above 0 and at most 1; got nan"),
        ({"task_oom_retries": 1.5}, r"must be a whole number, 0 or more \(-1: without end\); got 1.5"),
        ({"lineage_pinning_enabled": False}, "can only be True here, since what makes lost objects again"),
        ({"health_check_initial_delay_ms": 5000}, "can only be 0 here, since a node is checked from its"),
        ({"health_check_period_ms": 1, "gcs": {"health_check_period_s": 1}}, "are one setting: give one"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ray_settings.check(given)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("RAY_MONO_health_check_period_ms", "soon", "must be a finite number, above 0; got 'soon'"),
        ("RAY_health_check_period_ms", "0", "must be a finite number, above 0; got 0"),
        ("RAY_MONO_lineage_pinning_enabled", "false", "can only be True here"),
        ("RAY_min_memory_free_bytes", "1", "can only be -1 here, since memory_usage_threshold alone"),
        ("RAY_MONO_min_spilling_size", "much", "must be a number, true or false, got 'much'"),
        # The raylet reads these, but its own complaint would come late.
        ("RAY_memory_usage_threshold", "95", "must be a finite number, above 0 and at most 1; got 95"),
        ("RAY_MONO_memory_monitor_refresh_ms", "0.5", "must be a whole number, 0 or more; got 0.5"),
    ],
)
def test_what_cannot_be_in_the_environment_is_refused_by_its_name(
    variable: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{variable} {message}"):
        ray_settings.normalized({}, {variable: text})


def test_a_directory_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="that is the memory of one process"):
        ray_settings.normalized({}, {"RAY_MONO_object_spilling_directory": "memory://a"})

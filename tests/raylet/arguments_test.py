"""What a raylet is told beside its own flags: by --config and by the environment."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.arguments import settings_of
from ray_mono.raylet.config import RayletConfig

RESOURCES = ResourceSet.from_units({"CPU": 1})


@pytest.mark.parametrize(
    ("config", "environ", "settings"),
    [
        ("{}", {}, {}),
        ('{"memory_monitor_refresh_ms": 0}', {}, {"memory_monitor_refresh_ms": 0}),
        ("{}", {"RAY_MONO_memory_usage_threshold": "0.5"}, {"memory_usage_threshold": 0.5}),
        ("{}", {"RAY_MONO_memory_usage_threshold": "1"}, {"memory_usage_threshold": 1}),
        ("{}", {"RAY_MONO_task_oom_retries": "-1"}, {"task_oom_retries": -1}),
        ("{}", {"RAY_MONO_memory_root": "7"}, {"memory_root": "7"}),
        ("{}", {"RAY_memory_usage_threshold": "0.1"}, {"memory_usage_threshold": 0.1}),
        ("{}", {"RAY_MONO_task_oom_retries": "", "RAY_task_oom_retries": "1"}, {"task_oom_retries": 1}),
        ("{}", {"RAY_MONO_task_oom_retries": "2", "RAY_task_oom_retries": "1"}, {"task_oom_retries": 2}),
        ("{}", {"RAY_memory_root": "/none", "RAY_idle_worker_timeout_s": "1"}, {}),  # Ray has no such
        ('{"task_oom_retries": 3}', {"RAY_MONO_task_oom_retries": "5"}, {"task_oom_retries": 3}),
    ],
)
def test_settings_may_stand_in_both_and_config_wins(
    config: str, environ: dict[str, str], settings: dict[str, Any]
) -> None:
    assert settings_of(config, environ) == settings


@pytest.mark.parametrize(
    ("config", "environ", "complaint"),
    [
        ("[]", {}, "--config takes a JSON object, got '\\[\\]'"),
        (
            '{"port": 1}',
            {},
            "--config has no 'port'; it takes gcs_reconnect_timeout_s, idle_worker_timeout_s, ",
        ),
        ('{"task_oom_retries": 1.5}', {}, "--config: task_oom_retries must be a whole number, got 1.5"),
        ('{"memory_root": 1}', {}, "--config: memory_root must be a text, got 1"),
        ('{"memory_usage_threshold": true}', {}, "memory_usage_threshold must be a number, got True"),
        (
            "{}",
            {"RAY_MONO_memory_monitor_refresh_ms": "soon"},
            "refresh_ms must be a whole number, got 'soon'",
        ),
        (
            "{}",
            {"RAY_memory_usage_threshold": "95"},
            "^RAY_memory_usage_threshold must be above 0 and at most 1, got 95",
        ),
        ("{}", {"RAY_MONO_task_oom_retries": "-2"}, "^RAY_MONO_task_oom_retries must be 0 or more"),
        ('{"max_lineage_bytes": -1}', {}, "^--config: max_lineage_bytes must be 0 or more, got -1"),
    ],
)
def test_what_is_none_is_refused_with_its_name(config: str, environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings_of(config, environ)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"memory_usage_threshold": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"memory_usage_threshold": 95}, "above 0 and at most 1, got 95"),
        ({"memory_usage_threshold": float("nan")}, "above 0 and at most 1, got nan"),
        ({"gcs_reconnect_timeout_s": float("inf")}, "gcs_reconnect_timeout_s must be finite, got inf"),
        ({"memory_monitor_refresh_ms": -1}, "memory_monitor_refresh_ms must be 0 or more, got -1"),
        ({"memory_kill_wait_s": float("nan")}, "memory_kill_wait_s must be 0 or more, got nan"),
        ({"task_oom_retry_delay_base_ms": -5}, "task_oom_retry_delay_base_ms must be 0 or more, got -5"),
        ({"task_oom_retries": -2}, "task_oom_retries must be 0 or more \\(-1: without end\\), got -2"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RayletConfig(b"n" * 28, "unix:/gcs", "/s", "h", "/d", RESOURCES, **settings)

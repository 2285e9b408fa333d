"""What a node offers, and what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from ray_mono._private.node import accelerators, resource_spec
from ray_mono._private.node.parameter import RayParams


def node_resources(**given: Any) -> dict[str, float]:
    defaults: dict[str, Any] = {
        "num_cpus": None,
        "num_gpus": None,
        "memory_bytes": None,
        "object_store_bytes": 1 << 20,
        "custom": None,
        "node_ip_address": "10.0.0.1",
        "is_head": False,
    }
    return resource_spec.node_resources(**{**defaults, **given})


def test_defaults_are_the_machines() -> None:
    found = node_resources(is_head=True)
    assert found["CPU"] == resource_spec.usable_cpus() <= len(os.sched_getaffinity(0))
    assert found["node:10.0.0.1"] == found["node:__internal_head__"] == 1.0
    assert found["memory"] > found["object_store_memory"] == 1 << 20


def test_what_was_said_is_taken_and_nothing_is_absent() -> None:
    found = node_resources(
        num_cpus=8, num_gpus=0, memory_bytes=5.5, object_store_bytes=1 << 20, custom={"A": 2.0, "B": 0}
    )
    assert found == {
        "CPU": 8,
        "memory": 5,
        "object_store_memory": 1 << 20,
        "A": 2,
        "node:10.0.0.1": 1.0,
    }


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_cpus": -1}, ValueError, "num_cpus must be a whole number of at least 0, got -1"),
        ({"num_cpus": 1.5}, ValueError, "num_cpus must be a whole number of at least 0, got 1.5"),
        ({"num_gpus": 0.5}, ValueError, "num_gpus must be a whole number of at least 0, got 0.5"),
        ({"num_gpus": math.inf}, ValueError, "num_gpus must be .* at most .*, got inf"),
        ({"num_gpus": math.nan}, ValueError, "num_gpus must be .* got nan"),
        ({"num_cpus": "2"}, TypeError, "num_cpus must be a whole number of at least 0, got '2'"),
        ({"memory_bytes": -1}, ValueError, "memory must be a number of at least 0, got -1"),
        ({"custom": {"CPU": 1}}, ValueError, "use num_cpus instead"),
        ({"custom": {"A": -1}}, ValueError, r"resources\['A'\]"),
        ({"custom": {"A": 1.5}}, ValueError, r"resources\['A'\] must be a whole number .* got 1.5"),
        ({"custom": {"A": None}}, TypeError, r"resources\['A'\] must be a whole number .* got None"),
        ({"custom": {1: 1}}, TypeError, "resources must have names that are strings, got 1"),
        ({"custom": "A=1"}, TypeError, "resources must be a dict from names to whole numbers, got 'A=1'"),
    ],
)
def test_amounts_that_cannot_be_are_refused_by_name(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        node_resources(**given)


def test_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_spec, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{3 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 20}\n")
    assert resource_spec.usable_cpus() == 1
    assert resource_spec.machine_memory() == resource_spec.MachineMemory(
        total_bytes=3 << 20, available_bytes=2 << 20
    )
    # Copies of files are not in anybody's way.
    (tmp_path / "memory.stat").write_text(
        f"anon 1\nactive_file {1 << 19}\ninactive_file {1 << 18}\nworkingset_refault_file 7\n"
    )
    assert resource_spec.machine_memory().available_bytes == (2 << 20) + (1 << 19) + (1 << 18)
    # The kernel counts the two apart: more copies than memory in use leave no more than the limit.
    (tmp_path / "memory.stat").write_text(f"active_file {2 << 20}\n")
    assert resource_spec.machine_memory().available_bytes == 3 << 20
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert resource_spec.usable_cpus() == len(os.sched_getaffinity(0))
    memory = resource_spec.machine_memory()
    assert memory.total_bytes >= memory.available_bytes > 2 << 20


def test_gpus_are_those_that_cuda_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert accelerators.visible_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert accelerators.visible_gpus() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert accelerators.visible_gpus() == 0


def test_parameters_are_set_once_unless_updated() -> None:
    params = RayParams(num_cpus=2)
    params.update_if_absent(num_cpus=4, num_gpus=1)
    assert (params.num_cpus, params.num_gpus) == (2, 1)
    params.update(num_cpus=4)
    assert params.num_cpus == 4
    for change in (params.update, params.update_if_absent):
        with pytest.raises(TypeError, match="'cpus' is no parameter"):
            change(cpus=1)


@pytest.mark.parametrize(
    ("params", "head", "message"),
    [
        (RayParams(gcs_server_port=70000), True, "gcs_server_port must be a port number"),
        (RayParams(gcs_address="h:1"), True, "gcs_address must be absent"),
        (RayParams(), False, "gcs_address is missing"),
        (RayParams(redis_embedded=True, redis_address="h:1"), True, "redis_embedded"),
        (RayParams(gcs_address="h:1", redis_address="h:1"), False, "belong to the head"),
        (RayParams(redis_username="me"), True, "belong to a redis_address"),
        (RayParams(maximum_startup_concurrency=0), True, "maximum_startup_concurrency"),
        (RayParams(labels={"a": 1}), True, "labels"),  # type: ignore[dict-item]
    ],
)
def test_parameters_that_cannot_be_are_refused_by_name(params: RayParams, head: bool, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        params.check(head)

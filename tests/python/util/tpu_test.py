"""What kinds and topologies of TPUs say. The values are those of Ray 2.60."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mono.util import tpu


@pytest.mark.parametrize(
    ("topology", "kind", "chips", "of_host", "pod_type", "workers"),
    [
        ("4x4", "TPU-V6E", 16, 4, "v6e-16", 4),
        ("2x4", "v6e", 8, 8, "v6e-8", 1),
        ("1x1", "v5litepod", 1, 1, "v5litepod-1", 1),
        ("2x2", "v6e", 4, 4, "v6e-4", 1),
        ("2X8", "V6E", 16, 4, "v6e-16", 4),
        ("2x2x2", "TPU-V4", 8, 4, "v4-16", 2),
        ("2x4", "v4", 8, 4, "v4-16", 2),
        ("4x4x4", "v7x", 64, 4, "v7x-128", 16),
    ],
)
def test_a_topology_says_how_many(
    topology: str, kind: str, chips: int, of_host: int, pod_type: str, workers: int
) -> None:
    version = tpu.get_tpu_version_from_type(kind)
    assert tpu.get_num_chips_from_topology(topology) == chips
    assert tpu.get_chips_per_host(topology, version) == of_host
    assert tpu.infer_tpu_pod_type_from_topology(topology, kind) == pod_type
    assert tpu.get_tpu_worker_resources(topology, kind) == (workers, {"CPU": 1, "TPU": of_host})


@pytest.mark.parametrize(
    ("given", "workers", "resources"),
    [
        ({"num_slices": 2}, 8, {"CPU": 1, "TPU": 4}),
        ({"chips_per_vm": 8}, 2, {"CPU": 1, "TPU": 8}),
        ({"tpu_resource_per_chip": 2}, 4, {"CPU": 1, "TPU": 8}),
        ({"resources_per_worker": {"CPU": 2}}, 4, {"CPU": 2, "TPU": 4}),
        ({"resources_per_worker": {"TPU": 0.5}}, 32, {"TPU": 0.5, "CPU": 1}),
        ({"resources_per_worker": {"TPU": 16}, "tpu_resource_per_chip": 2}, 2, {"TPU": 16, "CPU": 1}),
    ],
)
def test_workers_hold_what_they_are_told_to(given: Any, workers: int, resources: dict[str, float]) -> None:
    assert tpu.get_tpu_worker_resources("4x4", "TPU-V6E", **given) == (workers, resources)


@pytest.mark.parametrize(
    ("topology", "workers", "resources", "expected"),
    [
        ("4x4", 5, None, 2),
        ("4x4", 17, None, 5),
        ("4x4", 17, {"TPU": 1}, 2),
        ("4x4", 0, None, 1),
        ("4x4", 17, {"TPU": 3}, 1),
        ("x", 5, None, 1),
        (None, 5, None, 1),
    ],
)
def test_workers_need_so_many_slices(topology: Any, workers: int, resources: Any, expected: int) -> None:
    assert tpu.get_tpu_num_slices_for_workers(topology, "TPU-V6E", workers, resources) == expected


@pytest.mark.parametrize("junk", ["", "A100", "TPU-", "TPU-V9", "v5e"])
def test_a_kind_that_is_none_is_named(junk: str) -> None:
    with pytest.raises(ValueError, match="accelerator_type must be one of 'v2', .* got"):
        tpu.get_tpu_version_from_type(junk)


@pytest.mark.parametrize("junk", ["", "x", "ax2", "0x2", "-1x2", "2x"])
def test_a_topology_that_is_none_is_named(junk: str) -> None:
    with pytest.raises(ValueError, match="topology must be numbers of chips with 'x' between them"):
        tpu.get_num_chips_from_topology(junk)


def test_the_environment_says_how_many_a_chip_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TPU_RESOURCE_PER_CHIP", raising=False)
    assert tpu.get_tpu_resource_per_chip() == 1
    monkeypatch.setenv("RAY_TPU_RESOURCE_PER_CHIP", "2")
    assert tpu.get_tpu_resource_per_chip() == 2 and tpu.get_tpu_resource_per_chip(3) == 3
    monkeypatch.setenv("RAY_TPU_RESOURCE_PER_CHIP", "0")
    with pytest.raises(
        ValueError, match="RAY_TPU_RESOURCE_PER_CHIP must be a whole number of at least 1, got '0'"
    ):
        tpu.get_tpu_resource_per_chip()


def test_the_environment_says_which_slice_a_process_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TPU_NAME", raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    assert tpu.get_current_pod_name() is tpu.get_current_pod_worker_count() is None
    monkeypatch.setenv("TPU_NAME", "left")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    assert (tpu.get_current_pod_name(), tpu.get_current_pod_worker_count()) == ("left", 2)


def test_slices_find_each_other_by_their_environment() -> None:
    assert tpu.get_tpu_coordinator_env_vars("host", 2, 1) == {
        "MEGASCALE_COORDINATOR_ADDRESS": "host",
        "MEGASCALE_PORT": "8081",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }

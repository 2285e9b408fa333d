"""ray_mono.util.tpu on nodes that were told to be hosts of TPUs: two slices v6e-8, each of two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.cluster_utils import Cluster
from ray_mono.util import tpu
from ray_mono.util.placement_group import placement_group_table

GET_TIMEOUT_S = 60
SLICES = ("left", "right")
V6E_8: dict[str, Any] = {"topology": "2x4", "accelerator_version": "v6e", "chips_per_vm": 4}


@pytest.fixture(scope="module")
def slices() -> Iterator[None]:
    cluster = Cluster(initialize_head=True)
    try:
        for name in SLICES:
            for host in range(2):
                cluster.add_node(
                    num_cpus=2,
                    resources={"TPU": 4, **({} if host else {"TPU-v6e-8-head": 1})},
                    labels={
                        "ray.io/tpu-slice-name": name,
                        "ray.io/tpu-worker-id": str(host),
                        "ray.io/tpu-pod-type": "v6e-8",
                        "ray.io/tpu-topology": "2x4",
                    },
                )
        ray.init(address=cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote
def host(*seen: Any, **named: Any) -> tuple[str, str, Any, Any]:
    context = ray.get_runtime_context()
    labels = context.get_node_labels()
    return labels["ray.io/tpu-slice-name"], labels["ray.io/tpu-worker-id"], seen, named


def hosts_of(refs: list[Any]) -> list[tuple[str, str]]:
    return sorted(found[:2] for found in ray.get(refs, timeout=GET_TIMEOUT_S))


def states_of(groups: list[Any]) -> set[str]:
    return {placement_group_table(group)["state"] for group in groups}


def test_slices_are_counted(slices: None) -> None:
    assert tpu.get_num_tpu_slices("2x4", "TPU-V6E") == tpu.get_num_ready_tpu_slices("2x4", "v6e") == 2
    for other in (("4x4", "TPU-V6E"), ("2x4", "TPU-V5P"), ("x", "v6e"), ("2x4", "A100")):
        assert tpu.get_num_tpu_slices(*other) == tpu.get_num_ready_tpu_slices(*other) == 0
    assert [node["Labels"]["ray.io/tpu-worker-id"] for node in tpu.get_tpu_nodes_for_slice("left")] == [
        "0",
        "1",
    ]
    assert tpu.get_tpu_nodes_for_slice("none") == []


def test_a_slice_that_is_reserved_is_whole_and_comes_back(slices: None) -> None:
    reserved = tpu.slice_placement_group(**V6E_8)
    assert reserved.placement_group is not None and reserved.placement_group.wait(GET_TIMEOUT_S)
    assert (reserved.num_hosts, reserved.num_bundles, reserved.chips_per_host) == (2, 2, 4)
    assert reserved.bundle_resources == {"CPU": 1, "TPU": 4}
    names = {selector["ray.io/tpu-slice-name"] for selector in reserved.bundle_label_selector}
    assert len(names) == 1 and names <= {*SLICES}
    calls = tpu.run_on_slice(host, 1, tpu_slice=reserved, key=2)
    (name,) = names
    assert ray.get(calls, timeout=GET_TIMEOUT_S)[0][2:] == ((1,), {"key": 2})
    assert hosts_of(calls) == [(name, "0"), (name, "1")]
    with pytest.raises(TimeoutError, match="no slice v6e-8 came free within 0.5 s"):
        tpu.slice_placement_group(**V6E_8, num_slices=2, head_reservation_timeout_s=0.5)
    with pytest.raises(ValueError, match="slice_index goes with a tpu_slice that was made with pg_per_slice"):
        tpu.run_on_slice(host, tpu_slice=reserved, slice_index=0)
    with pytest.raises(ValueError, match="without pg_per_slice=True there is one group"):
        _ = reserved.slice_placement_groups
    groups = [reserved.placement_group, *reserved.head_placement_groups]
    reserved.shutdown()
    reserved.shutdown()
    assert states_of(groups) == {"REMOVED"} and reserved.placement_group is None
    with pytest.raises(ValueError, match="tpu_slice was shut down"):
        tpu.run_on_slice(host, tpu_slice=reserved)


def test_slices_may_have_a_group_each(slices: None) -> None:
    reserved = tpu.slice_placement_group(**V6E_8, num_slices=2, pg_per_slice=True, name="mine")
    groups = reserved.slice_placement_groups
    assert [placement_group_table(group)["name"] for group in groups] == ["mine-0", "mine-1"]
    first, second = (hosts_of(tpu.run_on_slice(host, tpu_slice=reserved, slice_index=i)) for i in range(2))
    assert sorted(first + second) == [(name, number) for name in SLICES for number in "01"]
    assert len({name for name, _ in first}) == len({name for name, _ in second}) == 1
    assert hosts_of(tpu.run_on_slice(host, tpu_slice=reserved)) == sorted(first + second)
    with pytest.raises(ValueError, match="slice_index must be from 0 to 1, got 2"):
        tpu.run_on_slice(host, tpu_slice=reserved, slice_index=2)
    reserved.release_head_pgs(1)
    reserved.release_head_pgs(1)
    assert len(reserved.head_placement_groups) == 1
    with pytest.raises(ValueError, match="slice_index must be from 0 to 1, got -1"):
        reserved.release_head_pgs(-1)
    with pytest.raises(ValueError, match="with pg_per_slice=True there is a group for each slice"):
        _ = reserved.placement_group
    reserved.shutdown()


def test_a_slice_that_is_not_given_is_reserved(slices: None) -> None:
    calls = tpu.run_on_slice(host, **V6E_8, pg_ready_timeout_s=GET_TIMEOUT_S)
    assert [number for _, number in hosts_of(calls)] == ["0", "1"]


def test_a_slice_of_one_host_needs_no_head(slices: None) -> None:
    reserved = tpu.slice_placement_group("2x2", "v6e", resources_per_bundle={"TPU": 2})
    assert reserved.placement_group is not None and reserved.placement_group.wait(GET_TIMEOUT_S)
    assert reserved.head_placement_groups == [] and reserved.num_bundles == 2
    reserved.shutdown()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"topology": "2x2x2"}, ValueError, "topology must have 2 dimensions for 'v6e', got '2x2x2'"),
        ({"topology": "ax2"}, ValueError, "topology must be numbers of chips with 'x' between them"),
        ({"topology": None}, TypeError, "topology must be a string, got None"),
        ({"accelerator_version": "A100"}, ValueError, "accelerator_type must be one of 'v2'"),
        ({"num_slices": 0}, ValueError, "num_slices must be a whole number of at least 1, got 0"),
        ({"chips_per_vm": 0}, ValueError, "chips_per_vm must be a whole number of at least 1, got 0"),
        ({"tpu_resource_per_chip": 0}, ValueError, "tpu_resource_per_chip must be a whole number"),
        ({"resources_per_bundle": {"TPU": 3}}, ValueError, "must divide the 8 TPUs of a slice 2x4, got 3"),
        ({"resources_per_bundle": 5}, TypeError, "resources_per_worker must be a dict"),
        ({"bundle_label_selector": [{}]}, ValueError, "a dict for each of the 2 bundles, got 1"),
        ({"strategy": "X"}, ValueError, "strategy must be one of 'PACK'"),
    ],
)
def test_what_is_no_slice_is_named(
    slices: None, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tpu.slice_placement_group(**{**V6E_8, **given})
    assert tpu.get_num_tpu_slices("2x4", "v6e") == 2


def test_calls_that_name_no_slice_are_refused(slices: None) -> None:
    with pytest.raises(TypeError, match="fn must be a remote function, got <built-in function len>"):
        tpu.run_on_slice(len, **V6E_8)
    with pytest.raises(ValueError, match="give topology and accelerator_version, or tpu_slice"):
        tpu.run_on_slice(host)
    with pytest.raises(ValueError, match="slice_index=0 goes with tpu_slice only"):
        tpu.run_on_slice(host, slice_index=0)
    with pytest.raises(TypeError, match="tpu_slice must be a SlicePlacementGroup or None, got 5"):
        tpu.run_on_slice(host, tpu_slice=5)  # type: ignore[arg-type]
    for refused in (tpu.subslice_placement_group, tpu.init_jax_profiler):
        with pytest.raises(NotImplementedError, match="needs TPUs|there is none"):
            refused()

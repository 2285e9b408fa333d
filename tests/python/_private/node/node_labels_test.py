"""The labels that a node has: those of its environment, its own, and those that override both."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mono._private.node import accelerators
from ray_mono._private.node.node_labels import node_labels
from ray_mono._private.node.resource_spec import node_resources


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(accelerators, "NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def add_gpu(gpus: Path, model: str) -> None:
    (gpus / "0000:01:00.0").mkdir()
    (gpus / "0000:01:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 123\n")


def test_the_environment_names_group_market_region_and_zone() -> None:
    environ = {
        "RAY_NODE_TYPE_NAME": "workers",
        "RAY_NODE_MARKET_TYPE": "spot",
        "RAY_NODE_REGION": "us-west2",
        "RAY_NODE_ZONE": "us-west2-a",
    }
    assert node_labels(None, environ) == {
        "ray.io/node-group": "workers",
        "ray.io/market-type": "spot",
        "ray.io/availability-region": "us-west2",
        "ray.io/availability-zone": "us-west2-a",
    }
    assert node_labels({}, {"RAY_NODE_ZONE": ""}) == {}


def test_given_labels_come_before_the_environments_and_overrides_before_all() -> None:
    environ = {
        "RAY_NODE_MARKET_TYPE": "spot",
        "RAY_OVERRIDE_LABELS": '{"a": "override", "c": "3"}',
    }
    given = {"ray.io/market-type": "on-demand", "a": "1", "b": "2"}
    assert node_labels(given, environ) == {
        "ray.io/market-type": "on-demand",
        "a": "override",
        "b": "2",
        "c": "3",
    }


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": "b c"}', '"a"'])
def test_overrides_that_do_not_read_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="RAY_OVERRIDE_LABELS"):
        node_labels(None, {"RAY_OVERRIDE_LABELS": text})


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA GeForce RTX 5090", "GeForce-RTX-5090"),
    ],
)
def test_a_gpu_gives_its_node_a_label_and_a_resource(gpus: Path, model: str, kind: str) -> None:
    add_gpu(gpus, model)
    assert node_labels(None, {}) == {"ray.io/accelerator-type": kind}
    amounts = node_resources(
        num_cpus=1,
        num_gpus=None,
        memory_bytes=1,
        object_store_bytes=1,
        custom=None,
        node_ip_address="h",
        is_head=False,
    )
    assert amounts["GPU"] == amounts[f"accelerator_type:{kind}"] == 1


def test_a_driver_that_does_not_say_which_gpus_it_has_gives_no_type(gpus: Path) -> None:
    (gpus / "0000:01:00.0").mkdir()
    assert accelerators.visible_gpus() == 1 and accelerators.gpu_type() == ""

"""What kinds and topologies of TPUs say: how many chips, hosts and workers. Pure."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from ray_mono._private.argument_checks import is_number, plain

DEFAULT_MEGASCALE_PORT = "8081"
VALID_TPU_TYPES = ("v2", "v3", "v4", "v5p", "v5litepod", "v6e", "v7x")
RESOURCE_PER_CHIP_VARIABLE = "RAY_TPU_RESOURCE_PER_CHIP"

_CHIPS_PER_HOST = 4
_ONE_HOST = {
    (version, topology): chips
    for version in ("v5litepod", "v6e")
    for topology, chips in (("1x1", 1), ("2x4", 8))
}
"""Slices that are one host, of so many chips."""
_THREE_DIMENSIONS = ("v4", "v5p", "v7x")
_TWO_CORES = ("v2", "v3", "v4", "v5p", "v7x")
"""Their pod types count cores, of which a chip has two; the others' count chips."""


def get_tpu_version_from_type(accelerator_type: str) -> str:
    """ "v6e" of "TPU-V6E" or "v6e". Raises TypeError or ValueError."""
    text = _text("accelerator_type", accelerator_type).lower().removeprefix("tpu-")
    if text not in VALID_TPU_TYPES:
        raise ValueError(
            f"accelerator_type must be one of {', '.join(map(repr, VALID_TPU_TYPES))}, or that with 'TPU-'"
            f" before it, got {accelerator_type!r}"
        )
    return text


def get_num_chips_from_topology(topology: str) -> int:
    """16 of "4x4". Raises TypeError or ValueError."""
    return math.prod(_dimensions(topology))


def check_topology(topology: str, accelerator_version: str) -> str:
    """The version, which has slices of so many dimensions. Raises TypeError or ValueError."""
    version = get_tpu_version_from_type(accelerator_version)
    num = 3 if version in _THREE_DIMENSIONS else 2
    if len(_dimensions(topology)) != num:
        raise ValueError(f"topology must have {num} dimensions for {accelerator_version!r}, got {topology!r}")
    return version


def get_chips_per_host(topology: str, accelerator_version: str) -> int:
    """Chips of each host of such a slice. Raises TypeError or ValueError."""
    _dimensions(topology)
    kind = _text("accelerator_version", accelerator_version).lower(), topology.strip().lower()
    return _ONE_HOST.get(kind, _CHIPS_PER_HOST)


def infer_tpu_pod_type_from_topology(topology: str, accelerator_type: str) -> str | None:
    """ "v6e-16" of "4x4" and "TPU-V6E"; None without one of them. Raises TypeError or ValueError."""
    if not topology or not accelerator_type:
        return None
    version = get_tpu_version_from_type(accelerator_type)
    chips = get_num_chips_from_topology(topology)
    return f"{version}-{chips * 2 if version in _TWO_CORES else chips}"


def get_tpu_resource_per_chip(tpu_resource_per_chip: int | None = None) -> int:
    """How many of the resource "TPU" a chip is: as given, else by RAY_TPU_RESOURCE_PER_CHIP, else 1.

    Raises TypeError or ValueError.
    """
    if tpu_resource_per_chip is not None:
        return _count("tpu_resource_per_chip", tpu_resource_per_chip)
    text = os.environ.get(RESOURCE_PER_CHIP_VARIABLE)
    if text is not None and not (text.isdecimal() and int(text)):
        raise ValueError(f"{RESOURCE_PER_CHIP_VARIABLE} must be a whole number of at least 1, got {text!r}")
    return 1 if text is None else int(text)


def get_tpu_worker_resources(
    topology: str,
    accelerator_type: str,
    resources_per_worker: Mapping[str, float] | None = None,
    num_slices: int = 1,
    chips_per_vm: int | None = None,
    tpu_resource_per_chip: int | None = None,
) -> tuple[int, dict[str, float]]:
    """How many workers such slices have, and what each of them holds: by default a host's chips, and 1 CPU.

    Raises TypeError or ValueError, also where workers do not fill the slices.
    """
    version = get_tpu_version_from_type(accelerator_type)
    per_chip = get_tpu_resource_per_chip(tpu_resource_per_chip)
    in_slice = get_num_chips_from_topology(topology) * per_chip
    if chips_per_vm is None:
        chips_per_vm = get_chips_per_host(topology, version)
    if resources_per_worker is not None and not isinstance(resources_per_worker, Mapping):
        raise TypeError(
            f"resources_per_worker must be a dict from resources to numbers, got {resources_per_worker!r}"
        )
    resources = dict(resources_per_worker or {})
    resources.setdefault("CPU", 1)
    resources.setdefault("TPU", _count("chips_per_vm", chips_per_vm) * per_chip)
    of_worker = plain(resources["TPU"])
    if not is_number(of_worker):
        raise TypeError(f"resources_per_worker['TPU'] must be a number more than 0, got {of_worker!r}")
    if not of_worker > 0:
        raise ValueError(f"resources_per_worker['TPU'] must be a number more than 0, got {of_worker!r}")
    if in_slice % of_worker:
        raise ValueError(
            f"resources_per_worker['TPU'] must divide the {in_slice} TPUs of a slice {topology}, got"
            f" {of_worker!r}"
        )
    return int(in_slice / of_worker) * _count("num_slices", num_slices), resources


def get_tpu_num_slices_for_workers(
    topology: str,
    accelerator_type: str,
    num_workers: int,
    resources_per_worker: Mapping[str, float] | None = None,
    tpu_resource_per_chip: int | None = None,
) -> int:
    """How many slices so many workers need; 1 for what makes no sense, as in Ray."""
    try:
        in_slice, _ = get_tpu_worker_resources(
            topology, accelerator_type, resources_per_worker, 1, None, tpu_resource_per_chip
        )
        return max(1, math.ceil(num_workers / in_slice))
    except (TypeError, ValueError, ZeroDivisionError):
        return 1


def get_tpu_coordinator_env_vars(
    coordinator_address: str, num_slices: int, slice_id: int, coordinator_port: str = DEFAULT_MEGASCALE_PORT
) -> dict[str, str]:
    """The environment by which programs on several slices find each other."""
    return {
        "MEGASCALE_COORDINATOR_ADDRESS": coordinator_address,
        "MEGASCALE_PORT": coordinator_port,
        "MEGASCALE_NUM_SLICES": str(num_slices),
        "MEGASCALE_SLICE_ID": str(slice_id),
    }


def _text(name: str, given: Any) -> str:
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a string, got {given!r} of type {type(given).__name__}")
    return given


def _count(name: str, given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{name} must be a whole number of at least 1, got {given!r}")
    if given < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {given!r}")
    return given


def _dimensions(topology: Any) -> list[int]:
    sides = _text("topology", topology).strip().lower().split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(
            f"topology must be numbers of chips with 'x' between them, as '4x4', got {topology!r}"
        )
    return [int(side) for side in sides]

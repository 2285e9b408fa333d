"""Whole slices, reserved as placement groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ray_mono._private.state import nodes
from ray_mono._private.worker import get
from ray_mono.exceptions import GetTimeoutError
from ray_mono.types import ObjectRef
from ray_mono.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray_mono.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_mono.util.tpu.nodes import (
    POD_TYPE_LABEL,
    SLICE_NAME_LABEL,
    WORKER_ID_LABEL,
    get_tpu_slice_name_from_node,
)
from ray_mono.util.tpu.topology import (
    check_topology,
    get_chips_per_host,
    get_num_chips_from_topology,
    get_tpu_resource_per_chip,
    get_tpu_worker_resources,
    infer_tpu_pod_type_from_topology,
)

DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S = 100.0
TPU_SUBSLICE_LABEL_PREFIX = "ray.io/tpu-subslice-"


def reserve_tpu_slice(
    topology: str,
    accelerator_type: str,
    timeout_s: float | None = DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
    slice_name: str | None = None,
) -> tuple[str, PlacementGroup]:
    """Takes the head of a slice that nobody has, or of the one named: its name, and the group that holds it.

    Raises TypeError, ValueError, TimeoutError where none came free, and RuntimeError for a head that tells no
    slice's name.
    """
    pod_type = infer_tpu_pod_type_from_topology(topology, accelerator_type)
    if pod_type is None:
        raise ValueError(
            f"topology and accelerator_type must be given, got {topology!r}, {accelerator_type!r}"
        )
    labels = {WORKER_ID_LABEL: "0", POD_TYPE_LABEL: pod_type}
    if slice_name is not None:
        labels[SLICE_NAME_LABEL] = slice_name
    head = placement_group([{f"TPU-{pod_type}-head": 1}], bundle_label_selector=[labels])
    try:
        get(head.ready(), timeout=timeout_s)
        name = _slice_of(head)
    except GetTimeoutError:
        remove_placement_group(head)
        raise TimeoutError(
            f"no slice {pod_type} came free within {timeout_s} s: it takes a node with the resource"
            f" TPU-{pod_type}-head and the labels {labels}"
        ) from None
    except BaseException:
        remove_placement_group(head)
        raise
    return name, head


def _slice_of(head: PlacementGroup) -> str:
    node_id = placement_group_table(head)["bundles_to_node_id"][0]
    for node in nodes():
        if node["NodeID"] == node_id and (name := get_tpu_slice_name_from_node(node)):
            return name
    raise RuntimeError(f"node {node_id} has the head of a slice, and no label {SLICE_NAME_LABEL}")


class SlicePlacementGroup:
    """Whole slices, reserved: their heads, and a bundle for each worker. `shutdown` gives them back."""

    def __init__(
        self,
        topology: str,
        accelerator_version: str,
        resources_per_bundle: Mapping[str, float] | None = None,
        strategy: str = "SPREAD",
        name: str = "",
        lifetime: str | None = None,
        num_slices: int = 1,
        chips_per_vm: int | None = None,
        head_reservation_timeout_s: float | None = DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
        bundle_label_selector: list[dict[str, str]] | None = None,
        pg_per_slice: bool = False,
        tpu_resource_per_chip: int | None = None,
    ) -> None:
        """Waits for the heads; the other hosts need not be there yet (`placement_group.ready()`).

        Args:
            topology: of each slice, as "4x4".
            resources_per_bundle: as resources_per_worker of get_tpu_worker_resources.
            strategy, name, lifetime: of the groups of workers, as placement_group takes them.
            head_reservation_timeout_s: for each head; None waits as long as it takes.
            bundle_label_selector: one for each bundle, beside the slice's name.
            pg_per_slice: a group for each slice, in place of one for all.

        Raises TypeError, ValueError, and as reserve_tpu_slice does.
        """
        version = check_topology(topology, accelerator_version)
        per_chip = get_tpu_resource_per_chip(tpu_resource_per_chip)
        bundles, resources = get_tpu_worker_resources(
            topology, version, resources_per_bundle, num_slices, chips_per_vm, per_chip
        )
        own = [{}] * bundles if bundle_label_selector is None else list(bundle_label_selector)
        if len(own) != bundles:
            raise ValueError(
                f"bundle_label_selector must have a dict for each of the {bundles} bundles, got {len(own)}"
            )
        self.topology = topology
        self.accelerator_version = accelerator_version
        self.num_slices = num_slices
        self.tpu_resource_per_chip = per_chip
        self.chips_per_host = chips_per_vm or get_chips_per_host(topology, version)
        self.devices_per_host = self.chips_per_host * per_chip
        hosts = max(1, get_num_chips_from_topology(topology) // self.chips_per_host)
        self.num_hosts = hosts * num_slices
        self.num_bundles = bundles
        self.bundle_resources = resources
        self.bundle_label_selector: list[dict[str, str]] = own
        self._heads: dict[int, PlacementGroup] = {}
        self._is_per_slice = pg_per_slice
        self._groups: list[PlacementGroup] = []
        try:
            if hosts > 1:
                self._take_heads(version, head_reservation_timeout_s)
            size = bundles // num_slices if pg_per_slice else bundles
            for start in range(0, bundles, size):
                group_name = f"{name}-{start // size}" if name and pg_per_slice else name
                selectors = self.bundle_label_selector[start : start + size]
                self._groups.append(
                    placement_group(
                        [resources] * size, strategy, group_name, lifetime, bundle_label_selector=selectors
                    )
                )
        except BaseException:
            self.shutdown()
            raise

    def _take_heads(self, version: str, timeout_s: float | None) -> None:
        each = self.num_bundles // self.num_slices
        selectors = self.bundle_label_selector
        self.bundle_label_selector = []
        for place in range(self.num_slices):
            name, head = reserve_tpu_slice(self.topology, version, timeout_s)
            self._heads[place] = head
            own = selectors[place * each : (place + 1) * each]
            self.bundle_label_selector += [{**selector, SLICE_NAME_LABEL: name} for selector in own]

    @property
    def head_placement_groups(self) -> list[PlacementGroup]:
        """What holds the heads of the slices, until they are given back."""
        return list(self._heads.values())

    @property
    def slice_placement_group(self) -> PlacementGroup | None:
        """The group of all workers; None after shutdown. Raises ValueError with pg_per_slice=True."""
        if self._is_per_slice:
            raise ValueError("with pg_per_slice=True there is a group for each slice: slice_placement_groups")
        return self._groups[0] if self._groups else None

    placement_group = slice_placement_group

    @property
    def slice_placement_groups(self) -> list[PlacementGroup]:
        """The groups of the slices' workers. Raises ValueError without pg_per_slice=True."""
        if not self._is_per_slice:
            raise ValueError("without pg_per_slice=True there is one group for all: slice_placement_group")
        return list(self._groups)

    def release_head_pgs(self, slice_index: int | None = None) -> None:
        """Gives the heads back, or that of one slice, when the workers' bundles are taken. It may be called
        again.

        Raises ValueError for a slice that there is not.
        """
        if slice_index is not None:
            _check_index(slice_index, self.num_slices)
        for place in [*self._heads] if slice_index is None else [slice_index]:
            if place in self._heads:
                remove_placement_group(self._heads.pop(place))

    def shutdown(self) -> None:
        """Gives all of it back. What runs in it ends."""
        self.release_head_pgs()
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []


def slice_placement_group(
    topology: str,
    accelerator_version: str,
    resources_per_bundle: Mapping[str, float] | None = None,
    num_slices: int = 1,
    chips_per_vm: int | None = None,
    pg_per_slice: bool = False,
    tpu_resource_per_chip: int | None = None,
    **kwargs: Any,
) -> SlicePlacementGroup:
    """As SlicePlacementGroup, whose other arguments `kwargs` may have."""
    return SlicePlacementGroup(
        topology=topology,
        accelerator_version=accelerator_version,
        resources_per_bundle=resources_per_bundle,
        num_slices=num_slices,
        chips_per_vm=chips_per_vm,
        pg_per_slice=pg_per_slice,
        tpu_resource_per_chip=tpu_resource_per_chip,
        **kwargs,
    )


def run_on_slice(
    fn: Any,
    *args: Any,
    topology: str | None = None,
    accelerator_version: str | None = None,
    tpu_slice: SlicePlacementGroup | None = None,
    slice_index: int | None = None,
    num_slices: int = 1,
    chips_per_vm: int | None = None,
    head_reservation_timeout_s: float | None = DEFAULT_TPU_HEAD_RESERVATION_TIMEOUT_S,
    pg_ready_timeout_s: float | None = None,
    **kwargs: Any,
) -> list[ObjectRef[Any]]:
    """Calls a remote function once in each bundle of a slice, with all of its TPUs: a reference for each.

    Args:
        tpu_slice: where; None reserves one of that topology and version, which goes with the driver.
        slice_index: on this one of its slices only, where it has a group for each.
        pg_ready_timeout_s: how long the workers' bundles may take; None for as long as it takes.

    Raises TypeError, ValueError, TimeoutError where the bundles were not taken in time, and as
    SlicePlacementGroup does.
    """
    if not hasattr(fn, "options"):
        raise TypeError(f"fn must be a remote function, got {fn!r} of type {type(fn).__name__}")
    if tpu_slice is None:
        if slice_index is not None:
            raise ValueError(f"slice_index={slice_index!r} goes with tpu_slice only")
        if not topology or not accelerator_version:
            raise ValueError("give topology and accelerator_version, or tpu_slice")
    elif not isinstance(tpu_slice, SlicePlacementGroup):
        raise TypeError(f"tpu_slice must be a SlicePlacementGroup or None, got {tpu_slice!r}")
    used = tpu_slice or SlicePlacementGroup(
        str(topology),
        str(accelerator_version),
        num_slices=num_slices,
        chips_per_vm=chips_per_vm,
        head_reservation_timeout_s=head_reservation_timeout_s,
    )
    try:
        groups = _groups_of(used, slice_index)
        for group in groups:
            if not group.wait(pg_ready_timeout_s):
                raise TimeoutError(
                    f"the hosts of the slice were not free within {pg_ready_timeout_s} s"
                    f" (pg_ready_timeout_s): {used.bundle_resources} on each"
                )
    except BaseException:
        if tpu_slice is None:
            used.shutdown()
        raise
    if tpu_slice is None:
        used.release_head_pgs()
    return [
        fn.options(
            num_cpus=0,
            resources={"TPU": used.bundle_resources["TPU"]},
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
        ).remote(*args, **kwargs)
        for group in groups
        for index in range(group.bundle_count)
    ]


def _groups_of(used: SlicePlacementGroup, slice_index: int | None) -> list[PlacementGroup]:
    if not used._groups:
        raise ValueError("tpu_slice was shut down")
    if slice_index is None:
        return used._groups
    if not used._is_per_slice:
        raise ValueError("slice_index goes with a tpu_slice that was made with pg_per_slice=True only")
    _check_index(slice_index, used.num_slices)
    return [used._groups[slice_index]]


def _check_index(slice_index: Any, num_slices: int) -> None:
    if slice_index not in range(num_slices):
        raise ValueError(f"slice_index must be from 0 to {num_slices - 1}, got {slice_index!r}")


def subslice_placement_group(*args: Any, **kwargs: Any) -> NoReturn:
    """Raises NotImplementedError: where the chips of a slice lie only its hardware tells."""
    raise NotImplementedError(
        "subslice_placement_group() needs TPUs: which hosts of a slice are neighbours only libtpu tells,"
        " which nothing here asks. Take a whole slice (slice_placement_group), or hosts by a label of your"
        " own (placement_group with bundle_label_selector)"
    )


def init_jax_profiler(port: int | None = None) -> NoReturn:
    """Raises NotImplementedError: it is for the dashboard, which is not here."""
    raise NotImplementedError(
        "init_jax_profiler() tells the dashboard where to look, and there is none: call"
        " jax.profiler.start_server yourself"
    )

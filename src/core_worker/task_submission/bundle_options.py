"""What tasks and actors ask for that run in placement groups: the one place where their resources get the
names that these have in bundles (bundle_resources.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ray_mono.common.scheduling import bundle_resources
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.context import InGroup
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.protobuf import common_pb2

Options = TypeVar("Options", TaskOptions, ActorOptions)


def in_its_bundle(options: Options, what: str) -> Options:
    """The options with the names of their group; as they are where they name no group. what: the function or
    class, for people.

    Raises ValueError where the group has no such bundle, and where what is asked for fits into none of those
    that are allowed, so that it would wait for ever. A group of which nothing is known is not checked.
    """
    if options.strategy is None or not options.strategy.HasField("placement_group"):
        return options
    group_id = options.strategy.placement_group.placement_group_id
    index = options.strategy.placement_group.bundle_index
    needed = options.placement_resources if isinstance(options, ActorOptions) else options.resources
    if options.bundles:
        _check(needed, options.bundles, group_id, index, what)
    held = bundle_resources.asked_for_in(options.resources, group_id, index)
    if isinstance(options, ActorOptions):
        needed = bundle_resources.asked_for_in(needed, group_id, index)
        return replace(options, resources=held, placement_resources=needed)  # type: ignore[call-arg]
    return replace(options, resources=held)


def handed_down(
    options: Options, group: InGroup, bundles_of: Callable[[bytes], tuple[ResourceSet, ...]]
) -> Options:
    """The options as a task or actor that runs in this group hands them down to what it submits.

    bundles_of(group id): what its bundles hold.
    """
    if not is_handed_down(options, group):
        return options
    strategy = common_pb2.SchedulingStrategy()
    if options.strategy is not None:
        strategy.CopyFrom(options.strategy)
    place = common_pb2.PlacementGroupStrategy(capture_child_tasks=True)
    own = strategy.placement_group
    if own.placement_group_id:  # it has one of its own, and does not say whether it captures
        own.MergeFrom(place)
        return replace(options, strategy=strategy)
    place.MergeFrom(
        common_pb2.PlacementGroupStrategy(
            placement_group_id=group.group_id, bundle_index=bundle_resources.ANY_BUNDLE
        )
    )
    own.CopyFrom(place)
    return replace(options, strategy=strategy, bundles=bundles_of(group.group_id))


def is_handed_down(options: Options, group: InGroup) -> bool:
    """Whether who runs in this group has a say about what it submits with these options."""
    return options.inherits_group and (group.captures or (options.joins_group and bool(group.group_id)))


def _check(
    needed: ResourceSet, bundles: Sequence[ResourceSet], group_id: bytes, index: int, what: str
) -> None:
    last = len(bundles) - 1
    if not bundle_resources.ANY_BUNDLE <= index <= last:
        raise ValueError(
            f"placement_group_bundle_index must be -1 or a bundle's, 0 to {last}, of placement group"
            f" {group_id.hex()}, got {index}"
        )
    allowed = bundles if index == bundle_resources.ANY_BUNDLE else [bundles[index]]
    if not any(needed.fits_in(bundle) for bundle in allowed):
        told = ", ".join(map(str, allowed))
        if index == bundle_resources.ANY_BUNDLE:
            where = f"cannot fit into any bundle of placement group {group_id.hex()}, which has {told}"
        else:
            where = f"cannot fit into bundle {index} of placement group {group_id.hex()}, which is {told}"
        raise ValueError(f"{what} needs {needed}: that {where}")

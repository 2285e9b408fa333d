"""What a bundle of a placement group is in the books of its node: resources with names of their own, as in
Ray.

Bundle 1 of group G, of {CPU: 2}, takes 2 CPU of its node and gives it, for as long as it lasts,

    CPU_group_1_G     2         what asks for bundle 1
    CPU_group_G       2 more    what asks for any bundle of G, and for bundle 1: of all that are on the node
    bundle_group_1_G  1000      so that work which needs no resources asks for something as well
    bundle_group_G    1000 more

Work in bundle 1 that needs {CPU: 1} asks for {CPU_group_1_G: 1, CPU_group_G: 1, bundle_group_1_G: 0.001,
bundle_group_G: 0.001}; work in any bundle leaves out those of bundle 1. So leases, what nodes report, and
`available_resources()` need to know nothing of groups.
"""

from __future__ import annotations

import re

from ray_mono.common.scheduling.resources import GROUP_MARK, SCALE, ResourceSet

BUNDLE = "bundle"
BUNDLE_UNITS = 1000
ANY_BUNDLE = -1
_SHARE = SCALE // 1000
"""Of a bundle, for each that runs in it."""
_NAME = re.compile(r"(.+)_group_(?:([0-9]+)_)?([0-9a-f]{36})", re.DOTALL)


def name_in(name: str, group_id: bytes, index: int = ANY_BUNDLE) -> str:
    """Of a resource in one bundle of a group, or in any."""
    bundle = "" if index == ANY_BUNDLE else f"{index}_"
    return f"{name}{GROUP_MARK}{bundle}{group_id.hex()}"


def plain_name(name: str) -> str:
    """Of a resource, also in a group: "CPU" of "CPU_group_1_G"."""
    match = _NAME.fullmatch(name) if GROUP_MARK in name else None
    return name if match is None else match[1]


def given_by(bundle: ResourceSet, group_id: bytes, index: int) -> ResourceSet:
    """What a node has more of while it has this bundle."""
    return _both({**dict(bundle.items()), BUNDLE: BUNDLE_UNITS * SCALE}, group_id, index)


def asked_for_in(required: ResourceSet, group_id: bytes, index: int) -> ResourceSet:
    """What work that needs this asks for in a bundle of a group. index: ANY_BUNDLE for any."""
    return _both({**dict(required.items()), BUNDLE: _SHARE}, group_id, index)


def is_in_group(resources: ResourceSet) -> bool:
    """Whether any of this is of a group: then all that one piece of work asks for is."""
    return any(plain_name(name) != name for name, _ in resources.items())


def plain(resources: ResourceSet) -> ResourceSet:
    """What of this is real: in a group it has one name or two, and its share of a bundle is none."""
    amounts: dict[str, int] = {}
    for name, amount in resources.items():
        own = plain_name(name)
        if own == name or own != BUNDLE:
            amounts[own] = amount
    return ResourceSet(amounts)


def named(resources: ResourceSet, *plain_names: str) -> ResourceSet:
    """Those with these names, in groups as well."""
    return ResourceSet(
        {name: amount for name, amount in resources.items() if plain_name(name) in plain_names}
    )


def _both(amounts: dict[str, int], group_id: bytes, index: int) -> ResourceSet:
    indices = {index, ANY_BUNDLE}
    return ResourceSet(
        {name_in(name, group_id, each): amount for name, amount in amounts.items() for each in indices}
    )

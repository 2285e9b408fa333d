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

Work in any bundle sits in one of them all the same: it gets what it needs from a bundle that has all of it,
and holds the names of that one (`seats`). Who places work asks `fits`; who tells what is missing, `nearest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ray_mono.common.scheduling.resources import GROUP_MARK, SCALE, ResourceSet

BUNDLE = "bundle"
BUNDLE_UNITS = 1000
ANY_BUNDLE = -1
_SHARE = SCALE // 1000
"""Of a bundle, for each that runs in it."""
_COUNTED = f"{BUNDLE}{GROUP_MARK}"
_NAME = re.compile(r"(.+)_group_(?:([0-9]+)_)?([0-9a-f]{36})", re.DOTALL)


def name_in(name: str, group_id: bytes, index: int = ANY_BUNDLE) -> str:
    """Of a resource in one bundle of a group, or in any."""
    bundle = "" if index == ANY_BUNDLE else f"{index}_"
    return f"{name}{GROUP_MARK}{bundle}{group_id.hex()}"


def plain_name(name: str) -> str:
    """Of a resource, also in a group: "CPU" of "CPU_group_1_G"."""
    match = _NAME.fullmatch(name) if GROUP_MARK in name else None
    return name if match is None else match[1]


def bundle_names(resources: ResourceSet) -> set[str]:
    """Those of them that bundles are counted by."""
    return {name for name, _ in resources.items() if name.startswith(_COUNTED)}


def given_by(bundle: ResourceSet, group_id: bytes, index: int) -> ResourceSet:
    """What a node has more of while it has this bundle."""
    return _both({**dict(bundle.items()), BUNDLE: BUNDLE_UNITS * SCALE}, group_id, index)


def asked_for_in(required: ResourceSet, group_id: bytes, index: int) -> ResourceSet:
    """What work that needs this asks for in a bundle of a group. index: ANY_BUNDLE for any."""
    return _both({**dict(required.items()), BUNDLE: _SHARE}, group_id, index)


def is_in_group(resources: ResourceSet) -> bool:
    """Whether any of this is of a group: then all that one piece of work asks for is."""
    return any(plain_name(name) != name for name, _ in resources.items())


@lru_cache(maxsize=1000)
def group_of_any(required: ResourceSet) -> bytes | None:
    """Of work in any bundle: the group's id; None for other work."""
    found: bytes | None = None
    for name, _ in required.items():
        match = _NAME.fullmatch(name) if GROUP_MARK in name else None
        if match is not None and match[2] is not None:
            return None
        found = found if match is None else bytes.fromhex(match[3])
    return found


@lru_cache(maxsize=1000)
def in_bundle(required: ResourceSet, group_id: bytes, index: int) -> ResourceSet:
    """Of work in any bundle of a group: what it holds in this one."""
    marks = {name: amount for name, amount in required.items() if plain_name(name) == BUNDLE}
    own = {name_in(plain_name(name), group_id, index): amount for name, amount in required.items()}
    return ResourceSet({**dict(required.items()), **own, **marks})


def is_in_any(required: ResourceSet) -> bool:
    """Whether it is what work asks for that may run in any bundle of its group."""
    return group_of_any(required) is not None


def seats(required: ResourceSet, place: ResourceSet) -> Iterator[ResourceSet]:
    """What work holds that may run in any bundle of its group: in each one that is in this place, in the
    order of their indices. Of other work: what it needs."""
    group_id = group_of_any(required)
    if group_id is None:
        yield required
        return
    end = f"_{group_id.hex()}"
    indices = [name[len(_COUNTED) : -len(end)] for name in bundle_names(place) if name.endswith(end)]
    for index in sorted(int(index) for index in indices if index):
        yield in_bundle(required, group_id, index)


def fits(required: ResourceSet, place: ResourceSet) -> bool:
    """Whether the place has it, for work in any bundle in one of them."""
    if not required.fits_in(place):
        return False
    return not is_in_any(required) or any(seat.fits_in(place) for seat in seats(required, place))


def is_scattered(required: ResourceSet, nodes_free: Iterable[ResourceSet]) -> bool:
    """Of work in any bundle: somewhere there is as much, and in no bundle."""
    places = [free for free in nodes_free if required.fits_in(free)]
    return bool(places) and not any(fits(required, free) for free in places)


def nearest(required: ResourceSet, place: ResourceSet, free: ResourceSet) -> ResourceSet:
    """What work would hold in the place, for work in any bundle in the one that lacks least. Where the place
    has none of them, and for other work: what it needs."""
    return min(
        seats(required, place),
        key=lambda seat: sum(missing for _, missing in seat.missing_from(free).items()),
        default=required,
    )


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

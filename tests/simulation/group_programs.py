"""Placement groups of a simulation: drivers make them, run tasks in them, and remove them at any time, or
leave them to the end of their job.

    used       the head's node can hold it: it is awaited without an end, and its tasks, too
    tried      it may be larger than the cluster: it is awaited for a while, and removed at some time
    at once    it is removed before anybody knows whether it has a place
    left       it ends with its job; it holds what nobody else needs

A driver that waits for a group without an end holds no other, but those that it has left: so all of them end.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from ray_mono.common.exceptions import RaySystemError, TaskPlacementGroupRemoved
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import ANY_BUNDLE
from ray_mono.core_worker.options import ActorOptions, TaskOptions
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError
from tests.simulation.site import Site, site

Units = dict[str, float]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
SMALL: Units = {"CPU": 0.5}
"""The head's node has at least two of these."""
ABUNDANT = "G"
"""Every node has so much of it that nobody waits for it."""
BUNDLES: tuple[Units, ...] = (
    SMALL,
    {"CPU": 1},
    {"A": 0.5},
    {"CPU": 1, "A": 1},
    {"CPU": 3},
    {ABUNDANT: 1},
)
BUNDLES_OF: dict[str, tuple[tuple[Units, ...], int]] = {
    "used": ((SMALL,), 2),
    "tried": (BUNDLES, 4),
    "at once": (BUNDLES, 4),
    "left": (({ABUNDANT: 1},), 4),
}
"""By what becomes of a group: what its bundles may be, and how many there are at most."""
RETRIES = 4
HELD_S = 5.0
"""At most, without a task in it."""


@dataclass(frozen=True)
class GroupScript:
    """What one driver does with its groups, one after another."""

    seed: int
    num_groups: int


@dataclass(frozen=True)
class MemberScript:
    """A task in a group."""

    group_id: bytes
    compute_s: float = 0.01
    num_children: int = 0
    """Tasks that it submits and waits for; they run in its group, which captures them."""
    has_actor: bool = False
    """It makes an actor, calls it and waits; it runs in the group, too."""
    cancelled_after_s: float = -1.0
    is_cancelled_by_force: bool = False

    @property
    def name(self) -> str:
        return "member"


class Resident:
    """An actor in a group."""

    def call(self) -> Any:
        here = site()
        return here.core.context.task_id(), here.core.node_id.hex()


def call_resident(here: Site, group_id: bytes, **options: Any) -> None:
    """Makes one, calls it, waits, and lets go of it."""
    nothing = ResourceSet()
    given = ActorOptions(class_name="Resident", resources=nothing, placement_resources=nothing, **options)
    held = here.core.create_actor(here.export_class(Resident), given, [])
    [ref] = here.core.submit_actor_task(held, here.core.method_template("call", "Resident"), [])
    here.judge(here.journal.groups.submitted, ref.task_id().binary(), group_id)
    here.called(ref)
    here.get(ref)


def run_member(number: int) -> Any:
    """A MemberScript. Returns its id, and the node on which it runs, in hex."""
    here = site()
    script: MemberScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        here.sleep(script.compute_s)
        options = TaskOptions(
            resources=ResourceSet.from_units(SMALL), max_retries=RETRIES, inherits_group=True
        )
        child = replace(script, num_children=0, has_actor=False, cancelled_after_s=-1.0)
        children = [here.submit(run_member, child, options=options) for _ in range(script.num_children)]
        for ref in children:
            here.judge(here.journal.groups.submitted, ref.task_id().binary(), script.group_id)
        if script.has_actor:
            call_resident(here, script.group_id, inherits_group=True)
        while children:
            here.result(children.pop(0))
    return task.task_id, here.core.node_id.hex()


def play_groups(here: Site, script: GroupScript) -> None:
    """A driver's. One that has lost the GCS makes none."""
    rng = random.Random(script.seed)
    try:
        for _ in range(script.num_groups):
            kind = rng.choice(("used", "used", "tried", "at once", "left"))
            group = _Group(here, rng, kind)
            if kind in ("used", "left"):
                group.use(is_left=kind == "left")
            elif kind == "tried":
                group.attempt()
            else:
                group.remove_at_once()
    except (RpcError, RaySystemError) as error:
        here.judge_error(b"", error)


class _Group:
    """One, from its creation on."""

    def __init__(self, here: Site, rng: random.Random, kind: str) -> None:
        self._here, self._rng = here, rng
        self._groups, self._journal = here.core.placement_groups, here.journal.groups
        strategy = rng.choice(STRATEGIES if kind == "tried" else STRATEGIES[:3])
        choices, most = BUNDLES_OF[kind]
        units = [rng.choice(choices) for _ in range(rng.randint(1, most))]
        self._bundles = tuple(map(ResourceSet.from_units, units))
        wanted = common_pb2.PlacementGroupInfo(
            strategy=common_pb2.PlacementGroupInfo.Strategy.Value(strategy),
            bundles=[common_pb2.Bundle(resources=each.to_proto()) for each in self._bundles],
        )
        self._id = self._groups.create(wanted)
        here.judge(self._journal.made, self._id, strategy, self._bundles)
        # References of tasks, and the bundles that they were given.
        self._members: list[tuple[Any, int]] = []

    def use(self, is_left: bool) -> None:
        self._submit_maybe()
        if self._is_created(None):
            self._look_at_table()
        self._submit_maybe()
        self._take_all()
        if not is_left:
            self._here.sleep(self._rng.uniform(0.0, HELD_S))
            self._remove()

    def attempt(self) -> None:
        self._submit_maybe()
        if self._is_created(self._rng.choice((0.0, 0.5, 3.0))):
            self._look_at_table()
            self._submit_maybe()
            self._here.sleep(self._rng.choice((0.0, 0.01, 0.5)))
        self._remove()
        self._submit_maybe()
        self._take_all()

    def remove_at_once(self) -> None:
        self._submit_maybe()
        self._remove()
        self._submit_maybe()
        self._take_all()

    # ---- steps

    def _is_created(self, timeout_s: float | None) -> bool:
        """By wait(), or by ready(). False also where it is removed."""
        core = self._here.core
        try:
            if self._rng.random() < 0.5:
                return self._groups.wait(self._id, timeout_s)
            ready = self._groups.ready(self._id, (self._id,))
            core.wait([ready], 1, timeout_s, False)
            if timeout_s is None:
                core.get([ready], None)
            return self._groups.wait(self._id, 0.0)
        except (ValueError, TaskPlacementGroupRemoved):
            self._here.judge(self._journal.removed_is_told, self._id, self._here.job_id)
            return False

    def _look_at_table(self) -> None:
        row = self._groups.row(self._id)
        if row is not None and row.state == common_pb2.PLACEMENT_GROUP_CREATED:
            places = [bundle.node_id for bundle in row.bundles]
            self._here.judge(self._journal.told, self._id, places)

    def _submit_maybe(self) -> None:
        """Tasks, in a bundle or in any."""
        here, rng = self._here, self._rng
        for _ in range(rng.choice((0, 0, 1, 3))):
            index = rng.choice((ANY_BUNDLE, rng.randrange(len(self._bundles))))
            # Any bundle may have to be this one.
            whole = self._bundles[index if index >= 0 else 0]
            half = ResourceSet({name: amount // 2 for name, amount in whole.items()})
            needs = rng.choice((whole, half, ResourceSet()))
            small = ResourceSet.from_units(SMALL)
            has_children = all(small.fits_in(each) for each in self._bundles) and rng.random() < 0.3
            script = MemberScript(
                self._id,
                rng.choice((0.0, 0.01, 0.2, 10.0)),
                num_children=rng.randint(1, 2) if has_children else 0,
                has_actor=has_children and rng.random() < 0.5,
                cancelled_after_s=rng.choice((0.0, 0.01, 0.2)) if rng.random() < 0.1 else -1.0,
            )
            place = common_pb2.PlacementGroupStrategy(
                placement_group_id=self._id, bundle_index=index, capture_child_tasks=has_children
            )
            options = TaskOptions(
                resources=needs,
                max_retries=RETRIES,
                strategy=common_pb2.SchedulingStrategy(placement_group=place),
                bundles=self._bundles,
            )
            ref = here.submit(run_member, script, options=options)
            here.judge(self._journal.submitted, ref.task_id().binary(), self._id)
            self._members.append((ref, index))

    def _take_all(self) -> None:
        here = self._here
        if self._rng.random() < 0.2:
            place = common_pb2.PlacementGroupStrategy(placement_group_id=self._id, bundle_index=ANY_BUNDLE)
            strategy = common_pb2.SchedulingStrategy(placement_group=place)
            call_resident(here, self._id, strategy=strategy, bundles=self._bundles)
        while self._members:
            ref, index = self._members.pop(0)
            value = here.result(ref)
            if not isinstance(value, BaseException):
                # Groups stay where they are as long as their nodes do.
                stays = here.journal.is_harmless and not here.journal.num_taken_away
                now_s, node_id = here.world.clock.time_s(), bytes.fromhex(value[1])
                here.judge(self._journal.done, value[0], index, node_id, now_s, stays)

    def _remove(self) -> None:
        for _ in range(self._rng.choice((1, 1, 2))):
            self._here.judge(self._journal.removed, self._id, self._here.world.clock.time_s())
            self._groups.remove(self._id)

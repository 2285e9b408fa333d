"""Why something waits."""

from __future__ import annotations

from typing import Any, overload

from ray_mono._private.driver.auto_init import connected_core
from ray_mono.actor import ActorHandle
from ray_mono.common.explanation import Explanation, WaitingOverview
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import ObjectRefGenerator
from ray_mono.util.placement_group import PlacementGroup


@overload
def explain(ref_or_actor_or_group: None = None) -> WaitingOverview: ...
@overload
def explain(ref_or_actor_or_group: Any) -> Explanation: ...


def explain(ref_or_actor_or_group: Any = None) -> Explanation | WaitingOverview:
    """Why an object is not there, an actor does not run, or a placement group has no place, and what would
    help. Without an argument, all that waits in the cluster.

    It asks the processes that know, one after another, each for two seconds at most, and of what seems to be
    stuck again after 0.3 s. What it tells is of these moments.

    Args:
        ref_or_actor_or_group: an ObjectRef, an ObjectRefGenerator, an ActorHandle or a PlacementGroup. None:
            calls, actors and placement groups that wait, of all jobs, those that are alike together.

    Returns:
        An Explanation: `str()` is the sentence; `code` is stable (RESOURCES, INFEASIBLE, DEPENDENCIES, …, and
        DEADLOCK for what waits for itself); `outlook` is MOVES (what runs will end it), OPEN (it depends on
        what somebody may do) or STUCK; `links` is the way from what was asked to where it ends. Without an
        argument a WaitingOverview: `by_code` has groups of (count, example) by their codes.

    Raises:
        TypeError: for anything else.
    """
    asked = ref_or_actor_or_group
    core = connected_core()
    if asked is None:
        return core.explain_all()
    if isinstance(asked, ObjectRef):
        return core.explain("object", asked.binary())
    if isinstance(asked, ObjectRefGenerator):
        return core.explain("object", asked._id)
    if isinstance(asked, ActorHandle):
        return core.explain("actor", asked._ray_state.actor_id)
    if isinstance(asked, PlacementGroup):
        return core.explain("placement_group", asked.id.binary())
    raise TypeError(
        "ref_or_actor_or_group must be an ObjectRef, an ObjectRefGenerator, an ActorHandle or a "
        f"PlacementGroup, got {asked!r}"
    )

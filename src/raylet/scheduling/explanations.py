"""Why a lease waits, in one sentence each: for warnings to drivers, and for DumpState. Pure text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, BUNDLE, is_scattered, name_in, plain
from ray_mono.common.scheduling.labels import LabelSelector, any_selects, told, told_values
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.policy import drained, feasible, why_never_there
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy
from ray_mono.raylet.scheduling.leases import Shape
from ray_mono.raylet.scheduling.scheduling_policy import Decision, Infeasible, NoSuchNode, Wait

HINT = ". It waits until "
"""Where a sentence says what would help."""
NODES_SHOWN_MAX = 4
"""Of those that could hold a lease: others are counted."""


def queued(
    task_name: str,
    shape: Shape,
    decision: Decision,
    here: NodeSnapshot,
    others: Sequence[NodeSnapshot],
    is_overdrawn: bool,
    keeps: bool,
    is_in_parts: bool,
) -> str:
    """Why a lease is still queued. keeps: what is free here, for another. is_in_parts: so are accelerators
    that are free here."""
    name = task_name or "A task"
    if shape.strategy.group_id:
        return in_group(name, shape.required, shape.strategy, [here, *others])
    if isinstance(decision, Infeasible):
        return infeasible(name, shape.required, shape.strategy, [here, *others])
    if isinstance(decision, NoSuchNode):
        return no_such_node(name, shape.strategy.node_id, decision.is_gone)
    able = [here]
    if isinstance(decision, Wait):
        able = [node for node in (here, *others) if node.node_id in decision.feasible_node_ids]
    is_here = here in able
    return waiting(
        shape.required,
        shape.strategy.selectors,
        able,
        is_overdrawn and is_here,
        keeps and is_here,
        is_in_parts and is_here,
    )


def infeasible(
    task_name: str, required: ResourceSet, strategy: Strategy, nodes: Sequence[NodeSnapshot]
) -> str:
    """No node that the strategy allows could ever hold it. `nodes`: all of them, this one included."""
    alive = [node for node in nodes if node.takes_work]
    which = ""
    if strategy.selectors:
        alive = [node for node in alive if any_selects(strategy.selectors, node.labels)]
        if not alive:
            return no_such_labels(task_name, required, strategy.selectors, nodes)
        which = f" with {told(strategy.selectors)}"
    together = ResourceSet()
    for node in alive:
        together = together + node.total
    best = best_node(required, alive)
    more = ""
    if best is not None and len(alive) > 1:
        more = f"; the nearest, node {best.node_id.hex()[:8]}, has {best.total.beside(required)}"
    more += _but_drained(required, nodes, strategy.selectors)
    nodes_text = "its only node has" if len(alive) == 1 else f"its {len(alive)} nodes together have"
    return (
        f"{task_name} needs {required}, and no node of the cluster{which} has that much: {nodes_text} "
        f"{together.beside(required)}{more}{HINT}a node with {required} joins: start one, ask for less, or "
        "cancel it."
    )


def _but_drained(
    required: ResourceSet, nodes: Iterable[NodeSnapshot], selectors: Sequence[LabelSelector]
) -> str:
    for node in drained(required, nodes, selectors):
        return f"; node {node.node_id.hex()[:8]} has it, and is drained"
    return ""


def without_hint(text: str) -> str:
    """Why, and no more: a clause."""
    return text.partition(HINT)[0].rstrip(".")


def in_group(task_name: str, required: ResourceSet, strategy: Strategy, nodes: Sequence[NodeSnapshot]) -> str:
    """It waits for what a placement group has, or is to have. `nodes`: all of them."""
    text = f"{task_name} needs {_needed_in(required, strategy)}"
    if not is_placed(strategy, nodes):
        return f"{text}, which is not placed yet"
    if strategy.selectors:
        nodes = [node for node in nodes if any_selects(strategy.selectors, node.labels)]
        text += f" on a node with {told(strategy.selectors)}"
        if not is_placed(strategy, nodes):
            return f"{text}, where that is not placed"
    able = feasible(required, nodes)
    if is_scattered(required, (node.available for node in able)):
        return f"{text}, of which no bundle has so much free"
    if able:
        return f"{text}, which is in use there"
    for node in drained(required, nodes):
        return (
            f"{text}, on node {node.node_id.hex()[:8]}, which is drained: it has a place when that has ended"
        )
    if strategy.bundle_index != ANY_BUNDLE:
        return f"{text}, which has not so much"
    return f"{text}, which has no bundle with so much"


def is_placed(strategy: Strategy, nodes: Iterable[NodeSnapshot]) -> bool:
    """Whether some node has the bundle of its placement group, or any."""
    bundle = name_in(BUNDLE, strategy.group_id, strategy.bundle_index)
    return any(node.is_alive and node.total.get(bundle) for node in nodes)


def _needed_in(required: ResourceSet, strategy: Strategy) -> str:
    """What is asked for in a placement group, under the names that people know."""
    bundle = "" if strategy.bundle_index == ANY_BUNDLE else f"bundle {strategy.bundle_index} of "
    return f"{plain(required) or 'a place'} in {bundle}placement group {strategy.group_id.hex()[:8]}…"


def held_by_actors_in_group(
    task_name: str, required: ResourceSet, strategy: Strategy, waited_s: float
) -> str:
    """It fits its placement group, but not beside the actors that live there."""
    return (
        f"{task_name} has waited {waited_s:.0f} s for {_needed_in(required, strategy)}, where living actors "
        "hold it until they end. Make larger bundles, or give the actors less."
    )


def group_removed(group_id: bytes) -> str:
    return f"placement group {group_id.hex()} was removed"


def not_here(shape: Shape, node_id: bytes, available: ResourceSet) -> str:
    """It was asked for here or not at all."""
    node = f"node {node_id.hex()[:8]}"
    if shape.strategy.group_id:
        return f"it needs {_needed_in(shape.required, shape.strategy)}, and {node} has not that free there"
    return f"it needs {shape.required}, {node} has {available.beside(shape.required)} free"


def kept_out(shape: Shape, node_id: bytes) -> str:
    """It was asked for here, and may be had elsewhere sooner."""
    return f"actors and groups that were there first hold {shape.required} of node {node_id.hex()[:8]}"


def no_such_labels(
    task_name: str,
    required: ResourceSet,
    selectors: Sequence[LabelSelector],
    nodes: Sequence[NodeSnapshot],
) -> str:
    """No node that takes work has the labels."""
    have = told_values(selectors, [node.labels for node in nodes if node.takes_work])
    return (
        f"{task_name} has to run on a node with {told(selectors)}, and no node of the cluster has such "
        f"labels (there {have}){_but_drained(required, nodes, selectors)}{HINT}one joins: start "
        "it with --labels, ask for others, or cancel it."
    )


def held_by_actors(
    task_name: str, required: ResourceSet, held: ResourceSet, total: ResourceSet, waited_s: float
) -> str:
    """It fits this node, but not beside the actors that live there."""
    return (
        f"{task_name} has waited {waited_s:.0f} s for {required}: this node has {total.beside(required)}, "
        f"of which living actors hold {held.beside(required)} until they end. "
        "Add a node, or give the actors less."
    )


def waiting(
    required: ResourceSet,
    selectors: Sequence[LabelSelector],
    able: Sequence[NodeSnapshot],
    is_overdrawn: bool,
    keeps: bool,
    is_in_parts: bool,
) -> str:
    """It fits some node, and none has it free now. able: those that it fits. Of the first of them,
    is_overdrawn: it is; keeps: it keeps what is free, for another; is_in_parts: its accelerators are free in
    parts."""
    if is_overdrawn:
        free = able[0].available
        return f"tasks that resumed after a wait hold more than there is (free: {free}): nothing is granted"
    nodes = [
        f"node {node.node_id.hex()[:8]} has {node.available.beside(required)} free of "
        f"{node.total.beside(required)}"
        for node in able[:NODES_SHOWN_MAX]
    ]
    if is_in_parts:
        nodes[0] += ", in parts of accelerators"
    elif keeps and required.fits_in(able[0].available):
        nodes[0] += ", and keeps that for what has waited longer"
    more = len(able) - NODES_SHOWN_MAX
    others = f", and {more} more nodes have it not free" if more > 0 else ""
    where = f" on a node with {told(selectors)}" if selectors else ""
    return f"needs {required}{where}; {', '.join(nodes)}{others}"


def no_such_node(task_name: str, node_id: bytes, is_gone: bool) -> str:
    state = "is dead, or drained" if is_gone else "is not in this cluster"
    name = task_name or "A task"
    return f"{name} has to run on node {node_id.hex()}, which {state} (node affinity without soft=True)."


def never_there(task_name: str, required: ResourceSet, strategy: Strategy, node: NodeSnapshot) -> str:
    return f"{task_name or 'A task'} {why_never_there(required, strategy, node)}."


def node_is_drained(node_id: bytes) -> str:
    return f"node {node_id.hex()[:8]} is drained"


def not_free(task_name: str, required: ResourceSet, node_id: bytes) -> str:
    return (
        f"{task_name or 'A task'} has to run on node {node_id.hex()}, which has not {required} free now (node"
        " affinity with _fail_on_unavailable=True)."
    )


def no_worker(num_starting: int, trouble: str) -> str:
    more = f"; {trouble}" if trouble else ""
    return f"has its resources and waits for a worker process ({num_starting} starting{more})"


def workers_fail(trouble: str, log_dir: str) -> str:
    return (
        f"Workers do not start, so tasks and actors wait: {trouble}. "
        f"The worker's own log in {log_dir}, if it has one, says more."
    )


def best_node(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> NodeSnapshot | None:
    """The living node whose total comes closest to `required`."""

    def distance(node: NodeSnapshot) -> tuple[float, bytes]:
        missing = required.missing_from(node.total)
        return sum(amount / max(required.get(name), 1) for name, amount in missing.items()), node.node_id

    return min((node for node in nodes if node.is_alive), key=distance, default=None)

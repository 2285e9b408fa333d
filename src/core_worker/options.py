"""Options of a function, class or method, as the API gives them to the core worker. They are validated and
prepared once, and used for every call."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

ONE_CPU = ResourceSet.from_units({"CPU": 1})
NOTHING = ResourceSet()
INLINE_BYTES_MAX = 100 << 10
"""Values up to this size travel in messages and live in their owner's memory. It is Ray's
max_direct_call_object_size."""
STREAMING_RETURNS = -1
DYNAMIC_RETURNS = -2
"""num_returns of generators: the caller gets items one by one as they are made, or all of them at the end."""


@dataclass(frozen=True)
class TaskOptions:
    """Options of a remote function. The defaults are Ray's."""

    name: str = ""
    num_returns: int = 1
    """A count, STREAMING_RETURNS or DYNAMIC_RETURNS."""
    generator_backpressure_num_objects: int = 0
    """How many items of a generator may wait to be taken; 0: any number."""
    resources: ResourceSet = ONE_CPU
    max_retries: int = 3
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    max_calls: int = 0
    """After so many calls of the function its worker ends; 0: never."""
    hides_events: bool = False
    """The timeline does not show its calls."""
    strategy: common_pb2.SchedulingStrategy | None = None
    bundles: tuple[ResourceSet, ...] = ()
    """Of the placement group in `strategy`, as far as they are known; `resources` has plain names."""
    inherits_group: bool = False
    """Nothing was said of a place, or not whether its children are captured: a caller that captures says
    it."""
    joins_group: bool = False
    """It captures, and named no group: it runs in its caller's, also where that captures nothing."""
    runtime_env: str = ""
    """JSON; empty: the job's own."""

    @property
    def scheduling_key(self) -> Hashable:
        """What tasks have alike that may share a worker. One that ends after its call is no place to push
        others to. Where memory runs short, workers of tasks without retries are killed last."""
        strategy = self.strategy.SerializeToString(deterministic=True) if self.strategy is not None else b""
        return self.resources, strategy, self.runtime_env, bool(self.max_calls), bool(self.max_retries)

    @property
    def group_id(self) -> bytes:
        """Of the placement group in `strategy`; empty for none."""
        if self.strategy is None:
            return b""
        group = self.strategy.placement_group
        return group.placement_group_id


def with_affinity(options: TaskOptions, affinity: common_pb2.NodeAffinity) -> TaskOptions:
    """The same for another place; what they say of labels stays."""
    strategy = common_pb2.SchedulingStrategy(node_affinity=affinity)
    if options.strategy is not None:
        strategy.label_selectors.extend(options.strategy.label_selectors)
    return replace(options, strategy=strategy)


@dataclass(frozen=True)
class CallRules:
    """What an actor's options say of calls to it. Every handle carries it, since the callers keep to it."""

    max_pending_calls: int = -1
    is_unordered: bool = False
    """A caller's calls may overtake each other."""
    is_concurrent: bool = False
    """The actor runs several calls at once, which may wait for each other."""
    waits_for_restart: bool = False
    """Calls that could not be sent wait for a restart: the actor has max_task_retries. Other calls fail then,
    as in Ray."""


@dataclass(frozen=True)
class ActorOptions:
    """Options of an actor class. `resources` are held while the actor lives. `placement_resources` must be
    free where it is placed."""

    name: str = ""
    namespace: str = ""
    get_if_exists: bool = False
    is_detached: bool = False
    class_name: str = ""
    resources: ResourceSet = NOTHING
    placement_resources: ResourceSet = ONE_CPU
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    is_asyncio: bool = False
    rules: CallRules = CallRules()
    hides_events: bool = False
    """The timeline does not show its constructor."""
    concurrency_groups: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    """(name of the group, how many calls it runs at once, names of its methods)."""
    strategy: common_pb2.SchedulingStrategy | None = None
    bundles: tuple[ResourceSet, ...] = ()
    inherits_group: bool = False
    joins_group: bool = False
    """These three as in TaskOptions."""
    runtime_env: str = ""
    handle_metadata: bytes = field(default=b"", repr=False)
    """What get_actor needs to make a handle; the core worker does not look inside."""

"""What the API asks of the core worker for one function, class or method: validated values, prepared once and
used per call."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

ONE_CPU = ResourceSet.from_units({"CPU": 1})
NOTHING = ResourceSet()
INLINE_BYTES_MAX = 100 << 10
"""Values up to this travel in messages and live in their owner's memory; Ray's max_direct_call_object_size.
"""
STREAMING_RETURNS = -1
DYNAMIC_RETURNS = -2
"""num_returns of generators: their items one by one as they are made, or all of them at the end."""


@dataclass(frozen=True)
class TaskOptions:
    """Options of a remote function. Defaults are Ray's."""

    name: str = ""
    num_returns: int = 1
    """A count, STREAMING_RETURNS or DYNAMIC_RETURNS."""
    generator_backpressure_num_objects: int = 0
    """Items of a generator that may wait to be taken; 0: any number."""
    resources: ResourceSet = ONE_CPU
    max_retries: int = 3
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    max_calls: int = 0
    """Calls after which the worker ends; 0: never."""
    hides_events: bool = False
    """The timeline has nothing of its calls."""
    strategy: common_pb2.SchedulingStrategy | None = None
    runtime_env: str = ""
    """Serialized JSON; empty: the job's own."""


@dataclass(frozen=True)
class CallRules:
    """What its options say of the calls to an actor: every handle knows, for callers keep to them."""

    max_pending_calls: int = -1
    is_unordered: bool = False
    """A caller's calls may overtake each other."""
    is_concurrent: bool = False
    """It runs several calls at once, which may wait for each other."""
    waits_for_restart: bool = False
    """As in Ray, a call that was not sent waits for a restart only if the actor has max_task_retries."""


@dataclass(frozen=True)
class ActorOptions:
    """Options of an actor class. `resources` are held while it lives, `placement_resources` must be free to
    place it."""

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
    """Of its constructor."""
    concurrency_groups: tuple[tuple[str, int, tuple[str, ...]], ...] = ()
    """(group, calls at once, method names)."""
    strategy: common_pb2.SchedulingStrategy | None = None
    runtime_env: str = ""
    handle_metadata: bytes = field(default=b"", repr=False)
    """What get_actor needs to rebuild a handle; opaque here."""

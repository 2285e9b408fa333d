"""Calls of the GCS, as a core worker makes them: which of them somebody waits for, and which must not be done
twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.rpc.surface import RpcError

# What people wait for, by the call that brings it. Nobody waits for the other calls.
WANTED = {
    "AddJob": "a new job",
    "RegisterActor": "new actors",
    "GetNamedActor": "actors by name",
    "ListNamedActors": "actors by name",
    "KillActor": "kill()",
    "KvPut": "keys, and the code of functions",
    "KvGet": "keys, and the code of functions",
    "KvDel": "keys, and the code of functions",
    "KvExists": "keys, and the code of functions",
    "KvKeys": "keys, and the code of functions",
    "GetJob": "what a worker has to know of its job",
    "GetAllNodes": "the state of the cluster",
    "GetAllResources": "the state of the cluster",
    "GetAllJobs": "the state of the cluster",
    "GetAllActors": "the state of the cluster",
    "GetTaskEvents": "the timeline",
    "RegisterPlacementGroup": "new placement groups",
    "GetPlacementGroup": "placement groups",
    "GetAllPlacementGroups": "placement groups",
}

ONCE = frozenset({"KvPut", "KvDel", "KillActor"})

OnDone = Callable[[Any, RpcError | None], None]
ToString = Callable[[Any], bytes]
FromString = Callable[[bytes], Any]


@dataclass(frozen=True)
class Method:
    """One method of the service, as a stub names it."""

    path: str
    to_string: ToString
    from_string: FromString


@dataclass(frozen=True)
class Call:
    """A call that has no answer yet, or a stream that has not ended."""

    method: Method
    request: Any
    on_done: OnDone
    """Of a stream: on_done(None, error) is its end."""
    on_item: Callable[[Any], None] | None = None
    """Of a stream."""
    is_notice: bool = False
    started_s: float = 0.0
    wanted: str = ""
    """What somebody waits for; empty if nobody does."""
    is_late: bool = False
    """Its answer comes when something has happened, and not as soon as the head can."""


def answers_late(request: Any) -> bool:
    """Whether the head answers this one when something has happened."""
    return "settled" in request.DESCRIPTOR.fields_by_name and request.settled

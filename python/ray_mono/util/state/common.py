"""Types of the state API, which ray_mono does not have yet: names for annotations."""

from __future__ import annotations


class StateSchema:
    """What the state API tells of one thing."""


class ActorState(StateSchema): ...


class JobState(StateSchema): ...


class NodeState(StateSchema): ...


class ObjectState(StateSchema): ...


class PlacementGroupState(StateSchema): ...


class TaskState(StateSchema): ...


class WorkerState(StateSchema): ...

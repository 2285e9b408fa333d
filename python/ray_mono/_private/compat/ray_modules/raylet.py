"""`ray._raylet`: what libraries take from Ray's compiled core, which is Python here."""

from ray_mono._private.remote.scheduling_option import NODE_ID_LABEL
from ray_mono.common.ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import (
    DynamicObjectRefGenerator,
    ObjectRefGenerator,
    StreamingGeneratorStats,
)

ObjectID = ObjectRef
StreamingObjectRefGenerator = ObjectRefGenerator
RAY_NODE_ID_KEY = NODE_ID_LABEL

__all__ = [
    "ActorClassID",
    "ActorID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "RAY_NODE_ID_KEY",
    "StreamingGeneratorStats",
    "StreamingObjectRefGenerator",
    "TaskID",
    "UniqueID",
    "WorkerID",
]

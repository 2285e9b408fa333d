"""`ray._raylet`: what libraries take from Ray's compiled core, which is Python here."""

from ray_mono._private.node.node_labels import ACCELERATOR_TYPE_LABEL, FROM_ENVIRONMENT
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
from ray_mono.common.scheduling.labels import NODE_ID_LABEL
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import (
    DynamicObjectRefGenerator,
    ObjectRefGenerator,
    StreamingGeneratorStats,
)

ObjectID = ObjectRef
StreamingObjectRefGenerator = ObjectRefGenerator
RAY_NODE_ID_KEY = NODE_ID_LABEL
RAY_NODE_ACCELERATOR_TYPE_KEY = ACCELERATOR_TYPE_LABEL
(
    (NODE_TYPE_NAME_ENV, RAY_NODE_GROUP_KEY),
    (NODE_MARKET_TYPE_ENV, RAY_NODE_MARKET_TYPE_KEY),
    (NODE_REGION_ENV, RAY_NODE_REGION_KEY),
    (NODE_ZONE_ENV, RAY_NODE_ZONE_KEY),
) = FROM_ENVIRONMENT.items()

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
    "NODE_MARKET_TYPE_ENV",
    "NODE_REGION_ENV",
    "NODE_TYPE_NAME_ENV",
    "NODE_ZONE_ENV",
    "RAY_NODE_ACCELERATOR_TYPE_KEY",
    "RAY_NODE_GROUP_KEY",
    "RAY_NODE_ID_KEY",
    "RAY_NODE_MARKET_TYPE_KEY",
    "RAY_NODE_REGION_KEY",
    "RAY_NODE_ZONE_KEY",
    "StreamingGeneratorStats",
    "StreamingObjectRefGenerator",
    "TaskID",
    "UniqueID",
    "WorkerID",
]

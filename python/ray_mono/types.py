"""Types for annotations: `def f(x: ObjectRef[int])`."""

from ray_mono.core_worker.object_ref import ObjectRef

__all__ = ["ObjectRef"]

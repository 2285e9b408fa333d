"""A function or class that users made remote, and whether the cluster has its code yet.

Code is exported when it is first used, once per connection (so once per session and job): decorating works
before `init`, and a second `init` exports again. All `.options()` of one remote function share one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono._private.signature import CallSignature

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.protobuf import common_pb2

FUNCTION = "function"
ACTOR_CLASS = "actor class"


def display_name(target: Callable[..., Any]) -> str:
    """As the user calls it: without the functions around it."""
    return target.__qualname__.rpartition("<locals>.")[2]


class ExportedCode:
    """`target` and what is derived from it."""

    def __init__(self, target: Callable[..., Any], kind: str, signature: CallSignature) -> None:
        self.target = target
        self.kind = kind
        self.signature = signature
        self._core: CoreWorker | None = None
        self._descriptor: common_pb2.FunctionDescriptor | None = None

    def descriptor(self, core: CoreWorker) -> common_pb2.FunctionDescriptor:
        """Exports to core's cluster unless that has happened. Raises as CoreWorker.export does."""
        if self._core is not core or self._descriptor is None:
            self._descriptor = core.export(self.target, self.kind)
            self._core = core
        return self._descriptor

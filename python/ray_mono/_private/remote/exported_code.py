"""A function or class that users made remote, and whether the cluster has its code yet.

Code is exported when it is first used, once per connection (so once per session and job): decorating works
before `init`, and a second `init` exports again. All `.options()` of one remote function share one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_mono._private.remote.signature import CallSignature
from ray_mono.common.our_bug import InternalError

if TYPE_CHECKING:
    from ray_mono.core_worker.interface import CoreInterface
    from ray_mono.core_worker.task_submission.function_manager import Exported

FUNCTION = "function"
ACTOR_CLASS = "actor class"


def display_name(target: Callable[..., Any]) -> str:
    """As the user calls it: without the functions around it."""
    return target.__qualname__.rpartition("<locals>.")[2]


class CompleteWhenUsed:
    """For what derives things from its function or class. If it is unpickled, it does so at its first use.

    Code may refer to itself: an actor class whose methods make more such actors, say. Then this object is
    unpickled while that code is, and must not look at it yet. `_restore(state)` does so at the first use.
    """

    def _restore(self, state: dict[str, Any]) -> None:
        raise InternalError(f"{type(self).__name__} does not say how it is restored")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__["_unpickled"] = state

    # Type checkers would take __getattr__ for a sign that every name exists.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            state = self.__dict__.get("_unpickled")
            if state is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self._restore(state)
            self.__dict__.pop("_unpickled", None)
            return getattr(self, name)


class ExportedCode:
    """`target` and what is derived from it."""

    def __init__(self, target: Callable[..., Any], kind: str, signature: CallSignature) -> None:
        self.target = target
        self.kind = kind
        self.signature = signature
        self._core: CoreInterface | None = None
        self._exported: Exported | None = None

    def exported(self, core: CoreInterface) -> Exported:
        """The code, exported to core's cluster if that has not happened. Raises as CoreInterface.export
        does."""
        if self._core is not core or self._exported is None:
            self._exported = core.export(self.target, self.kind)
            self._core = core
        return self._exported

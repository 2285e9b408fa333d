"""Every error that ray_mono raises about a cluster, its tasks, actors and objects. Wrong arguments are
TypeErrors and ValueErrors, as in Python itself.
"""

from ray_mono.common import exceptions as _exceptions
from ray_mono.common.exceptions import *  # noqa: F403
from ray_mono.rpc.surface import RpcError as _CallError

RAY_EXCEPTION_TYPES = tuple(vars(_exceptions)[name] for name in _exceptions.__all__)
"""All of them, for `except` clauses."""

for _kind in (*RAY_EXCEPTION_TYPES, _CallError):
    # Tracebacks show this name. It is set here, and not where the classes are made: whoever pickles one looks
    # for it in a module that is loaded.
    _kind.__module__ = __name__

__all__ = [*_exceptions.__all__, "RAY_EXCEPTION_TYPES"]

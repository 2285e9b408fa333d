"""Every error that ray_mono raises."""

from ray_mono.common import exceptions as _exceptions
from ray_mono.common.exceptions import *  # noqa: F403
from ray_mono.rpc.surface import RpcError as _CallError

RAY_EXCEPTION_TYPES = tuple(vars(_exceptions)[name] for name in _exceptions.__all__)
"""All of them, for `except` clauses."""

for _kind in (*RAY_EXCEPTION_TYPES, _CallError):
    # What tracebacks call them. Here, and not where they are made: whoever pickles one looks for it in
    # modules that are there.
    _kind.__module__ = __name__

__all__ = [*_exceptions.__all__, "RAY_EXCEPTION_TYPES"]

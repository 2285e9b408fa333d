"""Every error that ray_mono raises."""

from ray_mono.common import exceptions as _exceptions
from ray_mono.common.exceptions import *  # noqa: F403

RAY_EXCEPTION_TYPES = tuple(vars(_exceptions)[name] for name in _exceptions.__all__)
"""All of them, for `except` clauses."""

__all__ = [*_exceptions.__all__, "RAY_EXCEPTION_TYPES"]

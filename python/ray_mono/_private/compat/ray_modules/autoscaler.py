"""`ray.autoscaler`, which ray_mono does not have yet: its `sdk` can be imported."""

from __future__ import annotations

from ray_mono._private.compat.ray_modules import autoscaler_sdk as sdk

__path__: list[str] = []
__all__ = ["sdk"]

"""Every error that ray_mono raises."""

from ray_mono.common.exceptions import *  # noqa: F403
from ray_mono.common.exceptions import __all__ as __all__

"""Names of accelerators, for the option `accelerator_type`: a node that has one offers the resource
`accelerator_type:<name>`.

Only NVIDIA's are recognised by a node itself; for others `start` is told with --resources.
"""

from ray_mono.util import tpu
from ray_mono.util.accelerators.accelerators import *  # noqa: F403
from ray_mono.util.accelerators.accelerators import __all__ as _names

__all__ = ["tpu", *_names]

"""Ray's environment variables, for programs under `ray_mono.compat`: ray_mono gets them by its own names.

A variable of ray_mono's own wins over Ray's. They are looked at again at every `init`, because programs set
them while they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable

_same: Callable[[str], str] = str

# Ray's name -> ours, and how its value becomes ours.
VARIABLES: dict[str, tuple[str, Callable[[str], str]]] = {
    "RAY_ADDRESS": ("RAY_MONO_ADDRESS", _same),
    "RAY_AUTH_TOKEN": ("RAY_MONO_AUTH_TOKEN", _same),
    "RAY_AUTH_TOKEN_PATH": ("RAY_MONO_AUTH_TOKEN_PATH", _same),
    "RAY_DEDUP_LOGS": ("RAY_MONO_DEDUP_LOGS", _same),
    "RAY_DEDUP_LOGS_AGG_WINDOW_S": ("RAY_MONO_DEDUP_LOGS_AGG_WINDOW_S", _same),
    "RAY_DEDUP_LOGS_ALLOW_REGEX": ("RAY_MONO_DEDUP_LOGS_ALLOW_REGEX", _same),
    "RAY_DEDUP_LOGS_SKIP_REGEX": ("RAY_MONO_DEDUP_LOGS_SKIP_REGEX", _same),
    "RAY_ENABLE_AUTO_CONNECT": ("RAY_MONO_ENABLE_AUTO_CONNECT", _same),
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": (
        "RAY_MONO_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
        _same,
    ),
    "RAY_IGNORE_UNHANDLED_ERRORS": ("RAY_MONO_IGNORE_UNHANDLED_ERRORS", _same),
    "RAY_LOG_TO_DRIVER": ("RAY_MONO_LOG_TO_DRIVER", _same),
    "RAY_NAMESPACE": ("RAY_MONO_NAMESPACE", _same),
    "RAY_REDIS_ADDRESS": ("RAY_MONO_REDIS_ADDRESS", _same),
    "RAY_REDIS_PASSWORD": ("RAY_MONO_REDIS_PASSWORD", _same),
    "RAY_RUNTIME_ENV_HOOK": ("RAY_MONO_RUNTIME_ENV_HOOK", _same),
    # A driver's and a worker's own. Who starts a node reads Ray's settings by their own names
    # (_private/node/ray_settings.py).
    "RAY_max_lineage_bytes": ("RAY_MONO_MAX_LINEAGE_BYTES", _same),
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": ("RAY_MONO_WARN_BLOCKING_GET_INSIDE_ASYNC", _same),
    # Ray makes a directory of its own in it, ours is the base of the sessions itself.
    "RAY_TMPDIR": ("RAY_MONO_TMPDIR", lambda directory: os.path.join(directory, "ray_mono")),
}
# What this module wrote. So a later change of Ray's variable is told from a setting of ours by the user.
_written: dict[str, str] = {}


def take_over() -> None:
    """Sets our variable for each of Ray's that is set.

    What an earlier call set, and Ray's variable no longer says, is unset.
    """
    for theirs, (ours, convert) in VARIABLES.items():
        value = os.environ.get(ours)
        if value is not None and value != _written.get(ours):
            continue
        given = os.environ.get(theirs)
        if given:
            os.environ[ours] = _written[ours] = convert(given)
        elif value is not None:
            del os.environ[ours]

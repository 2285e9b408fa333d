"""`ray.cloudpickle.dumps_debug`, whose error names what does not pickle. Also `pickle`, which programs take
from there.
"""

from __future__ import annotations

import io
import pickle  # noqa: F401
from typing import Any

from ray_mono.common import code_pickler
from ray_mono.util.check_serialize import inspect_serializability


def dumps_debug(obj: Any, protocol: int | None = None, buffer_callback: Any = None) -> bytes:
    """As dumps. Raises TypeError with what inspect_serializability finds."""
    try:
        return code_pickler.dumps(obj, protocol, buffer_callback)
    except (TypeError, RecursionError) as error:
        found = io.StringIO()
        inspect_serializability(obj, print_file=found)
        raise TypeError(f"Could not serialize the object {obj!r}:\n{found.getvalue()}") from error


def dump_debug(obj: Any, file: Any, protocol: int | None = None, buffer_callback: Any = None) -> None:
    """As dump; raises as dumps_debug does."""
    file.write(dumps_debug(obj, protocol, buffer_callback))

"""Which languages tasks and actors can be written in, as messages name them.

Only Python runs so far (docs/differences.md).
"""

from __future__ import annotations

import enum

from ray_mono._private.later import refusing

__all__ = ["Language", "cpp_function", "java_actor_class", "java_function"]


class Language(enum.Enum):
    """Numbers as in protobuf/common.proto."""

    PYTHON = 0
    JAVA = 1
    CPP = 2


java_function = refusing("ray_mono.java_function", "Java workers are")
java_actor_class = refusing("ray_mono.java_actor_class", "Java workers are")
cpp_function = refusing("ray_mono.cross_language.cpp_function", "C++ workers are")

"""Which languages tasks and actors can be written in, as messages name them. Only Python runs so far (docs/differences.md)."""

from __future__ import annotations

import enum

__all__ = ["Language"]


class Language(enum.Enum):
    """Numbers as in protobuf/common.proto."""

    PYTHON = 0
    JAVA = 1
    CPP = 2

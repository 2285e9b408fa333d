"""The levels of messages that users name."""

from __future__ import annotations

LOG_LEVELS = ("debug", "info", "warning", "error")
"""The least severe first."""

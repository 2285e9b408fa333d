"""What the machines refuse, and whose fault it is. The servicer maps these to statuses, nobody else does.

StoreError is the caller's mistake or the environment's; StoreBroken is ours, and ends the process.
"""

from __future__ import annotations


class StoreError(Exception):
    """A request that the store refuses; its state is unchanged."""


class ObjectExists(StoreError):
    """Create of an object that is here already."""


class ObjectUnknown(StoreError):
    """The object, or the range, is not one that this client may do this to."""


class StoreFull(StoreError):
    """No room, and no hope of it within the bound. The message names the sizes."""


class StoreBroken(Exception):
    """An invariant does not hold: a bug in this component."""


def require(condition: bool, story: str) -> None:
    """Raises StoreBroken(story) unless the condition holds. Unlike assert, never compiled away."""
    if not condition:
        raise StoreBroken(story)

"""What the machines refuse, and whose fault it is. The servicer maps these to statuses, nobody else does.

StoreError is the caller's mistake or the environment's; what is our own bug is an InternalError.
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


class NoRoomInTime(StoreFull):
    """It would fit, but nobody made room for it."""

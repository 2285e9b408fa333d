"""What a store without room says. Not in object_errors.py, which brings more than a service needs."""

FILE_SYSTEM_FULL = "the file system is full"
"""It is not the store that is full: other files take the room that its own would need."""

DISK_FULL = "the disk for spilled objects is full"
"""The store is full, and what is in it can be written nowhere."""

SPILL_DIRECTORY_PREFIX = "ray_spilled_objects_"
"""Of the directory of one node's spilled objects; its id follows."""


class ExternalStorageError(Exception):
    """A storage to which objects are to be spilled cannot be used; the message says which, and why."""


def is_uri(place: str) -> bool:
    """Whether objects are spilled to a storage elsewhere, and not to a directory."""
    return "://" in place


def remedy(why_full: str) -> str:
    """What helps against a store without room, whose own description of that is given."""
    if FILE_SYSTEM_FULL in why_full:
        return "remove other files there, or start with an object_store_memory that has room"
    if DISK_FULL in why_full:
        return "drop references, make room on that disk, or name another one (--object-spilling-directory)"
    return "drop references, or start with a larger object_store_memory"

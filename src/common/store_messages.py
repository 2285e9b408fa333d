"""What a store without room says. Not in object_errors.py, which brings more than a service needs."""

FILE_SYSTEM_FULL = "the file system is full"
"""It is not the store that is full: other files take the room that its own would need."""


def remedy(why_full: str) -> str:
    """What helps against a store without room, whose own description of that is given."""
    if FILE_SYSTEM_FULL in why_full:
        return "remove other files there, or start with an object_store_memory that has room"
    return "drop references, or start with a larger object_store_memory"

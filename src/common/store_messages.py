"""What a full store says that others go by. Not in object_errors.py, which brings more than a service needs."""

FILE_SYSTEM_FULL = "the file system is full"
"""It is not the store that is full: other files take the room that its own would need."""

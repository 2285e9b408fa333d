"""The launcher and what belongs to it: not part of the public API."""

"""What a graph is executed with, where that is more than one value."""

from __future__ import annotations

from typing import Any


class DAGInputData:
    """Several arguments of an execution, as one value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args = list(args)
        self._kwargs = kwargs

    def __getitem__(self, key: int | str) -> Any:
        """By position or by name. Raises IndexError, KeyError, or ValueError for another kind of key."""
        if isinstance(key, int):
            return self._args[key]
        if isinstance(key, str):
            return self._kwargs[key]
        raise ValueError(f"inputs of a graph are read by position or by name, got {key!r}")

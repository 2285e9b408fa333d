"""The one way to say "this is our bug": an error that survives `python -O`, that nobody takes for the
user's or the environment's fault.

Where a value must be there, or a state cannot be, the code says so by these; `assert` is for tests.
"""

from __future__ import annotations

from typing import TypeVar

from ray_mono.common.ray_error import RayError

T = TypeVar("T")

OUR_BUG = "this is a bug of ray_mono"


class InternalError(RayError):
    """A state that ray_mono itself rules out. Nothing that a program or a cluster does is a reason for it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {OUR_BUG}")


def known(value: T | None, what: str) -> T:
    """The value, which is there. Raises InternalError, which says `what`, where it is None."""
    if value is None:
        raise InternalError(f"{what} is not there")
    return value


def check(holds: object, what: str) -> None:
    """Raises InternalError, which says `what`, where a rule of our own does not hold."""
    if not holds:
        raise InternalError(what)

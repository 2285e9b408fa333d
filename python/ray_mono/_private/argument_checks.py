"""Checks numbers and flags that users give. Numbers of numpy and the like become Python's own."""

from __future__ import annotations

import math
import numbers
from typing import Any

COUNT_MAX = 2**31 - 1
"""The largest count that a message holds."""
RETURNS_MAX = 1_000_000
"""The most returns of one task. Each is an object of its own, which is made at the call."""
AMOUNT_MAX = 9 * 10**14
"""The largest amount of a resource, in units: a ledger counts ten-thousandths in 64 bits."""
AMOUNT_LEAST = 0.0001
"""The smallest one besides 0."""
FOREVER_S = 10.0**9
"""Waits that are longer (30 years) have no bound."""


def plain(value: Any) -> Any:
    """A number of numpy, pandas or another library as an int or a float; anything else as it is."""
    if type(value) in (int, float, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            return math.trunc(value)
    return value


def is_number(value: Any) -> bool:
    """Whether a plain value is a number. True and False are none: whoever gives them means something else."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_sendable(text: str) -> bool:
    """Whether a message can hold the text.

    UTF-8 has no half of a surrogate pair, which names of files may hold.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_resource_name(name: Any) -> None:
    """Raises TypeError for what is no string, and ValueError for one that is empty or not valid Unicode."""
    if not isinstance(name, str):
        raise TypeError(f"resources must have names that are strings, got {name!r}")
    if not name:
        raise ValueError(f"resources must have names that are not empty, got {name!r}")
    if not is_sendable(name):
        raise ValueError(f"resources must have names of valid Unicode, got {name!r}")


def amount(name: str, value: Any, *, is_whole: bool = False) -> Any:
    """An amount of something that a node offers, as a plain number. is_whole: only whole ones are accepted.

    Raises TypeError or ValueError.
    """
    number = plain(value)
    accepted = f"a {'whole ' if is_whole else ''}number of at least 0"
    if not is_number(number):
        raise TypeError(f"{name} must be {accepted}, got {value!r}")
    if number > AMOUNT_MAX:
        accepted += f" and at most {AMOUNT_MAX}"
    # The comparison finds NaN as well.
    if not 0 <= number <= AMOUNT_MAX or (is_whole and number != int(number)):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


def flag(name: str, value: Any) -> bool:
    """The flag as True or False. Raises TypeError for anything else: whoever gives "no", 0 or None may mean
    the other one."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def flags(**named: Any) -> None:
    """Checks several flags; see flag."""
    for name, value in named.items():
        flag(name, value)


def seconds(value: Any, name: str = "timeout") -> float | None:
    """A time to wait, in seconds; None for no bound, which more than FOREVER_S becomes, too.

    Raises TypeError or ValueError.
    """
    if value is None:
        return None
    number = plain(value)
    if not is_number(number):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    # The first part finds NaN. math.isnan would fail for a whole number that no float can hold.
    if number != number or number < 0:
        raise ValueError(f"{name} must be at least 0 seconds, or None to wait without a bound, got {value!r}")
    return None if number > FOREVER_S else number

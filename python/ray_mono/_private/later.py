"""Names of parts that ray_mono does not have yet.

They are there so that programs which import them can begin. They refuse to be used. A part that is finished
takes its names away from here. docs/differences.md lists what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def refusing(name: str, part: str) -> Callable[..., NoReturn]:
    """A function that raises NotImplementedError, whatever it is given.

    Args:
        name: of the function, with its module.
        part: what is not there yet, with "is" or "are".
    """

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{name}: {part} not part of ray_mono yet")

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    return refuse

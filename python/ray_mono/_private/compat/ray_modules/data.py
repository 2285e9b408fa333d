"""`ray.data`, which ray_mono does not have yet. Libraries import it and name its types, often without using
them.

So each name is a class that nothing is an instance of. To call it raises an ImportError.
"""

from __future__ import annotations

from typing import Any, NoReturn

_NOT_YET = "ray.data is not part of ray_mono yet"


class _Absent(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(f"{cls.__name__}: {_NOT_YET}", name="ray.data")

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{cls.__name__}.{name}: {_NOT_YET}", name="ray.data")


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'ray.data' has no attribute {name!r}: {_NOT_YET}")
    absent = globals()[name] = _Absent(name, (), {"__module__": "ray.data"})
    return absent

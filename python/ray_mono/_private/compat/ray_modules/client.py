"""`ray.util.client`: Ray Client, which ray_mono does not have yet. Libraries ask whether this process is one
of its clients: it is none."""

from __future__ import annotations

from types import SimpleNamespace

# A package: it has `common`.
__path__: list[str] = []


def num_connected_contexts() -> int:
    return 0


ray = SimpleNamespace(is_connected=lambda: False)

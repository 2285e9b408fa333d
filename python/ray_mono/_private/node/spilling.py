"""Where a node's objects go for which its store has no room, and by which settings: Ray's names for both.

`_system_config` may hold Ray's settings of spilling beside those of services. They are the cluster's: a node
that joins takes them from the head unless it was given its own. A directory of one node's is
`object_spilling_directory`. Without either it is the session's.

Each of these may be the URI of a storage elsewhere, as s3://bucket/path: what fsspec reaches. Then the
session's directory is for what has to be mapped.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mono._private.node.session import from_home
from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX, is_uri

CONFIG = "object_spilling_config"
DIRECTORY = "object_spilling_directory"
IS_ON = "automatic_object_spilling_enabled"
TEXTS = frozenset({CONFIG, DIRECTORY})
# Ray's name, and the object manager's.
_NUMBERS = {
    "min_spilling_size": "min_spilling_size_bytes",
    "max_fused_object_count": "max_fused_object_count",
    "max_io_workers": "max_io_workers",
    "object_spilling_threshold": "object_spilling_threshold",
    "local_fs_capacity_threshold": "local_fs_capacity_threshold",
    "verbose_spill_logs": "verbose_spill_logs_bytes",
}
# Shares, and whether they may be 0.
_SHARES = {"object_spilling_threshold": True, "local_fs_capacity_threshold": False}
_LEAST = {"verbose_spill_logs": 0, "min_spilling_size": 0}
"""Of the others: 1."""
SETTINGS = frozenset({*TEXTS, IS_ON, *_NUMBERS})
# Ray's types of storage: the parameter that says where it is, and all of them.
_STORAGES = {
    "filesystem": ("directory_path", frozenset({"directory_path", "buffer_size"})),
    "smart_open": ("uri", frozenset({"uri", "buffer_size"})),
}
_NO_STORAGE = {
    "file": "give the path of the directory alone",
    "local": "give the path of the directory alone",
    "memory": "that is the memory of one process",
    "http": "nothing can be written there",
    "https": "nothing can be written there",
}
_PART_BYTES_MIN = 5 << 20


def check(system_config: Mapping[str, Any], directory: Any) -> None:
    """Raises ValueError naming what cannot be."""
    given = [name for name in (CONFIG, DIRECTORY) if name in system_config]
    if len(given) + (directory is not None) > 1:
        names = [f"_system_config[{name!r}]" for name in given]
        names += [DIRECTORY] if directory is not None else []
        raise ValueError(f"{' and '.join(names)} both say where objects are spilled: give one of them")
    for place in (directory, system_config.get(DIRECTORY)):
        if place is not None:
            _check_place(DIRECTORY, place)
    if not isinstance(system_config.get(IS_ON, True), bool):
        raise ValueError(f"{IS_ON} must be True or False, got {system_config[IS_ON]!r}")
    for name in _NUMBERS:
        value = system_config.get(name, 1)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _SHARES:
            if not is_number or not 0 <= value <= 1 or not (value or _SHARES[name]):
                least = "at least 0" if _SHARES[name] else "more than 0"
                raise ValueError(f"{name} must be {least} and at most 1, got {value!r}")
        elif not is_number or not float(value).is_integer() or value < _LEAST.get(name, 1):
            raise ValueError(f"{name} must be a whole number from {_LEAST.get(name, 1)} on, got {value!r}")
    _configured(system_config)


def directories(system_config: Mapping[str, Any], directory: str | None, session_path: Path) -> list[str]:
    """Those that take turns; none where nothing is to be spilled.

    Behind storages elsewhere stands the session's, for what has to be mapped.
    """
    if not system_config.get(IS_ON, True):
        return []
    if directory is None:
        directory = system_config.get(DIRECTORY)
    places = _configured(system_config)[0] if directory is None else [directory]
    if not places:
        return [str(session_path)]
    if is_uri(places[0]):
        return [*places, str(session_path)]
    return [os.path.abspath(from_home(place)) for place in places]


def settings(system_config: Mapping[str, Any]) -> dict[str, Any]:
    """For the object manager, by its own names."""
    numbers = {ours: system_config[name] for name, ours in _NUMBERS.items() if name in system_config}
    part_bytes = _configured(system_config)[1]
    return {**({"external_part_bytes": part_bytes} if part_bytes else {}), **numbers}


def node_directories(places: list[str], node_id: str) -> list[str]:
    """What the object manager makes in them, and removes at its end. What is elsewhere it alone removes."""
    return [os.path.join(place, SPILL_DIRECTORY_PREFIX + node_id) for place in places if not is_uri(place)]


def _configured(system_config: Mapping[str, Any]) -> tuple[list[str], int]:
    """The places, and in parts of which size files go to storages elsewhere (0: not said)."""
    text = system_config.get(CONFIG)
    if not text:
        return [], 0
    try:
        config = json.loads(text)
        kind, params = config["type"], dict(config.get("params", {}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{CONFIG} must be JSON as {{"type": "filesystem", "params": {{"directory_path": "/path"}}}} or'
            f' {{"type": "smart_open", "params": {{"uri": "s3://bucket/path"}}}}, got {text!r}'
        ) from error
    if kind not in _STORAGES:
        raise ValueError(f"{CONFIG}: no storage is of type {kind!r}; accepted are {', '.join(_STORAGES)}")
    name, parameters = _STORAGES[kind]
    if unknown := sorted(params.keys() - parameters):
        accepted = ", ".join(sorted(parameters))
        raise ValueError(
            f"{CONFIG}: storage of type {kind!r} has no parameter {unknown[0]!r}; accepted are {accepted}."
            " Credentials and the endpoint are taken from the environment"
        )
    places = params.get(name)
    places = places if isinstance(places, list) else [places]
    if not places:
        raise ValueError(f"{CONFIG}: {name} must be one or a list of them, got []")
    for place in places:
        _check_place(f"{CONFIG}: {name}", place)
        if is_uri(place) != (kind == "smart_open"):
            wanted = "a URI as s3://bucket/path" if kind == "smart_open" else "the path of a directory"
            raise ValueError(f"{CONFIG}: {name} must be {wanted}, got {place!r}")
    size = params.get("buffer_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"{CONFIG}: buffer_size must be a whole number of bytes from 1 on, got {size!r}")
    part_bytes = max(size, _PART_BYTES_MIN) if size is not None and kind == "smart_open" else 0
    return [os.fspath(place) for place in places], part_bytes


def _check_place(name: str, place: Any) -> None:
    if not isinstance(place, str | os.PathLike) or not os.fspath(place):
        raise ValueError(
            f"{name} must be the path of a directory or a URI as s3://bucket/path, got {place!r}"
        )
    text = os.fspath(place)
    if not isinstance(text, str) or not is_uri(text):
        from_home(os.fsdecode(text))
        return
    protocol, _, rest = text.partition("://")
    if protocol in _NO_STORAGE:
        raise ValueError(f"{name}: no objects are spilled to {text!r}: {_NO_STORAGE[protocol]}")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", protocol) or not rest.strip("/"):
        raise ValueError(f"{name} must be a URI as s3://bucket/path, got {text!r}")

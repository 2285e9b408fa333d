"""Where a node's objects go for which its store has no room, and by which settings: Ray's names for both.

`_system_config` may hold Ray's settings of spilling beside those of services. They are the cluster's: a node
that joins takes them from the head unless it was given its own. A directory of one node's is
`object_spilling_directory`. Without either it is the session's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX

CONFIG = "object_spilling_config"
IS_ON = "automatic_object_spilling_enabled"
# Ray's name, and the object manager's.
_NUMBERS = {
    "min_spilling_size": "min_spilling_size_bytes",
    "max_fused_object_count": "max_fused_object_count",
    "max_io_workers": "max_io_workers",
    "object_spilling_threshold": "object_spilling_threshold",
    "local_fs_capacity_threshold": "local_fs_capacity_threshold",
}
SETTINGS = frozenset({CONFIG, IS_ON, *_NUMBERS})
# Ray's storages that are not files of a directory.
_ELSEWHERE = frozenset({"smart_open", "ray_storage"})
_FILE_PARAMETERS = frozenset({"directory_path", "buffer_size"})


def check(system_config: Mapping[str, Any], directory: Any) -> None:
    """Raises ValueError naming what cannot be, NotImplementedError for storage that is not here."""
    if directory is not None:
        _check_path("object_spilling_directory", directory)
        if CONFIG in system_config:
            raise ValueError(
                f"object_spilling_directory and _system_config[{CONFIG!r}] both say where objects are"
                " spilled: give one of them"
            )
    if not isinstance(system_config.get(IS_ON, True), bool):
        raise ValueError(f"{IS_ON} must be True or False, got {system_config[IS_ON]!r}")
    for name in _NUMBERS:
        value = system_config.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    _configured(system_config)


def directories(system_config: Mapping[str, Any], directory: str | None, session_path: Path) -> list[str]:
    """Those that take turns; none where nothing is to be spilled."""
    if not system_config.get(IS_ON, True):
        return []
    if directory is not None:
        return [os.path.abspath(directory)]
    return _configured(system_config) or [str(session_path)]


def settings(system_config: Mapping[str, Any]) -> dict[str, Any]:
    """For the object manager, by its own names."""
    return {ours: system_config[name] for name, ours in _NUMBERS.items() if name in system_config}


def node_directories(places: list[str], node_id: str) -> list[str]:
    """What the object manager makes in them, and removes at its end."""
    return [os.path.join(place, SPILL_DIRECTORY_PREFIX + node_id) for place in places]


def _configured(system_config: Mapping[str, Any]) -> list[str]:
    text = system_config.get(CONFIG)
    if not text:
        return []
    try:
        config = json.loads(text)
        kind, params = config["type"], dict(config.get("params", {}))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{CONFIG} must be JSON as {{"type": "filesystem", "params": {{"directory_path": "/path"}}}}, got'
            f" {text!r}"
        ) from error
    if kind in _ELSEWHERE:
        raise NotImplementedError(
            f"{CONFIG}: storage of type {kind!r} is not part of ray_mono yet; accepted is 'filesystem'"
        )
    if kind != "filesystem":
        raise ValueError(f"{CONFIG}: no storage is of type {kind!r}; accepted is 'filesystem'")
    if unknown := sorted(params.keys() - _FILE_PARAMETERS):
        accepted = ", ".join(sorted(_FILE_PARAMETERS))
        raise ValueError(f"{CONFIG}: a filesystem has no parameter {unknown[0]!r}; accepted are {accepted}")
    paths = params.get("directory_path")
    paths = paths if isinstance(paths, list) else [paths]
    if not paths:
        raise ValueError(f"{CONFIG}: directory_path must be a directory or a list of them, got []")
    for path in paths:
        _check_path(f"{CONFIG}: directory_path", path)
    return [os.path.abspath(path) for path in paths]


def _check_path(name: str, path: Any) -> None:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ValueError(f"{name} must be the path of a directory, got {path!r}")

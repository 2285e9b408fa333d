"""Modules of Ray's that libraries import, and that nobody needs under ray_mono's own name. So only
`ray_mono.compat` shows them.

`PLACES`: below `ray` -> below `ray_mono`. `NAMES`: module -> names that are added to it, each with the module
that has it. They are names of Ray 2.60, so they do not warn, as the old names do (old_names.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

_HERE = "_private.compat.ray_modules"
# `import ray` loads these, so programs write ray.util.debug.log_once without an import of their own.
_LOADED_BY_RAY = (
    "client_builder",
    "experimental.internal_kv",
    "experimental.locations",
    "experimental.tqdm_ray",
    "util.actor_pool",
    "util.client_connect",
    "util.debug",
    "util.serialization",
)
PLACES = {
    **{module: module for module in _LOADED_BY_RAY},
    "_private.client_mode_hook": f"{_HERE}.client_mode_hook",
    "_private.parameter": "_private.node.parameter",
    "_private.ray_constants": f"{_HERE}.ray_constants",
    "_private.services": "util.node_addresses",
    "_raylet": f"{_HERE}.raylet",
    "autoscaler": f"{_HERE}.autoscaler",
    "autoscaler.sdk": f"{_HERE}.autoscaler_sdk",
    "data": f"{_HERE}.data",
    "experimental.state": "util.state",
    "experimental.state.api": "util.state.api",
    "experimental.state.common": "util.state.common",
    "experimental.state.exception": "util.state.exception",
    "ray_constants": f"{_HERE}.ray_constants",
    "util.actor_group": f"{_HERE}.actor_group",
    "util.client": f"{_HERE}.client",
    "util.client.common": f"{_HERE}.client_types",
    "util.iter": f"{_HERE}.iter",
}
_WORKER_NAMES = {
    "BaseContext": f"{_HERE}.worker",
    "RESTORE_WORKER_MODE": f"{_HERE}.worker",
    "SPILL_WORKER_MODE": f"{_HERE}.worker",
    "_global_node": f"{_HERE}.worker",
    "_post_init_hooks": f"{_HERE}.worker",
    "get_dashboard_url": "_private.compat.old_functions",
}
NAMES = {
    "ray_mono": {"logger": "_private.driver.init"},
    "ray_mono._private.node": dict.fromkeys(("LocalNode", "Node"), "_private.node.node"),
    "ray_mono._private.worker": {**_WORKER_NAMES, "global_worker": "_private.compat.global_worker"},
    "ray_mono.worker": _WORKER_NAMES,
    "ray_mono.cloudpickle": dict.fromkeys(("dump_debug", "dumps_debug", "pickle"), f"{_HERE}.pickle_debug"),
    "ray_mono._private.state": {
        **dict.fromkeys(
            ("available_resources_per_node", "state", "total_resources_per_node"), f"{_HERE}.state"
        ),
        **dict.fromkeys(("actors", "jobs"), "_private.compat.old_functions"),
        "timeline": "_private.timeline",
    },
    "ray_mono.util": {"PublicAPI": "util.annotations"},
}


def install() -> None:
    """Adds them to this process. To be called once."""
    modules: dict[str, dict[str, str]] = {}
    for place in PLACES:
        parent, _, name = place.rpartition(".")
        if parent not in PLACES:
            modules.setdefault(f"ray_mono.{parent}".rstrip("."), {})[name] = ""
    for module_name in {*modules, *NAMES}:
        _add(module_name, modules.get(module_name, {}), NAMES.get(module_name, {}))
    context_type: Any = importlib.import_module("ray_mono.runtime_context").RuntimeContext
    context_type.worker = property(_global_worker)


def _global_worker(context: object) -> Any:
    return importlib.import_module("ray_mono._private.compat.global_worker").global_worker


def _add(module_name: str, modules: dict[str, str], names: dict[str, str]) -> None:
    module = importlib.import_module(module_name)
    otherwise: Callable[[str], Any] | None = vars(module).get("__getattr__")

    def get_attribute(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"ray_mono.{names[name]}"), name)
        if name in modules:
            below = f"{module_name}.{name}".removeprefix("ray_mono.")
            return importlib.import_module(f"ray_mono.{PLACES[below]}")
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = get_attribute

"""Names that Ray 0.8 to 1.x had, and that are others now.

Under `ray_mono.compat` the old names work and warn. Without it they do not exist. There are three kinds:

- Modules that moved: `MOVED_MODULES`, for the finder of imports.
- Names in modules: `_NAMES`.
- Arguments of `init`, `get`, `wait` and `put`, and options of remote functions, classes and methods.
  `install` wraps the functions that take them.

What had an effect keeps it. What only tuned a part that is not built like that any more is dropped, and a
warning says so.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ray_mono._private.compat import ray_environment

# Below `ray`: where it was -> where it is.
MOVED_MODULES = {
    "experimental.actor_pool": "util.actor_pool",
    "experimental.async_api": "_private.compat.old_functions",
    "experimental.joblib": "util.joblib",
    "experimental.multiprocessing": "util.multiprocessing",
    "experimental.named_actors": "_private.compat.named_handles",
    "experimental.queue": "util.queue",
    "internal": "_private.compat.old_functions",
    "memory_monitor": "exceptions",
    "node": "_private.node.node",
    "parameter": "_private.node.parameter",
    "profiling": "_private.profiling",
    "ray_logging": "_private.logs.log_printing",
    "services": "util",
    "state": "_private.state",
    "worker": "worker",
}

_OLD_FUNCTIONS = "ray_mono._private.compat.old_functions"
_ACCELERATOR_IDS = "get_runtime_context().get_accelerator_ids()"
_NAMED_HANDLES = "ray_mono._private.compat.named_handles"
_GET_ACTOR = "options(name=...) and get_actor(name)"
# module -> old name -> (module that has it now, its name there, what to write instead)
_NAMES: dict[str, dict[str, tuple[str, str, str]]] = {
    "ray_mono": {
        "get_dashboard_url": (_OLD_FUNCTIONS, "get_dashboard_url", "init().dashboard_url"),
        "get_resource_ids": (_OLD_FUNCTIONS, "get_resource_ids", _ACCELERATOR_IDS),
        "get_webui_url": (_OLD_FUNCTIONS, "get_dashboard_url", "init().dashboard_url"),
        "actors": (_OLD_FUNCTIONS, "actors", "ray.util.state.list_actors"),
        "jobs": (_OLD_FUNCTIONS, "jobs", "ray.util.state.list_jobs"),
        "profile": ("ray_mono._private.profiling", "profile", "ray._private.profiling.profile"),
        "register_custom_serializer": (
            _OLD_FUNCTIONS,
            "register_custom_serializer",
            "ray.util.register_serializer",
        ),
    },
    "ray_mono.worker": {
        "get_resource_ids": (_OLD_FUNCTIONS, "get_resource_ids", _ACCELERATOR_IDS),
        "global_worker": (
            "ray_mono._private.compat.global_worker",
            "global_worker",
            "ray.get_runtime_context()",
        ),
    },
    "ray_mono.exceptions": {
        "RayCancellationError": ("ray_mono.exceptions", "TaskCancelledError", "TaskCancelledError"),
        "RayConnectionError": ("ray_mono.exceptions", "RaySystemError", "RaySystemError"),
        "RayOutOfMemoryError": ("ray_mono.exceptions", "OutOfMemoryError", "OutOfMemoryError"),
        "RayTimeoutError": ("ray_mono.exceptions", "GetTimeoutError", "GetTimeoutError"),
        "RayWorkerError": ("ray_mono.exceptions", "WorkerCrashedError", "WorkerCrashedError"),
        "RayletError": ("ray_mono.exceptions", "RaySystemError", "RaySystemError"),
        "UnreconstructableError": ("ray_mono.exceptions", "ObjectLostError", "ObjectLostError"),
    },
    "ray_mono.experimental": {
        "ActorPool": ("ray_mono.util.actor_pool", "ActorPool", "ray.util.ActorPool"),
        "get_actor": (_NAMED_HANDLES, "get_actor", _GET_ACTOR),
        "register_actor": (_NAMED_HANDLES, "register_actor", _GET_ACTOR),
    },
    "ray_mono.util": {
        "get_actor": (_NAMED_HANDLES, "get_actor", _GET_ACTOR),
        "register_actor": (_NAMED_HANDLES, "register_actor", _GET_ACTOR),
    },
}

INIT_ARGUMENTS = {
    "_internal_config": "_system_config",
    "include_webui": "include_dashboard",
    "internal_config": "_system_config",
    "memory": "_memory",
    "node_ip_address": "_node_ip_address",
    "redis_address": "address",
    "redis_password": "_redis_password",
    "temp_dir": "_temp_dir",
    "webui_host": "dashboard_host",
}
GET_ARGUMENTS = {"object_id": "object_refs", "object_ids": "object_refs"}
WAIT_ARGUMENTS = {
    "object_ids": "ray_waitables",
    "object_id": "ray_waitables",
    "object_refs": "ray_waitables",
}
# Arguments that could be given by position, after the first one.
GET_ORDER = ("timeout",)
WAIT_ORDER = ("num_returns", "timeout")
OPTIONS = {"max_reconstructions": "max_restarts", "num_return_vals": "num_returns"}
# They tuned what is not here: several Redis shards, a process for the object store, the raylet transport.
DROPPED_INIT_ARGUMENTS = frozenset(
    "_lru_evict driver_object_store_memory enable_object_reconstruction huge_pages java_worker_options"
    " job_id load_code_from_local"
    " lru_evict num_redis_shards num_workers plasma_directory plasma_store_socket_name raylet_socket_name"
    " redis_max_clients"
    " redis_max_memory use_pickle use_raylet".split()
)
DROPPED_OPTIONS = frozenset({"is_asyncio", "is_direct_call"})
DROPPED_PUT_ARGUMENTS = frozenset({"weakref"})


def warn(old: str, new: str) -> None:
    """A DeprecationWarning where the program uses the old name."""
    _warn(f"{old} is a name of Ray 0.8 to 1.x: use {new}")


def _warn(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=_user_level())


def _user_level() -> int:
    """The `stacklevel` with which our caller's warning names the first line that is not ours.

    Frames of the import system do not count, since `warnings` leaves them out.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith("importlib._bootstrap"):
            level -= 1
        elif name.partition(".")[0] != "ray_mono":
            break
        level, frame = level + 1, frame.f_back
    return level


def warn_of_module(old: str) -> None:
    """The same for a module of MOVED_MODULES."""
    warn(f"ray.{old}", _instead_of(old, MOVED_MODULES[old]))


_ADVICE = {
    "experimental.async_api": "`await` of the reference itself",
    "experimental.named_actors": "options(name=...) and get_actor(name)",
    "internal": "nothing: an object goes when nothing refers to it, so free() has no effect",
    "node": "ray._private.node",
    "parameter": "the arguments of init and start",
    "profiling": "ray._private.profiling",
}


def _instead_of(old: str, new: str) -> str:
    if old in _ADVICE:
        return _ADVICE[old]
    return "the names of ray itself" if new == old else f"ray.{new}"


def install() -> None:
    """Adds the old names to this process. To be called once."""
    every = {module_name: dict(names) for module_name, names in _NAMES.items()}
    for old, new in MOVED_MODULES.items():
        # For `from ray.experimental import queue`, which asks the package before it asks the finder.
        parent, _, name = f"ray_mono.{old}".rpartition(".")
        every[parent][name] = (f"ray_mono.{new}", "", _instead_of(old, new))
    for module_name, names in every.items():
        _add_names(module_name, names)
    _translate_at_the_doors()


def _add_names(module_name: str, names: Mapping[str, tuple[str, str, str]]) -> None:
    module = importlib.import_module(module_name)
    otherwise: Callable[[str], Any] | None = vars(module).get("__getattr__")

    def get_attribute(name: str) -> Any:
        if name in names:
            place, new_name, advice = names[name]
            warn(f"{module_name.replace('ray_mono', 'ray')}.{name}", advice)
            there = importlib.import_module(place)
            return getattr(there, new_name) if new_name else there
        if otherwise is not None:
            return otherwise(name)
        raise AttributeError(f"module {module_name!r} has no attribute {name!r}")

    module.__dict__["__getattr__"] = get_attribute


# ---------------------------------------------------------------- arguments


def translate(
    given: Mapping[str, Any], renamed: Mapping[str, str], dropped: frozenset[str], where: str
) -> dict[str, Any]:
    """`given` with today's names. where: for the messages.

    Raises TypeError where one thing is given under both of its names.
    """
    if not (given.keys() & (renamed.keys() | dropped)):
        return dict(given)
    translated = {}
    for name, value in given.items():
        if name in dropped:
            _warn(f"{name}, an argument of {where} in Ray 0.8 to 1.x, has no effect any more")
            continue
        new = renamed.get(name, name)
        if new != name:
            warn(f"{name} of {where}", new)
            if new in given:
                raise TypeError(f"{where} was given {name} and {new}, which are the same: give {new} alone")
        translated[new] = value
    return translated


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = translate(given, OPTIONS, DROPPED_OPTIONS, "remote")
    if "detached" in options:
        warn("detached of remote", "lifetime='detached'")
        if options.pop("detached"):
            options["lifetime"] = "detached"
    return options


def _translate_at_the_doors() -> None:
    from ray_mono import actor, remote_function
    from ray_mono._private import worker

    for kind in (remote_function.RemoteFunction, actor.ActorClass):
        _replace_method(kind, "__init__", _with_options_second)
        _replace_method(kind, "options", _with_options_by_name)
    _replace_method(actor.ActorMethod, "options", _with_options_by_name)
    _replace_function(actor, "method", _with_options_by_name)
    _replace_function(worker, "init", _with_init_arguments)
    _replace_function(worker, "get", _with_old_arguments("get", GET_ARGUMENTS, GET_ORDER))
    _replace_function(worker, "wait", _with_old_arguments("wait", WAIT_ARGUMENTS, WAIT_ORDER))
    _replace_function(worker, "put", _with_old_arguments("put", {}, (), DROPPED_PUT_ARGUMENTS))


def _with_options_second(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(self: Any, target: Any, options: Mapping[str, Any]) -> Any:
        return function(self, target, _options(options))

    return call


def _with_options_by_name(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **_options(options))

    return call


def _with_init_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def init(*args: Any, **arguments: Any) -> Any:
        from ray_mono._private.compat.ray_modules.worker import _post_init_hooks

        ray_environment.take_over()
        context = function(*args, **translate(arguments, INIT_ARGUMENTS, DROPPED_INIT_ARGUMENTS, "init"))
        for hook in _post_init_hooks:
            hook()
        return context

    return init


def _with_old_arguments(
    where: str, renamed: Mapping[str, str], order: tuple[str, ...], dropped: frozenset[str] = frozenset()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps a function of one argument by position. order: the arguments that could once follow it there."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **arguments: Any) -> Any:
            if 1 < len(args) <= len(order) + 1:
                warn(f"{where}() with {len(args)} arguments by position", f"{', '.join(order)} by name")
                by_name = dict(zip(order, args[1:], strict=False))
                if both := by_name.keys() & arguments.keys():
                    raise TypeError(f"{where}() was given {', '.join(both)} twice, by position and by name")
                args, arguments = args[:1], {**by_name, **arguments}
            if arguments and arguments.keys() & (renamed.keys() | dropped):
                arguments = translate(arguments, renamed, dropped, where)
            return function(*args, **arguments)

        return call

    return wrap


def _replace_method(kind: type, name: str, wrap: Callable[[Any], Any]) -> None:
    setattr(kind, name, wrap(getattr(kind, name)))


def _replace_function(module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replaces it in all our modules that have loaded it: under every name it stays one object."""
    old = getattr(module, name)
    new = wrap(old)
    for each in [each for key, each in sys.modules.items() if key.partition(".")[0] == "ray_mono"]:
        if vars(each).get(name) is old:
            setattr(each, name, new)

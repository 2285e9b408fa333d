"""The arguments of `init`: checked, and brought into the form that connecting takes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from ray_mono._private.argument_checks import amount, flag, is_sendable
from ray_mono._private.driver.connection import InitArguments, anonymous_namespace
from ray_mono._private.label_selectors import check_labels
from ray_mono._private.logs.logging_config import LoggingConfig
from ray_mono._private.node import ray_settings
from ray_mono._private.node.resource_spec import custom_resources
from ray_mono._private.runtime_env import runtime_env as runtime_envs
from ray_mono.common.output import LOG_LEVELS
from ray_mono.job_config import JobConfig

PRIVATE = frozenset(
    "_driver_object_store_memory _memory _node_ip_address _redis_password _skip_env_hook _system_config"
    " _enable_object_reconstruction _object_spilling_directory _temp_dir object_spilling_directory".split()
)
NAMESPACE_VARIABLE = "RAY_MONO_NAMESPACE"
LOG_TO_DRIVER_VARIABLE = "RAY_MONO_LOG_TO_DRIVER"
RUNTIME_ENV_HOOK_VARIABLE = "RAY_MONO_RUNTIME_ENV_HOOK"
"""Names a module.function. It is given the runtime_env that `init` was given, or None, and returns the one
that is used."""
logger = logging.getLogger("ray_mono")

LOG_FORMAT = "%(asctime)s\t%(levelname)s %(name)s -- %(message)s"


# Arguments of Ray for parts that are not here: the values that ask for nothing, and the part.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "include_dashboard": ((None, False), "the dashboard is"),
    "dashboard_host": ((None, "127.0.0.1", "localhost"), "the dashboard is"),
    "dashboard_port": ((None,), "the dashboard is"),
    "enable_resource_isolation": ((None, False), "resource isolation by control groups is"),
    "cgroup_path": ((None,), "resource isolation by control groups is"),
    "system_reserved_cpu": ((None,), "resource isolation by control groups is"),
    "system_reserved_memory": ((None,), "resource isolation by control groups is"),
    "proxy_server_url": ((None,), "Ray Client is"),
    "_tracing_startup_hook": ((None,), "tracing is"),
    "_plasma_directory": ((None,), "a directory of one's own for the object store is"),
    "_node_name": ((None,), "a name of one's own for a node is"),
    "_metrics_export_port": ((None,), "the export of metrics is"),
    "_redis_username": ((None, "", "default"), "a user name beside the cluster's secret is"),
}


def refuse_what_is_not_here(
    include_dashboard: bool | None,
    dashboard_host: str | None,
    dashboard_port: int | None,
    private: Mapping[str, Any],
) -> None:
    """Raises NotImplementedError for arguments of parts that are not here.

    Unknown ones are a RuntimeError, as in Ray.
    """
    dashboard = {
        "include_dashboard": include_dashboard,
        "dashboard_host": dashboard_host,
        "dashboard_port": dashboard_port,
    }
    given = {**dashboard, **private}
    for name, value in given.items():
        harmless, part = _REFUSED.get(name, ((value,), ""))
        if value not in harmless:
            raise NotImplementedError(
                f"init({name}={value!r}): {part} not part of ray_mono yet: leave it out"
            )
    if private.get("storage"):
        raise RuntimeError(
            "init() has no argument storage, which Ray has removed as well: name where objects are spilled by"
            " _object_spilling_directory, and keep your own files by a library of your choice"
        )
    unknown = sorted(given.keys() - PRIVATE - _REFUSED.keys())
    if unknown:
        raise RuntimeError(f"init() has no argument {', '.join(unknown)}")


def make(
    *,
    logging_level: int | str,
    log_to_driver: bool | None,
    namespace: str | None,
    runtime_env: Mapping[str, Any] | None,
    job_config: JobConfig | Mapping[str, Any] | None,
    private: Mapping[str, Any],
    logging_config: LoggingConfig | None = None,
    **node: Any,
) -> InitArguments:
    """node: address, num_cpus, num_gpus, resources, labels, object_store_memory. Raises TypeError or
    ValueError.
    """
    _check_address(node["address"])
    if private.get("_driver_object_store_memory") is not None:
        logger.warning(
            "init(_driver_object_store_memory=...) is deprecated in Ray, and has no effect: leave it out"
        )
    if not flag("_skip_env_hook", private.get("_skip_env_hook", False)):
        runtime_env = _hooked(runtime_env)
    if job_config is not None and not isinstance(job_config, JobConfig | Mapping):
        raise TypeError(
            f"job_config must be a JobConfig or a dict, got {job_config!r} of type"
            f" {type(job_config).__name__}"
        )
    # Lost objects are always made again, so that it changes nothing.
    flag("_enable_object_reconstruction", private.get("_enable_object_reconstruction") or False)
    if node["labels"] is not None:
        check_labels(node["labels"])
    _check_system_config(private.get("_system_config"))
    _check_text("_node_ip_address", private.get("_node_ip_address"))
    if not isinstance(private.get("_redis_password"), str | None):
        raise TypeError(
            "_redis_password must be a string or None, got one of type"
            f" {type(private['_redis_password']).__name__}"
        )
    temp_dir = private.get("_temp_dir")
    if isinstance(temp_dir, os.PathLike):
        temp_dir = os.fspath(temp_dir)
    _check_text("_temp_dir", temp_dir)
    if log_to_driver is not None:
        log_to_driver = flag("log_to_driver", log_to_driver)
    config = job_config if isinstance(job_config, JobConfig) else JobConfig.from_json(job_config or {})
    logging_config = config.py_logging_config if logging_config is None else logging_config
    if logging_config is not None and not isinstance(logging_config, LoggingConfig):
        raise TypeError(f"logging_config must be a LoggingConfig, got {logging_config!r}")
    for env in (runtime_env, config.runtime_env):
        if env is not None:
            runtime_envs.check(env)
    for name in ("num_cpus", "num_gpus"):
        node[name] = _amount(name, node[name], is_whole=True)
    node["object_store_memory"] = _amount("object_store_memory", node["object_store_memory"])
    if node["resources"] is not None:
        node["resources"] = custom_resources(node["resources"])
    namespace = config.ray_namespace if namespace is None else namespace
    if namespace is None:
        namespace = os.environ.get(NAMESPACE_VARIABLE) or None
    if log_to_driver is None:
        log_to_driver = os.environ.get(LOG_TO_DRIVER_VARIABLE, "1").lower() not in ("0", "false")
    if namespace is not None:
        check_namespace(namespace)
    return InitArguments(
        **node,
        memory=_amount("_memory", private.get("_memory")),
        node_ip_address=private.get("_node_ip_address"),
        password=private.get("_redis_password"),
        temp_dir=temp_dir,
        object_spilling_directory=_spilling_directory(private),
        system_config=private.get("_system_config") or {},
        log_to_driver=log_to_driver,
        log_level=level_name(logging_level),
        namespace=namespace or anonymous_namespace(),
        runtime_env=runtime_env,
        job_config=config,
        logging_config=logging_config,
    )


def _hooked(runtime_env: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the hook makes of it, if the environment names one. Raises ValueError where the hook cannot be
    loaded."""
    name = os.environ.get(RUNTIME_ENV_HOOK_VARIABLE)
    if not name:
        return runtime_env
    module_name, _, function_name = name.rpartition(".")
    try:
        hook = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{RUNTIME_ENV_HOOK_VARIABLE} must be module.function, got {name!r}: {error}"
        ) from error
    hooked: Mapping[str, Any] | None = hook(runtime_env)
    return hooked


def _check_text(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a string or None, got {value!r}")
    if value is not None and not is_sendable(value):
        raise ValueError(f"{name} must be valid Unicode, got {value!r}")


def _check_address(address: Any) -> None:
    _check_text("address", address)
    if address == "":
        raise ValueError("address must be 'host:port', 'auto', 'local' or None, got ''")
    if address and address.startswith("ray://"):
        raise NotImplementedError(
            f"address={address!r}: the client server is not part of ray_mono yet; on a machine of the"
            " cluster use address='auto' or 'host:port'"
        )


def _check_system_config(config: Any) -> None:
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise TypeError(
            f"_system_config must be a dict from services to dicts of their settings, got {config!r}"
        )
    ray_settings.check(config)


def _spilling_directory(private: Mapping[str, Any]) -> str | None:
    """Ray's name, or the one that says that it is private."""
    given = [
        value
        for name in ("_object_spilling_directory", "object_spilling_directory")
        if (value := private.get(name)) is not None
    ]
    if not given:
        return None
    directory = os.fspath(given[0]) if isinstance(given[0], os.PathLike) else given[0]
    _check_text("_object_spilling_directory", directory)
    text: str = directory
    return text


def _amount(name: str, given: Any, is_whole: bool = False) -> Any:
    return None if given is None else amount(name, given, is_whole=is_whole)


def check_namespace(namespace: Any) -> None:
    """Raises TypeError or ValueError for what cannot be a namespace."""
    if not isinstance(namespace, str):
        raise TypeError(f"namespace must be a string or None, got {namespace!r}")
    if not namespace:
        raise ValueError("namespace must not be empty; None gives this driver one of its own")
    if not is_sendable(namespace):
        raise ValueError(f"namespace must be valid Unicode, got {namespace!r}")


def level_name(level: int | str) -> str:
    """One of LOG_LEVELS, for a level as `logging` has it: a number, or a name in any case.

    Raises ValueError.
    """
    name = logging.getLevelName(level) if isinstance(level, int) else str(level)
    name = {"critical": "error", "fatal": "error", "warn": "warning", "notset": "debug"}.get(
        name.lower(), name.lower()
    )
    if name not in LOG_LEVELS:
        raise ValueError(
            f"logging_level must be one of {', '.join(LOG_LEVELS)} or a number of logging's, got {level!r}"
        )
    return name


def configure_logger(logger: logging.Logger, level: int | str, log_format: str | None) -> None:
    """Has ray_mono's messages in this process printed on stderr, unless the program has arranged for them
    already.
    """
    if log_format is not None and not isinstance(log_format, str):
        raise TypeError(f"logging_format must be a format of logging's, a string, got {log_format!r}")
    logger.setLevel(level_name(level).upper())
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(log_format or LOG_FORMAT))
    logger.addHandler(handler)
    logger.propagate = False

"""The driver's life: `init`, `shutdown`, and what this process is to its cluster.

A process is connected while `core_worker.process.current` has a core worker. In a worker
`core_worker/process/worker.py` puts it there. In a driver `init` does, and keeps in `_connection` the node
that it has started or joined.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_mono._private.argument_checks import flags
from ray_mono._private.driver import init_arguments
from ray_mono._private.driver.ray_context import RayContext
from ray_mono.common.exceptions import RayError, RaySystemError
from ray_mono.core_worker.process import current

if TYPE_CHECKING:
    from ray_mono._private.logs.logging_config import LoggingConfig
    from ray_mono._private.node.node import Node
    from ray_mono.core_worker.interface import CoreInterface
    from ray_mono.job_config import JobConfig

logger = logging.getLogger("ray_mono")
__tracebackhide__ = True  # for pytest: the line that called one of these says more

# What a process is to its cluster. Only a driver (SCRIPT_MODE) prints the failures of its job.
SCRIPT_MODE = 0
WORKER_MODE = 1
LOCAL_MODE = 2


@dataclass(frozen=True)
class _Connection:
    """What `init` made."""

    core: CoreInterface
    node: Node | None
    mode: int
    context: RayContext
    pid: int


_connection: _Connection | None = None
# Held while a session is made or ended. Reentrant, since a function run on all workers may call us.
_lock = threading.RLock()
# Given to run_function_on_all_workers; every new session runs them again.
_functions_for_workers: list[Callable[[dict[str, Any]], None]] = []


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    object_store_memory: int | None = None,
    local_mode: bool = False,
    ignore_reinit_error: bool = False,
    include_dashboard: bool | None = None,
    dashboard_host: str = "127.0.0.1",
    dashboard_port: int | None = None,
    job_config: JobConfig | Mapping[str, Any] | None = None,
    configure_logging: bool = True,
    logging_level: int | str = "info",
    logging_format: str | None = None,
    logging_config: LoggingConfig | None = None,
    log_to_driver: bool | None = None,
    namespace: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    **private: Any,
) -> RayContext:
    """Connects this process to a cluster, as a driver. Starts a cluster if none is meant.

    Args:
        address: "host:port" joins that cluster; several with commas between them: the one whose newest head
            is at one of these. A head that is away is waited for, a minute at most. "auto" joins the one that
            RAY_MONO_ADDRESS names, else this user's cluster on this machine that `start` made. "local" starts
            one. None does as "auto", and starts one if there is none. One that is started here ends with this
            process.
        num_cpus, num_gpus, resources (a dict from names to numbers), object_store_memory (bytes), labels (a
            dict of strings): of a new cluster's node; by default what the machine has.
        local_mode: tasks run in this process, one after another, without a cluster.
        ignore_reinit_error: return the present context if this process is connected already.
        include_dashboard, dashboard_host, dashboard_port: there is no dashboard yet, and what asks for one is
            refused.
        job_config: a JobConfig, or a dict of its fields. Other arguments win.
        log_to_driver: print here what workers of this job print. None: as RAY_MONO_LOG_TO_DRIVER says, else
            True.
        namespace: where this driver's named actors live. None: RAY_MONO_NAMESPACE, else one of its own.
        runtime_env: a dict, for the workers of this job. Of its fields "env_vars" works so far; others are
            refused.
        configure_logging, logging_level, logging_format: of ray_mono's own logger, and the cluster's logs.
        logging_config: of all log messages, here and in workers; see LoggingConfig.
        private: _node_ip_address, _redis_password (the cluster's secret), _temp_dir, _system_config, _memory
            (bytes), _skip_env_hook, _object_spilling_directory, _enable_object_reconstruction (always so).

    Returns a RayContext: a mapping of addresses, with "node_id" and "address", that shuts down at the end of
    a `with` statement.

    Raises RuntimeError if the process is connected already, a service does not start, the cluster runs
    another version, or an argument is unknown; ConnectionError if no cluster answers, AuthenticationError if
    it refuses the secret; NotImplementedError for parts that are not there; ValueError or TypeError for
    arguments that cannot be; RaySystemError while the interpreter ends.
    """
    global _connection
    flags(local_mode=local_mode, ignore_reinit_error=ignore_reinit_error, configure_logging=configure_logging)
    if sys.is_finalizing():
        raise RaySystemError(current.ENDING_MESSAGE)
    with _lock:
        if is_initialized():
            return _present_context(ignore_reinit_error)
        init_arguments.refuse_what_is_not_here(include_dashboard, dashboard_host, dashboard_port, private)
        if configure_logging:
            init_arguments.configure_logger(logger, logging_level, logging_format)
        arguments = init_arguments.make(
            address=address,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            labels=labels,
            object_store_memory=object_store_memory,
            log_to_driver=log_to_driver,
            logging_level=logging_level,
            namespace=namespace,
            runtime_env=runtime_env,
            job_config=job_config,
            logging_config=logging_config,
            private=private,
        )
        _connection = _start(arguments, local_mode)
        atexit.register(_shutdown_at_exit)
        _run_kept_functions(_connection.core)
        return _connection.context


def _run_kept_functions(core: CoreInterface) -> None:
    try:
        for function in _functions_for_workers:
            core.run_function_on_all_workers(function)
    except BaseException:
        shutdown()
        raise


def _present_context(ignore_reinit_error: bool) -> RayContext:
    if not ignore_reinit_error:
        raise RuntimeError(
            "init() was called, but this process is connected already: call shutdown() first, or pass"
            " ignore_reinit_error=True"
        )
    logger.info("init() was called again and returns the connection that there is.")
    if _connection is not None:
        return _connection.context
    core = current.require()
    return RayContext(
        {"node_id": core.node_id.hex(), "session_dir": core.session_dir, "address": None}, shutdown
    )


def _start(arguments: Any, local_mode: bool) -> _Connection:
    if arguments.logging_config is not None:
        arguments.logging_config.apply()
    return _connect_locally(arguments) if local_mode else _connect(arguments)


def _connect(arguments: Any) -> _Connection:
    from ray_mono._private.driver import connection

    connection.raise_open_files_limit()
    core, node = connection.connect(arguments)
    current.set(core)
    return _Connection(core, node, SCRIPT_MODE, RayContext(node.address_info, shutdown), os.getpid())


def _connect_locally(arguments: Any) -> _Connection:
    from ray_mono._private.local_mode.local_core import LocalCore

    resources = {"CPU": arguments.num_cpus, "GPU": arguments.num_gpus, **(arguments.resources or {})}
    if arguments.num_cpus is None:
        resources["CPU"] = os.cpu_count() or 1
    given = {name: amount for name, amount in resources.items() if amount is not None}
    core: CoreInterface = LocalCore(arguments.namespace, given)
    current.set(core)
    context = RayContext({"node_id": core.node_id.hex(), "address": "local", "session_dir": ""}, shutdown)
    return _Connection(core, None, LOCAL_MODE, context, os.getpid())


def shutdown(*, wait_for_processes: bool = False, _exiting_interpreter: bool = False) -> None:
    """Leaves the cluster, and ends it if `init` started it. Then its processes are gone when this returns.

    Does nothing if `init` was not called, in a worker, and in a fork. `init` may be called again afterwards.
    The arguments are Ray's, and have no effect.
    """
    global _connection
    with _lock:
        connection = _connection
        if connection is None or connection.pid != os.getpid():
            return
        _connection = None
        atexit.unregister(_shutdown_at_exit)
        current.set(None)
        try:
            connection.core.shutdown()
        finally:
            if connection.node is not None:
                connection.node.kill_all_processes()


def joined_node() -> Node | None:
    """The node that `init` started or joined; None in workers, in local mode, and where not connected."""
    return None if _connection is None else _connection.node


def _shutdown_at_exit() -> None:
    _let_threads_end_silently()
    # A Ctrl-C has done what it should: it has made the end shorter.
    with contextlib.suppress(KeyboardInterrupt):
        shutdown()


def _let_threads_end_silently() -> None:
    """Daemon threads may stand in a call, or make one, when the interpreter ends. What it raises then ends
    them, and is nobody's mistake."""
    show = threading.excepthook

    def show_others(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or not _is_of_a_call(args.exc_value):
            show(args)

    threading.excepthook = show_others


def _is_of_a_call(error: BaseException) -> bool:
    """Whether the API raised it, or a future of the API's."""
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, RayError) or (last.f_globals.get("__name__") or "").startswith("ray_mono.")


def is_initialized() -> bool:
    """Whether this process is connected: after `init`, and in every worker."""
    return current.core is not None


def mode() -> int | None:
    """SCRIPT_MODE, WORKER_MODE or LOCAL_MODE; None where not connected."""
    if _connection is not None:
        return _connection.mode
    return WORKER_MODE if is_initialized() else None


def run_function_on_all_workers(function: Callable[[dict[str, Any]], None]) -> None:
    """Runs `function(worker_info)` once here and once in every worker of this job, also in later ones.

    worker_info is a dict with "worker". Before `init` the function is kept, and the next and every later
    `init` runs it. Raises what the function raises here, and then no worker runs it; TypeError for what is
    not callable.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r} of type {type(function).__name__}")
    with _lock:
        core = current.core
        if core is not None:
            core.run_function_on_all_workers(function)
        if mode() != WORKER_MODE:
            _functions_for_workers.append(function)

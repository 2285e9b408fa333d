"""How a driver becomes part of a cluster: one of its own, which it starts, or one that runs.

`InitArguments` is what `init` was given, checked. Starting and finding nodes is Node's, speaking to them the
core worker's; here is what lies between: which cluster is meant, what the job tells its workers, and where
errors go.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ray_mono._private.logs.logging_config import JOB_CONFIG_KEY, LoggingConfig
from ray_mono._private.runtime_env import runtime_env as runtime_envs
from ray_mono.common.exceptions import AuthenticationError
from ray_mono.common.output import write_text
from ray_mono.job_config import JobConfig
from ray_mono.protobuf import common_pb2

if TYPE_CHECKING:
    from ray_mono._private.logs.log_printing import LogPrinter
    from ray_mono._private.node.bootstrap import ClusterAddress
    from ray_mono._private.node.node import Node
    from ray_mono._private.node.parameter import RayParams
    from ray_mono.core_worker.interface import CoreInterface

logger = logging.getLogger("ray_mono")

# Sockets to workers and mapped files add up; shells often start programs with 1024.
OPEN_FILES_WANTED = 65536
OPEN_FILES_FEW = 4096
"""Ray's bound as well: each worker, driver and node that this process talks to takes one or two."""
LOOPBACK = "127.0.0.1"
# "module:function" that every worker of our jobs calls first, with the job's configuration.
worker_setup: list[str] = []
LOGGING_SETUP = "ray_mono._private.logs.logging_config:configure_worker"


@dataclass(frozen=True)
class InitArguments:
    """Arguments of `init` that say which cluster, and what this driver is to it."""

    address: str | None
    num_cpus: float | None
    num_gpus: float | None
    resources: Mapping[str, float] | None
    labels: Mapping[str, str] | None
    object_store_memory: int | None
    memory: int | None
    log_to_driver: bool
    log_level: str
    namespace: str
    runtime_env: Mapping[str, Any] | None
    job_config: JobConfig
    node_ip_address: str | None
    password: str | None
    temp_dir: str | None
    object_spilling_directory: str | None = None
    system_config: Mapping[str, Any] = field(default_factory=dict)
    logging_config: LoggingConfig | None = None

    def check_joining(self) -> None:
        """Raises ValueError if something was given that only a new cluster can be given."""
        for name in (
            "num_cpus",
            "num_gpus",
            "resources",
            "labels",
            "object_store_memory",
            "memory",
            "system_config",
            "object_spilling_directory",
        ):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} was given, but this joins a cluster that runs, whose"
                    " nodes have what they have; address='local' starts a new one"
                )


def anonymous_namespace() -> str:
    """A name that nobody else has: named actors are private to a driver unless it says otherwise."""
    return str(uuid.uuid4())


def connect(arguments: InitArguments) -> tuple[CoreInterface, Node]:
    """Starts or finds the cluster, and joins it as a driver.

    Raises ConnectionError where no cluster answers, AuthenticationError where it refuses the secret,
    ValueError for arguments that cannot be, RuntimeError for a cluster of another version, and what Node
    raises. Nothing is left behind then.
    """
    from ray_mono._private.node.bootstrap import find_cluster
    from ray_mono._private.node.node import Node
    from ray_mono._private.node.parameter import RayParams

    cluster = find_cluster(arguments.address)
    params = RayParams(
        redis_password=arguments.password, temp_dir=arguments.temp_dir, log_level=arguments.log_level
    )
    if cluster is None:
        params.update(
            num_cpus=arguments.num_cpus,
            num_gpus=arguments.num_gpus,
            resources=arguments.resources,
            labels=arguments.labels,
            object_store_memory=arguments.object_store_memory,
            memory=arguments.memory,
            system_config=arguments.system_config,
            object_spilling_directory=arguments.object_spilling_directory,
            node_ip_address=arguments.node_ip_address or LOOPBACK,
            include_log_monitor=arguments.log_to_driver,
        )
        node = Node(params, head=True, meanwhile=_import_core_worker)
        if not node.secret:
            logger.warning(
                "The password is empty, so there is no authentication: everybody who reaches %s can run code"
                " as this user.",
                node.gcs_address,
            )
    else:
        arguments.check_joining()
        params.update(node_ip_address=arguments.node_ip_address)
        node = _join(params, cluster, arguments.password)
    from ray_mono.core_worker.process import driver

    try:
        printer = _log_printer(node.node_ip_address, arguments) if arguments.log_to_driver else None
        job_config = _job_config(arguments)
        core: CoreInterface = driver.connect_driver(
            driver.DriverConfig(
                raylet_socket=node.raylet_socket_name,
                gcs_address=node.gcs_address,
                session_dir=node.session_dir,
                secret=node.secret,
                namespace=arguments.namespace,
                default_actor_lifetime=arguments.job_config.default_actor_lifetime,
                runtime_env=json.dumps(job_config["runtime_env"]),
                job_config=job_config,
                entrypoint=command_line(),
                on_error=print_error,
                on_log=printer,
                log_level=arguments.log_level,
                node_host=node.node_ip_address,
                why_node_ended=node.why_ended,
            )
        )
    except BaseException:
        node.kill_all_processes()
        raise
    if printer is not None:
        core.at_shutdown(printer.close)
    return core, node


def _join(params: RayParams, cluster: ClusterAddress, password: str | None) -> Node:
    # Not at the top: a cluster of one's own is started without what these import.
    from ray_mono._private.node.gcs_query import SecretRefusedError
    from ray_mono._private.node.head_finder import locate_head
    from ray_mono._private.node.node import Node
    from ray_mono.rpc.auth import SecretNotFoundError

    try:
        cluster = locate_head(cluster, password)
        params.update(gcs_address=cluster.address)
        return Node(params, connect_only=True, session_dir=cluster.session_dir)
    except (SecretNotFoundError, SecretRefusedError) as error:
        raise AuthenticationError(str(error)) from None


def _import_core_worker() -> None:
    """Half of what a driver imports, and nothing that starting the node's processes needs."""
    importlib.import_module("ray_mono.core_worker.process.driver")


def command_line() -> str:
    """The program's command line. The program may have put anything into sys.argv."""
    return " ".join(map(str, getattr(sys, "argv", None) or ()))


def _job_config(arguments: InitArguments) -> dict[str, Any]:
    config = arguments.job_config
    log_config = arguments.logging_config
    env = arguments.runtime_env if arguments.runtime_env is not None else config.runtime_env
    serialized = runtime_envs.serialize(env)
    fields = json.loads(serialized) if serialized else {}
    first, last = driver_sys_path()
    return {
        "sys_path": [*config.code_search_path, *first],
        "sys_path_last": last,
        "env_vars": fields.get("env_vars", {}),
        "runtime_env": fields,
        "metadata": dict(config.metadata),
        "default_actor_lifetime": config.default_actor_lifetime,
        "setup": [*worker_setup, *([LOGGING_SETUP] if log_config else [])],
        JOB_CONFIG_KEY: log_config.to_dict() if log_config else None,
    }


def driver_sys_path() -> tuple[list[str], list[str]]:
    """Directories whose modules the driver can import, so that its workers should, too: (those that come
    first on their path, those that come last).

    The script's directory comes first, as on the driver; an interactive driver has none. The current one
    comes first if it does so on the driver. Otherwise it comes last: what lies there by chance must not stand
    in for modules that the driver has from elsewhere. With `python -P` the driver searches neither, and so
    its workers do not.
    """
    if sys.flags.safe_path:
        return [], []
    first = []
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    if script and getattr(main, "__spec__", None) is None and not hasattr(sys, "ps1"):
        first.append(os.path.dirname(os.path.realpath(script)))
    try:
        current = os.getcwd()
    except FileNotFoundError:  # it was removed
        return first, []
    if current in first:
        return first, []
    if "" in sys.path or current in sys.path:
        return [*first, current], []
    return first, [current]


def print_error(error: common_pb2.ErrorInfo) -> None:
    """Shows the user a message of the cluster for this job, as of a task that waits for what no node has."""
    write_text(sys.stderr, f"(ray_mono) {error.message}\n")


def _log_printer(own_host: str, arguments: InitArguments) -> LogPrinter:
    from ray_mono._private.logs.log_printing import LogPrinter

    return LogPrinter(own_host, with_prefix=arguments.logging_config is None)


def raise_open_files_limit() -> None:
    """Raises the soft limit of open files as far as is useful and allowed, and warns if it stays low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:
            logger.debug("the limit of open files could not be raised to %d: %s", wanted, error)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_FEW:
        logger.warning(
            "Only %d files may be open in this process, and connections count: large programs will fail."
            " Have 'ulimit -n' say 8192 or more.",
            soft,
        )

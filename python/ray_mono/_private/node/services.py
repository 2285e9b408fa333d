"""The command lines of a node's services, and how one of them is started.

Every service is `python -P -m ray_mono.<package>.<module>` under the interpreter that runs now. It finds the
package where this process found it: in a checkout, Bazel's runfiles or an installation. The secret travels in
the environment, since every user can read a command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ray_mono._private.node import spilling
from ray_mono._private.node.node_plan import NodePlan
from ray_mono._private.node.reaper_client import ReaperHandle, ServiceSpec
from ray_mono._private.node.service_process import END_NODE, GO_ON, START_AGAIN
from ray_mono._private.node.session import NodePaths
from ray_mono.common.process import module_command

REDIS_ADDRESS_VARIABLE = "RAY_MONO_REDIS_ADDRESS"
REDIS_USERNAME_VARIABLE = "RAY_MONO_REDIS_USERNAME"
REDIS_PASSWORD_VARIABLE = "RAY_MONO_REDIS_PASSWORD"

GCS = "gcs_server"
OBJECT_MANAGER = "object_manager"
TEMPLATE = "worker_template"
RAYLET = "raylet"
LOG_MONITOR = "log_monitor"

_MODULES = {
    GCS: "ray_mono.gcs.gcs_server",
    OBJECT_MANAGER: "ray_mono.object_manager.object_manager",
    TEMPLATE: "ray_mono.core_worker.process.worker_template",
    RAYLET: "ray_mono.raylet.raylet",
    LOG_MONITOR: "ray_mono._private.logs.log_monitor",
}
# What the reaper imports before it forks the template, then the head, then the others. One starts while the
# next is imported.
_COMMON_MODULES = (
    "setproctitle",
    "asyncio",
    "ray_mono.protobuf.core_worker_pb2",
    "ray_mono.protobuf.gcs_rpc",
)
_REDIS_STORAGE = "ray_mono.gcs.storage.redis_storage"
_HEAD_MODULES = ("encodings.idna", _MODULES[GCS])
_SERVICE_MODULES = ("encodings.idna", _MODULES[OBJECT_MANAGER], _MODULES[RAYLET], _MODULES[LOG_MONITOR])


def start_ray_process(
    reaper: ReaperHandle,
    name: str,
    argv: Sequence[str],
    paths: NodePaths,
    env: Mapping[str, str],
    *,
    cwd: str | None = None,
    wants_ready: bool = True,
    after_exit: str = END_NODE,
    link: tuple[str, str] | None = None,
    module: str = "",
    imports: Sequence[str] = (),
) -> None:
    """Has the reaper start a process, and does not wait for it. Its output goes to logs/<name>.out and .err.

    cwd: None is this process's. after_exit, link, module, imports: as in ServiceSpec.
    """
    reaper.start(
        ServiceSpec(
            name=name,
            argv=list(argv),
            env=dict(env),
            stdout=paths.log(name, "out"),
            stderr=paths.log(name, "err"),
            cwd=cwd,
            wants_ready=wants_ready,
            after_exit=after_exit,
            link=link,
            module=module,
            imports=list(imports),
        )
    )


def start_gcs_server(reaper: ReaperHandle, plan: NodePlan) -> None:
    params, env = plan.params, dict(plan.env)
    if params.redis_embedded:
        storage = ["--storage", "redis", "--redis-embedded"]
    elif params.redis_address is not None:
        storage = ["--storage", "redis"]
        if params.redis_namespace is not None:
            storage += ["--redis-namespace", params.redis_namespace]
        env[REDIS_ADDRESS_VARIABLE] = params.redis_address
        for variable, value in (
            (REDIS_USERNAME_VARIABLE, params.redis_username),
            (REDIS_PASSWORD_VARIABLE, params.redis_password),
        ):
            if value is not None:
                env[variable] = value
    else:
        storage = ["--storage", "file", "--storage-path", str(plan.paths.session.path / "gcs.sqlite")]
    # Else each head that is started again imports Redis's client first, while all wait.
    store = () if storage[1] == "file" else (_REDIS_STORAGE,)
    host, _, port = plan.gcs_address.rpartition(":")
    arguments = ["--host", host, "--port", port, "--unix-socket", plan.paths.socket("gcs"), *storage]
    if plan.system_config:
        arguments += ["--config", json.dumps(dict(plan.system_config))]
    argv = _module(_MODULES[GCS], plan, arguments)
    start_ray_process(
        reaper,
        GCS,
        argv,
        plan.paths,
        env,
        after_exit=GO_ON if params.keep_node_without_gcs else START_AGAIN,
        module=_MODULES[GCS],
        imports=(*_HEAD_MODULES, *store),
    )


def start_object_manager(reaper: ReaperHandle, plan: NodePlan) -> None:
    arguments = [
        *("--node-id", plan.paths.node_id, "--gcs-address", plan.gcs_endpoint),
        *("--store-socket", plan.paths.socket("plasma_store"), "--store-file", plan.paths.store_file),
        *("--capacity-bytes", str(int(plan.resources["object_store_memory"]))),
        *("--host", plan.node_ip_address, "--port", str(plan.object_manager_port)),
    ]
    for directory in plan.spilling_directories:
        arguments += ["--object-spilling-directory", directory]
    settings = {**spilling.settings(plan.system_config), **plan.system_config.get(OBJECT_MANAGER, {})}
    if settings:
        arguments += ["--config", json.dumps(settings)]
    argv = _module(_MODULES[OBJECT_MANAGER], plan, arguments)
    start_ray_process(
        reaper,
        OBJECT_MANAGER,
        argv,
        plan.paths,
        plan.env,
        module=_MODULES[OBJECT_MANAGER],
        imports=_SERVICE_MODULES,
    )


def start_worker_template(reaper: ReaperHandle, plan: NodePlan) -> None:
    """The raylet's first template, started beside it: its imports take longest, and nothing has to wait for
    them.

    Should it die, the raylet starts another itself.
    """
    arguments = [
        *("--raylet-socket", plan.paths.socket("raylet"), "--gcs-address", plan.gcs_endpoint),
        *("--node-host", plan.node_ip_address),
    ]
    argv = _module(_MODULES[TEMPLATE], plan, arguments)
    link = (TEMPLATE, "--command-fd")
    start_ray_process(
        reaper,
        TEMPLATE,
        argv,
        plan.paths,
        plan.env,
        wants_ready=False,
        after_exit=GO_ON,
        link=link,
        module=_MODULES[TEMPLATE],
        imports=_COMMON_MODULES,
    )


def start_raylet(reaper: ReaperHandle, plan: NodePlan) -> None:
    params = plan.params
    arguments = [
        *("--node-id", plan.paths.node_id, "--gcs-address", plan.gcs_endpoint),
        *("--socket", plan.paths.socket("raylet")),
        *("--host", plan.node_ip_address, "--port", str(plan.node_manager_port)),
        *("--store-socket", plan.paths.socket("plasma_store"), "--store-file", plan.paths.store_file),
        *("--object-manager-port", str(plan.object_manager_port)),
        *("--resources", json.dumps(dict(plan.resources)), "--labels", json.dumps(dict(plan.labels))),
        *(["--is-head"] if plan.paths.is_head else []),
        *(["--head-stays-here"] if plan.paths.is_head and params.redis_address is None else []),
    ]
    for address in params.other_gcs_addresses:
        arguments += ["--other-gcs-address", address]
    if params.maximum_startup_concurrency is not None:
        arguments += ["--maximum-startup-concurrency", str(params.maximum_startup_concurrency)]
    if params.num_prestart_workers is not None:
        arguments += ["--num-prestart-workers", str(params.num_prestart_workers)]
    settings = plan.system_config.get(RAYLET)
    if settings:
        arguments += ["--config", json.dumps(settings)]
    argv = _module(_MODULES[RAYLET], plan, arguments)
    start_ray_process(
        reaper, RAYLET, argv, plan.paths, plan.env, link=(TEMPLATE, "--template-fd"), module=_MODULES[RAYLET]
    )


def start_log_monitor(reaper: ReaperHandle, plan: NodePlan) -> None:
    """Nobody waits for it, and the node lives without it."""
    arguments = [
        *("--gcs-address", plan.gcs_endpoint),
        *("--node-ip", plan.node_ip_address, "--node-id", plan.paths.node_id),
        *("--raylet-socket", plan.paths.socket("raylet")),
    ]
    argv = _module(_MODULES[LOG_MONITOR], plan, arguments)
    start_ray_process(
        reaper,
        LOG_MONITOR,
        argv,
        plan.paths,
        plan.env,
        wants_ready=False,
        after_exit=START_AGAIN,
        module=_MODULES[LOG_MONITOR],
    )


def _module(module: str, plan: NodePlan, arguments: Sequence[str]) -> list[str]:
    common = ["--session-dir", str(plan.paths.session.path), "--log-level", plan.params.log_level]
    return [*module_command(module), *arguments, *common]

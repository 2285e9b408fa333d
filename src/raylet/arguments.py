"""The raylet's command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_mono.common import process
from ray_mono.common.ids import NodeID
from ray_mono.common.scheduling.labels import NODE_ID_LABEL
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.service import add_common_arguments, refuse_settings
from ray_mono.common.world import system_rng
from ray_mono.raylet.config import RayletConfig, complaint_about
from ray_mono.rpc.auth import SecretFileError, SecretNotFoundError, find_secret

TEMPLATE_MODULE = "ray_mono.core_worker.process.worker_template"
WORKER_EXIT_GRACE_S = 2.0
"""When the raylet stops: between SIGTERM and SIGKILL for its workers. Its own close must fit into
service.STOP_TIMEOUT_S.
"""
SETTINGS = (
    "gcs_reconnect_timeout_s",
    "idle_worker_timeout_s",
    "max_lineage_bytes",
    "memory_monitor_refresh_ms",
    "memory_usage_threshold",
    "memory_kill_wait_s",
    "memory_root",
    "report_period_s",
    "task_oom_retries",
    "task_oom_retry_delay_base_ms",
    "worker_exit_grace_s",
    "worker_register_timeout_s",
)
"""Of RayletConfig; those that --config takes."""
RAYS = frozenset(
    {
        "max_lineage_bytes",
        "memory_monitor_refresh_ms",
        "memory_usage_threshold",
        "task_oom_retries",
        "task_oom_retry_delay_base_ms",
    }
)
"""Of these, those that Ray knows by the same name."""
VARIABLE_PREFIX, RAYS_PREFIX = "RAY_MONO_", "RAY_"
"""Before one of these it is an environment variable. The first wins over the second, --config over both."""


@dataclass(frozen=True)
class Arguments:
    """What main works with."""

    common: argparse.Namespace
    config: RayletConfig
    secret: str
    worker_module: str
    template_fd: int | None = None
    exit_grace_s: float = WORKER_EXIT_GRACE_S


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="raylet",
        description="A node's scheduler: leases, worker pool, resources. By hand, beside a gcs_server: "
        "raylet --gcs-address 127.0.0.1:6379 --session-dir DIR "
        "(without --store-socket no object can be stored).",
    )
    add_common_arguments(parser)
    add = parser.add_argument
    add("--gcs-address", required=True, metavar="ADDRESS", help='"host:port" or "unix:/path"')
    add(
        "--other-gcs-address",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="another place where the head may be; may be given several times",
    )
    add("--node-id", metavar="HEX", help="28 bytes in hex (default: a random one)")
    socket_help = "Unix socket for workers and drivers (default: SESSION_DIR/sockets/raylet)"
    add("--socket", metavar="PATH", help=socket_help)
    add(
        "--host",
        default="127.0.0.1",
        help="the node's address, to listen at and to tell others (default: 127.0.0.1)",
    )
    add("--port", type=int, default=0, help="TCP port (default: 0, any free one)")
    add(
        "--store-socket",
        default="",
        metavar="PATH",
        help="the object manager's Unix socket; without it there is no store",
    )
    add("--store-file", default="", metavar="PATH", help="the file that the store maps, for others to know")
    add(
        "--object-manager-port",
        type=int,
        default=0,
        metavar="N",
        help="the object manager's transfer port, likewise",
    )
    add(
        "--resources",
        default="",
        metavar="JSON",
        help='amounts by name, e.g. {"CPU": 2, "GPU": 1} (default: the CPUs)',
    )
    add("--labels", default="{}", metavar="JSON", help="labels of the node")
    add("--is-head", action="store_true", help="the GCS runs on this node")
    add(
        "--head-stays-here",
        action="store_true",
        help="no GCS elsewhere can take over: it has its store on this node",
    )
    _add_settings(parser)
    add(
        "--template-fd",
        type=int,
        metavar="N",
        help="socket to the --command-fd of a worker template that was started beside the raylet",
    )
    add(
        "--worker-module",
        default="",
        metavar="MODULE:FUNCTION",
        help="what a worker runs, for tests (default: the worker)",
    )
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--maximum-startup-concurrency",
        type=int,
        default=0,
        metavar="N",
        help="workers starting at once (0: max(4, CPUs))",
    )
    add(
        "--num-prestart-workers",
        type=int,
        default=-1,
        metavar="N",
        help="workers kept ready (-1: one for each CPU)",
    )
    add(
        "--config",
        default="{}",
        metavar="JSON",
        help='other settings, e.g. {"memory_usage_threshold": 0.9}: '
        + ", ".join(SETTINGS)
        + f". The environment may have them, too: {VARIABLE_PREFIX}memory_usage_threshold=0.9",
    )
    add("--idle-worker-timeout-s", type=float, default=RayletConfig.idle_worker_timeout_s, metavar="S")


def parse_arguments(arguments: list[str] | None = None) -> Arguments:
    """Exits with a message about what is wrong."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if not parsed.session_dir:
        parser.error("--session-dir is missing: workers write their logs to its logs/")
    try:
        return Arguments(
            parsed,
            make_config(parsed),
            find_secret(None, parsed.session_dir),
            parsed.worker_module,
            parsed.template_fd,
        )
    except (ValueError, SecretFileError, SecretNotFoundError) as error:
        refuse_settings(parser, error)


def make_config(parsed: argparse.Namespace) -> RayletConfig:
    """Raises ValueError. Makes the session's directories where they are missing."""
    units = _json_object(parsed.resources, "--resources") or {"CPU": os.cpu_count() or 1}
    labels = {name: str(value) for name, value in _json_object(parsed.labels, "--labels").items()}
    if NODE_ID_LABEL in labels:
        raise ValueError(f"--labels: {NODE_ID_LABEL} is a node's own id, and every node has it")
    for name in ("logs", "sockets"):
        os.makedirs(os.path.join(parsed.session_dir, name), mode=0o700, exist_ok=True)
    node_id = NodeID.from_hex(parsed.node_id) if parsed.node_id else NodeID.from_random(system_rng())
    return RayletConfig(
        node_id=node_id.binary(),
        gcs_address=parsed.gcs_address,
        other_gcs_addresses=tuple(parsed.other_gcs_address),
        socket_path=parsed.socket or os.path.join(parsed.session_dir, "sockets", "raylet"),
        host=parsed.host,
        port=parsed.port,
        session_dir=parsed.session_dir,
        total=ResourceSet.from_units(units),
        hostname=socket.gethostname(),
        labels={**labels, NODE_ID_LABEL: node_id.hex()},
        is_head=parsed.is_head,
        head_stays_here=parsed.head_stays_here,
        pid=os.getpid(),
        store_socket=parsed.store_socket,
        store_file=parsed.store_file,
        object_manager_port=parsed.object_manager_port,
        maximum_startup_concurrency=parsed.maximum_startup_concurrency,
        num_prestart_workers=parsed.num_prestart_workers,
        **{
            "idle_worker_timeout_s": parsed.idle_worker_timeout_s,
            **settings_of(parsed.config, os.environ),
        },
    )


def settings_of(config_json: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What --config and the environment say of SETTINGS. Raises ValueError naming what is wrong."""
    given: dict[str, tuple[str, Any]] = {}
    for name in SETTINGS:
        for prefix in (RAYS_PREFIX,) * (name in RAYS) + (VARIABLE_PREFIX,):
            if text := environ.get(prefix + name):
                is_text = isinstance(getattr(RayletConfig, name), str)
                given[name] = prefix + name, text if is_text else _number(text)
    overrides = _json_object(config_json, "--config")
    if unknown := sorted(overrides.keys() - set(SETTINGS)):
        raise ValueError(f"--config has no {unknown[0]!r}; it takes {', '.join(SETTINGS)}")
    given.update({name: (f"--config: {name}", value) for name, value in overrides.items()})
    for name, (where, value) in given.items():
        kind = type(getattr(RayletConfig, name))
        accepted = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, accepted):
            wanted = {int: "a whole number", float: "a number", str: "a text"}[kind]
            raise ValueError(f"{where} must be {wanted}, got {value!r}")
        if complaint := complaint_about(name, value):
            raise ValueError(f"{where} {complaint}, got {value!r}")
    return {name: value for name, (_, value) in given.items()}


def _number(text: str) -> int | float | str:
    """The text itself where it is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def template_command(arguments: Arguments) -> list[str]:
    """How the worker template is started. A service knows another only by its command line."""
    config = arguments.config
    command = process.module_command(TEMPLATE_MODULE)
    command += ["--raylet-socket", config.socket_path, "--gcs-address", config.gcs_address]
    command += ["--session-dir", config.session_dir, "--log-level", arguments.common.log_level]
    command += ["--node-host", config.host]
    return command + (["--worker-module", arguments.worker_module] if arguments.worker_module else [])


def _json_object(text: str, flag: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} takes JSON, got {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{flag} takes a JSON object, got {text!r}")
    return value

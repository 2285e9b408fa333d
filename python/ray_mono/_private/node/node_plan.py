"""All that is decided about a node before anything of it runs, so that its services can start at once.

What cannot be had (a port, an amount, a directory) fails here, where nothing has to be undone yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import site
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mono._private import ray_children
from ray_mono._private.node import elsewhere, ray_settings, spilling
from ray_mono._private.node.bootstrap import check_versions, node_ip_address, parse_address
from ray_mono._private.node.node_labels import node_labels
from ray_mono._private.node.parameter import RayParams
from ray_mono._private.node.ports import reserve_port
from ray_mono._private.node.resource_spec import machine_memory, node_resources
from ray_mono._private.node.session import (
    NodePaths,
    Session,
    SessionError,
    base_directory,
    create_session,
    join_session,
    open_session,
)
from ray_mono._private.node.store_place import StorePlace, place_store
from ray_mono.common.ids import NodeID
from ray_mono.common.our_bug import known
from ray_mono.rpc.auth import (
    TOKEN_FILE_NAME,
    TOKEN_VARIABLE,
    SecretNotFoundError,
    find_secret,
    generate_secret,
    write_secret,
)


@dataclass(frozen=True)
class NodePlan:
    """One node that is about to start."""

    paths: NodePaths
    params: RayParams
    secret: str
    env: Mapping[str, str]
    """The environment of its processes."""
    node_ip_address: str
    gcs_address: str
    """host:port"""
    gcs_endpoint: str
    """What the node's own services connect to: the GCS's Unix socket on the head, gcs_address elsewhere."""
    object_manager_port: int
    node_manager_port: int
    resources: Mapping[str, float]
    """In units."""
    labels: Mapping[str, str]
    system_config: Mapping[str, Any]
    """The cluster's, and this node's own."""

    @property
    def spilling_directories(self) -> list[str]:
        """Where its objects go for which its store has no room."""
        params, paths = self.params, self.paths
        return spilling.directories(self.system_config, params.object_spilling_directory, paths.session.path)

    @property
    def owned_files(self) -> list[str]:
        """What is removed when the node ends."""
        paths = self.paths
        owned = [paths.socket("raylet"), paths.socket("plasma_store"), paths.store_file, str(paths.record)]
        if paths.is_head:
            owned += [paths.socket("gcs"), paths.socket("redis"), str(paths.session.path / TOKEN_FILE_NAME)]
        owned += spilling.node_directories(self.spilling_directories, paths.node_id)
        entry = elsewhere.entry_of(paths.session.path, paths.node_id)
        if entry is not None:
            owned.append(str(entry))
        return owned


def plan_head(params: RayParams, reserved: contextlib.ExitStack) -> NodePlan:
    """A new cluster, and its first node. `reserved` holds the ports until the services have them.

    Raises ValueError, PortInUseError, OSError, SessionError.
    """
    host = params.node_ip_address or "127.0.0.1"
    try:
        secret = find_secret(params.redis_password, None)
    except SecretNotFoundError:
        secret = generate_secret()
    port = _reserve(host, params.gcs_server_port, reserved)
    base = base_directory(params.temp_dir)
    store = place_store(params.object_store_memory, machine_memory(), base)
    resources, ports = _resources(params, host, store, is_head=True), _ports(params, host, reserved)
    session = create_session(base)
    write_secret(str(session.path / TOKEN_FILE_NAME), secret)
    config = ray_settings.normalized(params.system_config, os.environ)
    return _plan(session, params, secret, host, f"{host}:{port}", ports, resources, store, config)


def plan_member(params: RayParams, session_dir: str | None, reserved: contextlib.ExitStack) -> NodePlan:
    """A node of the cluster at params.gcs_address.

    session_dir: of another of its nodes on this machine, where one is known.

    Raises SecretNotFoundError, ConnectionError, VersionMismatchError, and as plan_head.
    """
    # Not at the top: it brings asyncio and protobuf, which a new cluster is started without.
    from ray_mono._private.node.gcs_query import cluster_secret
    from ray_mono._private.node.local_node import get_cluster_info

    gcs_address = known(params.gcs_address, "the address of the cluster to join")
    secret = cluster_secret(gcs_address, params.redis_password, session_dir)
    info = get_cluster_info(gcs_address, secret)
    check_versions(f"the cluster at {gcs_address}", info.version, info.python_version)
    host = params.node_ip_address or node_ip_address(parse_address(gcs_address)[0])
    base = base_directory(params.temp_dir)
    store = place_store(params.object_store_memory, machine_memory(), base)
    resources, ports = _resources(params, host, store, is_head=False), _ports(params, host, reserved)
    try:
        session: Session | None = open_session(Path(session_dir or info.session_dir))
    except SessionError:
        session = join_session(base / info.session_name)
    session = session or create_session(base)
    own = ray_settings.normalized(params.system_config, os.environ)
    config = ray_settings.merged(json.loads(info.config_json or "{}"), own)
    return _plan(session, params, secret, host, gcs_address, ports, resources, store, config)


def service_environment(secret: str, env_vars: Mapping[str, str] | None) -> dict[str, str]:
    """This process's environment, with what a service needs to find the package and to prove who it is."""
    # Not resolved: a link may be all that keeps Bazel's runfiles together.
    root = str(Path(__file__).absolute().parents[3])
    paths = [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path not in ("", root, ray_children.FOLDER)
    ]
    # A folder of PYTHONPATH comes before the standard library. Every interpreter searches its site-packages
    # by itself, and after it: some hold packages with names of standard modules.
    if root not in {*site.getsitepackages(), site.getusersitepackages()}:
        paths.insert(0, root)
    return {
        **os.environ,
        **(env_vars or {}),
        "PYTHONPATH": os.pathsep.join(paths),
        TOKEN_VARIABLE: secret,
    }


def _plan(
    session: Session,
    params: RayParams,
    secret: str,
    host: str,
    gcs_address: str,
    ports: tuple[int, int],
    resources: Mapping[str, float],
    store: StorePlace,
    system_config: Mapping[str, Any],
) -> NodePlan:
    is_head = params.gcs_address is None
    node_id = NodeID.from_random(random.SystemRandom()).hex()
    paths = NodePaths(session, node_id, is_head, store.is_in_shared_memory)
    return NodePlan(
        paths=paths,
        params=params,
        secret=secret,
        env=service_environment(secret, params.env_vars),
        node_ip_address=host,
        gcs_address=gcs_address,
        gcs_endpoint=f"unix:{paths.socket('gcs')}" if is_head else gcs_address,
        object_manager_port=ports[0],
        node_manager_port=ports[1],
        resources=resources,
        labels=node_labels(params.labels, os.environ),
        system_config=system_config,
    )


def _resources(params: RayParams, host: str, store: StorePlace, is_head: bool) -> dict[str, float]:
    return node_resources(
        num_cpus=params.num_cpus,
        num_gpus=params.num_gpus,
        memory_bytes=params.memory,
        object_store_bytes=store.size_bytes,
        custom=params.resources,
        node_ip_address=host,
        is_head=is_head,
    )


def _ports(params: RayParams, host: str, reserved: contextlib.ExitStack) -> tuple[int, int]:
    """(object manager's, node manager's)"""
    return (
        _reserve(host, params.object_manager_port, reserved),
        _reserve(host, params.node_manager_port, reserved),
    )


def _reserve(host: str, port: int | None, reserved: contextlib.ExitStack) -> int:
    holder = reserved.enter_context(reserve_port(host, port or 0))
    return int(holder.getsockname()[1])

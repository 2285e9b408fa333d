"""`ray-mono start`: a node that outlives this process, or with --block one that lasts as long as it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import click

from ray_mono._private.node.bootstrap import find_cluster, node_ip_address
from ray_mono._private.node.head_finder import locate_head
from ray_mono._private.node.node import Node
from ray_mono._private.node.parameter import DEFAULT_PORT, RayParams
from ray_mono._private.node.ports import PortInUseError
from ray_mono._private.node.services import REDIS_ADDRESS_VARIABLE
from ray_mono.common.process import module_command
from ray_mono.rpc.auth import TOKEN_FILE_NAME, TOKEN_VARIABLE, USER_TOKEN_PATH
from ray_mono.scripts import failures


def start_node(
    *,
    head: bool,
    address: str | None,
    port: int | None,
    redis_password: str | None,
    redis_address: str | None,
    redis_username: str | None,
    redis_namespace: str | None,
    redis_embedded: bool,
    node_ip_address: str | None,
    node_manager_port: int | None,
    object_manager_port: int | None,
    num_cpus: float | None,
    num_gpus: float | None,
    memory: int | None,
    object_store_memory: int | None,
    object_spilling_directory: str | None,
    resources: Mapping[str, float] | None,
    labels: Mapping[str, str] | None,
    labels_file: Mapping[str, str] | None,
    system_config: Mapping[str, Any] | None,
    temp_dir: str | None,
    block: bool,
    log_level: str,
) -> None:
    """The command; its arguments are the options of their names."""
    _check_together(
        head,
        address,
        {
            "port": port,
            "redis_address": redis_address,
            "redis_username": redis_username,
            "redis_namespace": redis_namespace,
            "redis_embedded": redis_embedded,
            "system_config": system_config,
        },
    )
    params = RayParams(
        gcs_server_port=port,
        redis_password=redis_password,
        redis_address=redis_address,
        redis_username=redis_username,
        redis_namespace=redis_namespace,
        redis_embedded=redis_embedded,
        node_ip_address=node_ip_address,
        node_manager_port=node_manager_port,
        object_manager_port=object_manager_port,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory=memory,
        object_store_memory=object_store_memory,
        object_spilling_directory=object_spilling_directory,
        resources=resources,
        labels={**(labels_file or {}), **(labels or {})},
        system_config=system_config or {},
        temp_dir=temp_dir,
        log_level=log_level,
    )
    with failures.shown():
        node = _start_head(params) if head else _join(params, address)
        if not block:
            # Before it is on its own: what cannot be found again could not be stopped either.
            node.detach([] if head else _rejoin_command(node))
    _say_what_now(node, params, block)
    if block:
        _stay(node)


def _check_together(head: bool, address: str | None, head_only: Mapping[str, object]) -> None:
    if head and address is not None:
        raise click.UsageError(
            f"--head starts a new cluster and --address {address} joins one: give one of them."
        )
    if not head and address is None:
        raise click.UsageError("give --head to start a cluster, or --address=HOST:PORT to add a node to one.")
    for name, value in head_only.items():
        if not head and value not in (None, False):
            raise click.UsageError(
                f"--{name.replace('_', '-')} belongs to --head: a node that joins has none."
            )


def _start_head(params: RayParams) -> Node:
    params.update_if_absent(gcs_server_port=DEFAULT_PORT, node_ip_address=node_ip_address())
    if not params.redis_embedded:
        params.update_if_absent(redis_address=os.environ.get(REDIS_ADDRESS_VARIABLE))
    try:
        node = Node(params, head=True)
    except PortInUseError as error:
        raise click.ClickException(
            f"{error.strerror}. Choose another port (--port, --node-manager-port, --object-manager-port; 0"
            " is any free"
            " one); `ray-mono stop` ends this user's clusters."
        ) from error
    node.make_current()
    return node


def _join(params: RayParams, address: str | None) -> Node:
    cluster = find_cluster(address)
    if cluster is None:
        raise click.UsageError(
            f"--address {address} names no cluster to join; accepted is host:port, or 'auto'."
        )
    places = (cluster.address, *cluster.others)
    cluster = locate_head(cluster, params.redis_password)
    others = tuple(place for place in places if place != cluster.address)
    params.update(gcs_address=cluster.address, other_gcs_addresses=others)
    node = Node(params, session_dir=cluster.session_dir)
    if cluster.session_dir is None:
        # The first node here: from now on `auto` means its cluster on this machine.
        node.make_current()
    return node


def _rejoin_command(node: Node) -> list[str]:
    """This command again. Of two addresses the last one counts."""
    return [*module_command("ray_mono.scripts"), *sys.argv[1:], f"--address={node.gcs_address}"]


def _say_what_now(node: Node, params: RayParams, block: bool) -> None:
    amounts = ", ".join(
        f"{amount:g} {name}"
        for name, amount in node.resources.items()
        if name in ("CPU", "GPU", *(params.resources or {}))
    )
    what = "A cluster runs at" if node.is_head() else "This machine has a new node of the cluster at"
    click.echo(f"{what} {node.gcs_address} (node {node.node_id[:8]}: {amounts}).")
    click.echo(f"Logs are in {node.logs_dir}\n")
    if not node.secret:
        click.secho(
            "WARNING: the password is empty, so there is no authentication: everybody who reaches"
            f" {node.gcs_address} can run code as this user.\n",
            fg="red",
            err=True,
        )
    if not node.node_ip_address.startswith("127."):
        click.echo(
            "What goes over the network is not encrypted: let only machines that you trust reach this one's"
            " ports.\n"
        )
    if node.is_head():
        _say_how_to_join(node, params)
    click.echo('In Python on this machine:\n    import ray_mono\n    ray_mono.init(address="auto")\n')
    if not block:
        click.echo(
            f"To end {'it' if node.is_head() else 'the nodes on this machine'}:\n    {_command()} stop"
        )


def _say_how_to_join(node: Node, params: RayParams) -> None:
    address = f"start --address={node.gcs_address}"
    click.echo(f"To add a node, on this machine:\n    {_command()} {address}")
    there = f"    {'ray-mono' if _is_installed() else 'python -m ray_mono.scripts'} {address}"
    if node.node_ip_address.startswith("127."):
        click.echo("(Other machines cannot reach it: it listens on loopback; see --node-ip-address.)\n")
    elif params.redis_password:
        click.echo(
            f"on another, with the password that this cluster was started with in {TOKEN_VARIABLE} or in"
            f" {USER_TOKEN_PATH} there:\n{there}\n"
        )
    elif node.secret:
        secret_file = f"{node.session_dir}/{TOKEN_FILE_NAME}"
        click.echo(
            f"on another, once the secret, which is in {secret_file}, is in {USER_TOKEN_PATH} there (or in"
            f" {TOKEN_VARIABLE}):\n{there}\n"
        )
    else:
        click.echo(f"on another:\n{there} --redis-password=''\n")


def _is_installed() -> bool:
    """Whether this is the installed program, which is found by its name."""
    return os.path.basename(sys.argv[0]) == "ray-mono"


def _command() -> str:
    """How to call this program again on this machine."""
    if _is_installed():
        return "ray-mono"
    if "BUILD_WORKSPACE_DIRECTORY" in os.environ:
        # Bazel's `run` says so; in its runfiles nothing but Bazel finds the package.
        return "./bazelw run //:ray_mono --"
    return f"{shlex.quote(sys.executable)} -m ray_mono.scripts"


def _stay(node: Node) -> None:
    def end(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, end)
        # Said in here: who reads it may send the signal at once.
        click.echo("Ctrl-C ends the node.")
        sys.stdout.flush()
        node.until_ended()
    except KeyboardInterrupt:
        click.echo("Ending the node.")
        node.kill_all_processes()
        return
    reasons = "; ".join(node.dead_processes()) or "it was stopped"
    node.kill_all_processes()
    raise click.ClickException(f"the node has ended: {reasons}. Its logs are in {node.logs_dir}")

"""The object manager's process: a node's plasma store, and the copies between nodes.

    python -m ray_mono.object_manager.object_manager --store-only --store-socket /tmp/store

runs the store alone. With --gcs-address it is part of a cluster: then it also listens for other object
managers on --host and --port.

It ends on SIGTERM, and (in a cluster) when the connection of the node's raylet ends: the two are one node.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
from dataclasses import fields

from ray_mono.common.ids import NodeID
from ray_mono.common.service import (
    Service,
    add_common_arguments,
    refuse_settings,
    run_service,
    setup_logging,
)
from ray_mono.common.store_messages import ExternalStorageError, is_uri
from ray_mono.common.world import SystemClock, system_rng
from ray_mono.object_manager.component import ObjectManager
from ray_mono.object_manager.config import ObjectManagerConfig
from ray_mono.object_manager.external_storage import ExternalStorage
from ray_mono.object_manager.keys import NodeKey
from ray_mono.object_manager.memory_file import MemoryFile, MemoryFileError
from ray_mono.object_manager.spill_directories import SpillDirectories, SpillDirectoryError
from ray_mono.object_manager.spill_disk import FileSpillDisk
from ray_mono.object_manager.transfer_client import TcpTransferStreams
from ray_mono.object_manager.transfer_server import TransferServer
from ray_mono.rpc.auth import SecretFileError, SecretNotFoundError, find_secret
from ray_mono.rpc.framed import FramedTransport

DEFAULT_CAPACITY_BYTES = 1 << 30

logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="object_manager", description="The plasma store of one node, and its copies between nodes."
    )
    parser.add_argument("--node-id", metavar="HEX", help="this node (default: a random one)")
    parser.add_argument(
        "--store-socket", metavar="PATH", required=True, help="Unix socket for clients on this node"
    )
    parser.add_argument(
        "--store-file", metavar="PATH", help="shared memory (default: /dev/shm/ray_mono_<node>)"
    )
    parser.add_argument(
        "--capacity-bytes",
        type=int,
        metavar="N",
        default=DEFAULT_CAPACITY_BYTES,
        help="size of the store (default: 1 GiB)",
    )
    parser.add_argument(
        "--object-spilling-directory",
        metavar="PATH",
        action="append",
        default=[],
        help="where objects go for which the store has no room; several take turns (default: nowhere)."
        " If some are URIs of storages elsewhere, the path is for what has to be mapped",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address on which other nodes fetch objects (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="its port (default: any)")
    parser.add_argument("--gcs-address", metavar="ADDRESS", help='of the GCS: "host:port" or "unix:/path"')
    parser.add_argument(
        "--store-only", action="store_true", help="the store alone: no GCS, no other nodes, no TCP port"
    )
    parser.add_argument(
        "--config",
        metavar="JSON",
        default="{}",
        help='other settings, e.g. {"create_timeout_s": 2}; see config.py',
    )
    add_common_arguments(parser)
    return parser


def make_config(capacity_bytes: int, overrides_json: str) -> ObjectManagerConfig:
    """Raises ValueError naming what is wrong."""
    try:
        overrides = json.loads(overrides_json)
    except ValueError as error:
        raise ValueError(f"--config is not JSON: {error}") from None
    known = {field.name for field in fields(ObjectManagerConfig)} - {"capacity_bytes"}
    if not isinstance(overrides, dict) or not overrides.keys() <= known:
        raise ValueError(
            f"--config takes an object with some of {', '.join(sorted(known))}; got {overrides_json}"
        )
    for name, value in overrides.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"--config: {name} must be a number, got {value!r}")
    return ObjectManagerConfig(capacity_bytes=capacity_bytes, **overrides)


def make_disk(
    places: list[str], node_id_hex: str, session: str | None, config: ObjectManagerConfig
) -> FileSpillDisk | None:
    """Raises SpillDirectoryError, ExternalStorageError."""
    if not places:
        return None
    uris = [place for place in places if is_uri(place)]
    paths = [place for place in places if not is_uri(place)]
    if uris and len(paths) != 1:
        raise ExternalStorageError(
            f"beside storages elsewhere there must be one directory, got {', '.join(places)}"
        )
    directories = SpillDirectories(paths, node_id_hex, session)
    try:
        external = ExternalStorage(uris, node_id_hex, session, config) if uris else None
    except BaseException:
        directories.close()
        raise
    return FileSpillDisk(directories, config, external)


async def serve(
    service: Service,
    arguments: argparse.Namespace,
    config: ObjectManagerConfig,
    node_id: NodeKey,
    memory: MemoryFile,
    disk: FileSpillDisk | None,
    secret: str,
) -> None:
    """The process's life on its loop."""

    def on_raylet_gone(reason: str) -> None:
        if not arguments.store_only:
            service.stop(reason)

    spawn = service.tasks.spawn
    manager = ObjectManager(config, node_id, memory, SystemClock(), spawn, on_raylet_gone, disk)
    service.on_dump(manager.dump_state)
    transport = FramedTransport(secret)
    address, streams, server = "", None, None
    if not arguments.store_only:
        streams = TcpTransferStreams(secret, config, node_id)
        server = TransferServer(manager.node_store, secret, config, streams.count_sent, spawn)
        address = server.listen(arguments.host, arguments.port)
        manager.attach(transport, arguments.gcs_address, streams)
    listener = await transport.serve(f"unix:{arguments.store_socket}", manager.handlers())
    try:
        service.announce_ready(
            {"address": address, "unix_path": arguments.store_socket, "store_file": memory.path}
        )
        await service.until_stopped()
    finally:
        await listener.close()
        if server is not None and streams is not None:
            server.close()
            await streams.close()
        manager.node_store.close()


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    setup_logging(arguments.log_level, "object_manager")
    if not arguments.store_only and not arguments.gcs_address:
        parser.error("--gcs-address is missing (--store-only runs without a cluster)")
    try:
        node_id = (
            NodeID.from_hex(arguments.node_id) if arguments.node_id else NodeID.from_random(system_rng())
        )
        config = make_config(arguments.capacity_bytes, arguments.config)
    except ValueError as error:
        refuse_settings(parser, error)
    store_file = arguments.store_file or f"/dev/shm/ray_mono_{node_id.hex()[:8]}_{os.getpid()}"
    try:
        secret = "" if arguments.store_only else find_secret(None, arguments.session_dir)
        memory = MemoryFile(store_file, config.capacity_bytes)
    except (SecretNotFoundError, SecretFileError, MemoryFileError) as error:
        logger.critical("%s", error)
        return 1
    try:
        disk = make_disk(arguments.object_spilling_directory, node_id.hex(), arguments.session_dir, config)
    except (SpillDirectoryError, ExternalStorageError) as error:
        logger.critical("%s", error)
        memory.close()
        return 1
    try:
        key = NodeKey(node_id.binary())
        run = functools.partial(
            serve, arguments=arguments, config=config, node_id=key, memory=memory, disk=disk, secret=secret
        )
        return run_service("object_manager", run, arguments)
    finally:
        if disk is not None:
            disk.close()
        memory.close()


if __name__ == "__main__":
    sys.exit(main())

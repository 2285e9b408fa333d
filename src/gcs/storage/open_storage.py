"""Which store a GCS uses, as its command line says. Redis's client is imported only by those who use it."""

from __future__ import annotations

import argparse
import os

from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import StorageError, TableStorage

REDIS_PASSWORD_VARIABLE = "RAY_MONO_REDIS_PASSWORD"
# How long an unreachable Redis may stall the cluster before the GCS gives up. A failover of Sentinel takes
# less.
REDIS_RETRY_FOR_S = 30.0


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("storage")
    group.add_argument(
        "--storage",
        choices=("memory", "file", "redis"),
        help="where the cluster's metadata is kept (default: redis with a --redis option, "
        "file with --storage-path or --session-dir, else memory)",
    )
    group.add_argument(
        "--storage-path", metavar="FILE", help="for file (default: gcs.sqlite in the session directory)"
    )
    group.add_argument(
        "--survive-power-loss",
        action="store_true",
        help="for file: sync each commit to the disk, ten times slower",
    )
    group.add_argument(
        "--redis-address", metavar="HOST:PORT", help="for redis: a server of yours; or unix:/path"
    )
    group.add_argument(
        "--redis-password",
        metavar="PASSWORD",
        help=f"for redis; better in the variable {REDIS_PASSWORD_VARIABLE}: every user of the machine "
        "can read a command line until the program has hidden it",
    )
    group.add_argument(
        "--redis-namespace",
        metavar="NAME",
        default="default",
        help="for redis: names this cluster's keys where several share a server (default: default)",
    )
    group.add_argument(
        "--redis-embedded",
        action="store_true",
        help="for redis: start a redis-server in the session directory",
    )


def open_storage(arguments: argparse.Namespace) -> TableStorage:
    """The store that the arguments name, not opened yet.

    Raises StorageError for arguments that do not go together.
    """
    kind = arguments.storage
    if kind is None:
        has_redis = arguments.redis_embedded or arguments.redis_address
        has_file = arguments.storage_path or arguments.session_dir
        kind = "redis" if has_redis else "file" if has_file else "memory"
    if kind == "memory":
        return MemoryStorage()
    if kind == "file":
        return _file_storage(arguments)
    if bool(arguments.redis_embedded) == bool(arguments.redis_address):
        raise StorageError("--storage redis takes one of --redis-address HOST:PORT and --redis-embedded")
    if arguments.redis_embedded:
        if not arguments.session_dir:
            raise StorageError("--redis-embedded needs --session-dir, where it keeps its data")
        from ray_mono.gcs.storage.embedded_redis import EmbeddedRedisStorage

        return EmbeddedRedisStorage(arguments.session_dir)
    from ray_mono.gcs.storage.redis_storage import RedisStorage

    password = arguments.redis_password
    if password is None:
        password = os.environ.get(REDIS_PASSWORD_VARIABLE, "")
    return RedisStorage(arguments.redis_address, password, arguments.redis_namespace, REDIS_RETRY_FOR_S)


def _file_storage(arguments: argparse.Namespace) -> SqliteStorage:
    path = arguments.storage_path
    if not path and arguments.session_dir:
        path = os.path.join(arguments.session_dir, "gcs.sqlite")
    if not path:
        raise StorageError("--storage file needs --storage-path FILE, or --session-dir to keep gcs.sqlite in")
    return SqliteStorage(path, survive_power_loss=arguments.survive_power_loss)

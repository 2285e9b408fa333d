"""Which store a GCS uses, as its command line says. Redis's client is imported only by those who use it."""

from __future__ import annotations

import argparse
import os

from ray_mono.common.world import SystemClock
from ray_mono.gcs.config import GcsConfig
from ray_mono.gcs.storage.memory_storage import MemoryStorage
from ray_mono.gcs.storage.redis_address import ACCEPTED, parse_redis_address
from ray_mono.gcs.storage.sqlite_storage import SqliteStorage
from ray_mono.gcs.storage.table_storage import StorageError, TableStorage

# What no other user is to read on a command line.
REDIS_ADDRESS_VARIABLE = "RAY_MONO_REDIS_ADDRESS"
REDIS_USERNAME_VARIABLE = "RAY_MONO_REDIS_USERNAME"
REDIS_PASSWORD_VARIABLE = "RAY_MONO_REDIS_PASSWORD"


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
        "--redis-address",
        metavar="ADDRESS",
        help=f"for redis: {ACCEPTED} (better in {REDIS_ADDRESS_VARIABLE} with a password)",
    )
    group.add_argument(
        "--redis-username",
        metavar="NAME",
        help=f"for redis (also in the variable {REDIS_USERNAME_VARIABLE}; default: Redis's default user)",
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


def open_storage(arguments: argparse.Namespace, config: GcsConfig) -> TableStorage:
    """The store that the arguments name, not opened yet.

    Raises StorageError for arguments that do not go together, ValueError for a malformed address.
    """
    kind = arguments.storage
    address = arguments.redis_address
    if not address and kind == "redis" and not arguments.redis_embedded:
        address = os.environ.get(REDIS_ADDRESS_VARIABLE)
    if kind is None:
        has_redis = arguments.redis_embedded or address
        has_file = arguments.storage_path or arguments.session_dir
        kind = "redis" if has_redis else "file" if has_file else "memory"
    if kind == "memory":
        return MemoryStorage()
    if kind == "file":
        return _file_storage(arguments)
    if bool(arguments.redis_embedded) == bool(address):
        raise StorageError(
            "--storage redis takes one of --redis-address HOST:PORT (or the variable "
            f"{REDIS_ADDRESS_VARIABLE}) and --redis-embedded"
        )
    if arguments.redis_embedded:
        return _embedded_storage(arguments)
    from ray_mono.gcs.storage.redis_storage import RedisStorage

    username, password = arguments.redis_username, arguments.redis_password
    if username is None:
        username = os.environ.get(REDIS_USERNAME_VARIABLE, "")
    if password is None:
        password = os.environ.get(REDIS_PASSWORD_VARIABLE, "")
    return RedisStorage(
        parse_redis_address(address, username, password),
        arguments.redis_namespace,
        config.redis_retry_for_s,
        SystemClock().awake_or_asleep_s,
    )


def _embedded_storage(arguments: argparse.Namespace) -> TableStorage:
    if not arguments.session_dir:
        raise StorageError("--redis-embedded needs --session-dir, where it keeps its data")
    from ray_mono.gcs.storage.embedded_redis import EmbeddedRedisStorage

    return EmbeddedRedisStorage(arguments.session_dir, SystemClock().awake_or_asleep_s)


def _file_storage(arguments: argparse.Namespace) -> SqliteStorage:
    path = arguments.storage_path
    if not path and arguments.session_dir:
        path = os.path.join(arguments.session_dir, "gcs.sqlite")
    if not path:
        raise StorageError("--storage file needs --storage-path FILE, or --session-dir to keep gcs.sqlite in")
    return SqliteStorage(path, survive_power_loss=arguments.survive_power_loss)

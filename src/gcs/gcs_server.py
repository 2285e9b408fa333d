"""The GCS: the process of a cluster that knows its nodes, jobs, actors, workers, keys and values.

GcsServer puts the parts together over whatever store, transport, clock and randomness it is given; `main`
gives it the real ones. The servicers (`servicers/`) translate calls into events for `cluster.py`, whose
managers decide. Rows go through `storage/write_through.py` into the store before anyone hears of them.

Started again on the same store, it goes on where the last one ended. Raylets register again, and actors that
had no worker yet are placed anew. Started again on an empty one, it is told what was there (`adoption.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import math
import os
import random
import sys
from typing import Any

from ray_mono.common import process
from ray_mono.common.background import BackgroundTasks
from ray_mono.common.ids import ClusterID, JobID
from ray_mono.common.our_bug import known
from ray_mono.common.service import Service, add_common_arguments, refuse_settings, run_service
from ray_mono.common.version import VERSION
from ray_mono.common.world import Clock, SystemClock, system_rng
from ray_mono.gcs.adoption import CLUSTER_ID_KEY, Adoption
from ray_mono.gcs.cluster import Cluster
from ray_mono.gcs.config import GcsConfig, settings_from_json
from ray_mono.gcs.dump import dump_cluster
from ray_mono.gcs.environment import Environment
from ray_mono.gcs.head_notice import tell_missing_nodes
from ray_mono.gcs.raylet_client_pool import RayletClientPool
from ray_mono.gcs.servicers.gcs_service import gcs_handlers
from ray_mono.gcs.storage.open_storage import add_storage_arguments, open_storage
from ray_mono.gcs.storage.room import Room
from ray_mono.gcs.storage.table_storage import StorageError, Table, TableStorage
from ray_mono.gcs.storage.write_through import WriteThrough
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.rpc.auth import SecretFileError, SecretNotFoundError, find_secret
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import Listener, RpcError, Transport

logger = logging.getLogger(__name__)

START_TIME_KEY = b"start_time_s"
# How often, while something is kept, it is looked at whether it is too old.
FORGETS_IN_AGE = 24


class GcsServer:
    """One GCS. Its life: start, whatever callers want, stop; not to be started twice."""

    def __init__(
        self,
        config: GcsConfig,
        storage: TableStorage,
        transport: Transport,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """storage: not open yet; belongs to this server until stop."""
        self._config = config
        self._storage = storage
        self._failed = asyncio.Event()
        self._is_ready = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks = BackgroundTasks(self._on_failure)
        self._room = Room(config.disk_retry_for_s, self._on_full_disk)
        writes = WriteThrough(storage, lambda error: self._on_failure(error, "write-through"), self._room)
        raylets = RayletClientPool(transport, self._tasks, config.connect_timeout_s, writes.confirmed)
        self._environment = Environment(config, transport, clock, rng, self._tasks, writes, raylets)
        self._info = gcs_pb2.ClusterInfo()
        self._listeners: list[Listener] = []
        self.cluster = Cluster(self._environment)
        self._adoption = Adoption(self._environment, self.cluster, lambda: self._info.cluster_id)

    async def start(self) -> None:
        """Listens, opens the store, and takes over what is in it; calls that come meanwhile wait for that.

        Raises StorageError, OSError.
        """
        # First, so that raylets find this head while it still waits for its store. They look now and then.
        await self._listen()
        head_number = await self._room.until(self._storage.open)
        tables = {table: await self._storage.load_all(table) for table in Table}
        self._adoption.begin(tables)
        self._make_info(tables[Table.META], head_number)
        self.cluster.restore(tables, head_number, self._adoption.judges)
        self._adoption.resume()
        self._tasks.spawn(self._adoption.give_up_missing_nodes(), "give up missing nodes")
        self._tasks.spawn(self._give_up_missing_drivers(), "give up missing drivers")
        self._tasks.spawn(self._forget_old(), "forget old")
        await self._environment.writes.flushed()
        host, _, port = self.address.rpartition(":")
        self._info.host = self._config.node_ip or host
        self._info.port = int(port or 0)
        place = common_pb2.HeadPlace(
            address=f"{self._info.host}:{self._info.port}",
            head_number=self._info.head_number,
            cluster_id=self._info.cluster_id,
        )
        notice = tell_missing_nodes(self._environment, self.cluster.nodes, place)
        self._tasks.spawn(notice, "tell missing nodes")
        if not self._storage.is_confirmed(math.inf):
            self._tasks.spawn(self._keep_confirmed(), "keep confirmed")
        self._is_ready.set()
        logger.info(
            "cluster %s, head %d: listening at %s",
            self._info.cluster_id.hex(),
            self._info.head_number,
            ", ".join(self.addresses),
        )

    async def _listen(self) -> None:
        handlers = gcs_handlers(
            self.cluster,
            self._adoption,
            self._environment.writes,
            self._environment.clock,
            lambda: self._info,
            self.dump_state,
            self._is_ready,
        )
        for address in self._config.listen:
            self._listeners.append(await self._environment.transport.serve(address, handlers))

    def _make_info(self, meta: dict[bytes, bytes], head_number: int) -> None:
        """The cluster's identity: read from the store, or drawn and stored where it is new."""
        environment = self._environment
        if CLUSTER_ID_KEY not in meta:
            start_time_s = environment.clock.wall_s()
            meta = {
                CLUSTER_ID_KEY: ClusterID.from_random(environment.rng).binary(),
                START_TIME_KEY: repr(start_time_s).encode(),
            }
            for key, value in meta.items():
                environment.writes.put(Table.META, key, value)
        self._info = gcs_pb2.ClusterInfo(
            cluster_id=meta[CLUSTER_ID_KEY],
            version=VERSION,
            python_version=".".join(map(str, sys.version_info[:3])),
            session_name=os.path.basename(self._config.session_dir),
            session_dir=self._config.session_dir,
            config_json=self._config.cluster_config_json,
            start_time_s=float(meta[START_TIME_KEY]),
            head_number=head_number,
        )

    async def _forget_old(self) -> None:
        while True:
            self.cluster.forget_old()
            await asyncio.sleep(self._config.dead_age_max_s / FORGETS_IN_AGE)

    async def _keep_confirmed(self) -> None:
        """Asks the store again and again, so that a head that was replaced ends even where nobody calls."""
        with contextlib.suppress(RpcError):
            while True:
                await asyncio.sleep(self._config.confirm_period_s)
                if not self._storage.is_confirmed(2 * self._config.confirm_period_s):
                    await self._environment.writes.confirm()

    async def _give_up_missing_drivers(self) -> None:
        """A driver has its job before a node tells of it, and may die between the two, or with its node while
        there is no head."""
        before: list[JobID] = []
        while True:
            await asyncio.sleep(self._config.node_return_timeout_s)
            missing = self.cluster.jobs_without_driver()
            for job_id in missing:
                if job_id in before:
                    self.cluster.finish_job(job_id, "no node has told of it")
            before = missing

    def _on_full_disk(self, message: str) -> None:
        """Every driver is told. Who waits for the GCS waits on."""
        text = f"The head waits for room in its store, and with it new actors, jobs and keys: {message}"
        self.cluster.warn_drivers(common_pb2.ErrorInfo(type="head_disk_full", message=text))

    def _on_failure(self, error: BaseException, what: str) -> None:
        """The tables may contradict the store by now: only a new start puts them together again."""
        logger.error("%s failed", what, exc_info=error)
        self._failure = self._failure or error
        self._failed.set()

    async def until_failed(self) -> None:
        """Waits for the first failure that must end this server, as long as it takes, and raises it."""
        await self._failed.wait()
        raise known(self._failure, "the failure")

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with real ports, in the order of the configuration."""
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> str:
        """The first "host:port" that it listens at; empty where it has none."""
        return next((address for address in self.addresses if not address.startswith("unix:")), "")

    def dump_state(self) -> dict[str, Any]:
        """Every table in summary, as JSON can carry it."""
        return {
            "cluster_id": self._info.cluster_id.hex(),
            "head_number": self._info.head_number,
            "version": self._info.version,
            "addresses": self.addresses,
            **dump_cluster(self.cluster),
        }

    async def stop(self) -> None:
        """Stops listening, ends every task, commits what is under way, and closes the store."""
        for listener in self._listeners:
            await listener.close()
        await self._tasks.close()
        self._environment.raylets.close()
        await self._environment.writes.close()
        await self._storage.close()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gcs_server",
        # Half of an option's name is not known to hide its value.
        allow_abbrev=False,
        description="The cluster's metadata service. By hand: gcs_server --port 6379 --session-dir DIR, "
        "with the secret in RAY_MONO_AUTH_TOKEN (empty: anyone may connect).",
    )
    add_common_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="port to listen at (default: 0, any free one)")
    parser.add_argument("--unix-socket", metavar="PATH", help="listen at a Unix socket too")
    parser.add_argument(
        "--node-ip", default="", metavar="IP", help="the address that others are told (default: --host)"
    )
    parser.add_argument(
        "--config",
        default="{}",
        metavar="JSON",
        help='cluster-wide settings; those of this service under "gcs"',
    )
    add_storage_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        parsed.gcs_config = make_config(parsed)
        parsed.table_storage = open_storage(parsed, parsed.gcs_config)
        parsed.secret = find_secret(None, parsed.session_dir)
    except (ValueError, StorageError, SecretFileError, SecretNotFoundError) as error:
        refuse_settings(parser, error)
    return parsed


def make_config(arguments: argparse.Namespace) -> GcsConfig:
    """Raises ValueError."""
    listen = [f"{arguments.host}:{arguments.port}"]
    if arguments.unix_socket:
        listen.append(f"unix:{arguments.unix_socket}")
    return GcsConfig(
        listen=tuple(listen),
        node_ip=arguments.node_ip,
        session_dir=arguments.session_dir or "",
        cluster_config_json=arguments.config,
        **settings_from_json(arguments.config),
    )


async def serve(service: Service, arguments: argparse.Namespace) -> None:
    transport = FramedTransport(arguments.secret, arguments.session_dir)
    server = GcsServer(arguments.gcs_config, arguments.table_storage, transport, SystemClock(), system_rng())
    try:
        await server.start()
        service.tasks.spawn(server.until_failed(), "gcs")
        service.on_dump(server.dump_state)
        service.announce_ready({"address": server.address, "unix_path": arguments.unix_socket or ""})
        await service.until_stopped()
    finally:
        await server.stop()


def main() -> int:
    process.hide_argument("--redis-password")
    # It may hold one, too.
    process.hide_argument("--redis-address")
    arguments = parse_arguments()
    return run_service("gcs_server", functools.partial(serve, arguments=arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())

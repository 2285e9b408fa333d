"""The log monitor: tells each driver what its workers write.

It follows the workers' files in the session's logs directory (log_files) and publishes their lines on the GCS's LOG channel under their
job's id. While the GCS is away nothing is read, so nothing is lost and nothing piles up. Nodes of one session on the same machine share
the directory: the first monitor there holds a lock and works for all of them, the others wait for its end.

    python -m ray_mono._private.log_monitor --session-dir DIR --gcs-address ADDRESS --node-ip IP --node-id HEX
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import sys
from pathlib import Path

from ray_mono._private.directory_watch import DirectoryWatch
from ray_mono._private.ended_logs import EndedLogs
from ray_mono._private.log_files import Lines, LogDirectory
from ray_mono.common.service import Service, add_common_arguments, run_service
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.rpc.auth import find_secret
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode, Transport

# Where nothing says that a file has changed, they are looked at anyway.
LOOK_PERIOD_S = 1.0
# Lines that are written together are told together: a person does not see the difference, the GCS does.
GATHER_S = 0.03
# Rounds between two looks for ended workers, where it is never quiet.
ENDED_ROUNDS = 16
LOCK_RETRY_PERIOD_S = 1.0
CONNECT_TIMEOUT_S = 5.0
# Between attempts to reach a GCS that is away.
RECONNECT_PERIOD_S = 0.5
# What was written last is passed on before the monitor ends, if the GCS is still there.
LAST_ROUND_TIMEOUT_S = 1.0
LOCK_FILE = ".log_monitor.lock"

logger = logging.getLogger(__name__)


class LogMonitor:
    """One monitor of one logs directory."""

    def __init__(
        self, directory: LogDirectory, transport: Transport, gcs_address: str, node_ip: str, node_id: bytes
    ) -> None:
        self._directory = directory
        self._transport = transport
        self._gcs_address = gcs_address
        self._node_ip = node_ip
        self._node_id = node_id
        self._channel: AsyncChannel | None = None
        self._ended = EndedLogs(directory)
        self.published_lines = 0
        self._rounds = 0

    async def round(self, with_begun: bool = False) -> int:
        """Passes on what is new, with_begun as for LogDirectory.read_new; returns how many lines. Waits while the GCS is away."""
        count = 0
        for lines in self._directory.read_new(with_begun):
            await self._publish(lines)
            count += len(lines.lines)
        self.published_lines += count
        self._rounds += 1
        if with_begun or self._rounds % ENDED_ROUNDS == 0:
            self._ended.add(self._directory.drop_ended())
        return count

    async def _publish(self, lines: Lines) -> None:
        batch = common_pb2.LogBatch(
            job_id=lines.job_id,
            node_id=self._node_id,
            host=self._node_ip,
            pid=lines.pid,
            name=lines.name,
            is_error=lines.is_error,
            lines=lines.lines,
            is_end=lines.is_end,
        )
        message = gcs_pb2.PubMessage(channel=gcs_pb2.LOG, key=lines.job_id, payload=batch.SerializeToString())
        request = gcs_pb2.PublishRequest(message=message)
        while True:
            try:
                await GcsServiceAsyncStub(await self._connected()).Publish(request)
                return
            except RpcError as error:
                if error.code is not StatusCode.UNAVAILABLE:
                    raise
                logger.warning("waiting for the GCS at %s: %s", self._gcs_address, error.message)
                await asyncio.sleep(RECONNECT_PERIOD_S)

    async def _connected(self) -> AsyncChannel:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._transport.connect(self._gcs_address, CONNECT_TIMEOUT_S)
        return self._channel

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def try_lock(path: Path) -> tuple[int, bool] | None:
    """(descriptor that holds the lock, whether somebody has held it before); None while another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    had_one = os.fstat(descriptor).st_size > 0
    if not had_one:
        os.write(descriptor, b"held\n")
    return descriptor, had_one


async def follow(
    monitor: LogMonitor, directory: LogDirectory, watch: DirectoryWatch, stop: asyncio.Event
) -> None:
    """Works until `stop` is set, and then once more: for what was written before."""
    lock_path = directory.path / LOCK_FILE
    lock = try_lock(lock_path)
    while lock is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOCK_RETRY_PERIOD_S)
            return
        lock = try_lock(lock_path)
    descriptor, had_one = lock
    try:
        if had_one:
            directory.skip_existing()
        is_last = is_quiet = False
        while not is_last:
            is_last = stop.is_set()
            await monitor.round(with_begun=is_quiet or is_last)
            if not is_last:
                is_quiet = not await watch.wait(LOOK_PERIOD_S)
                if not is_quiet:
                    await asyncio.sleep(GATHER_S)
    finally:
        os.close(descriptor)


async def serve(service: Service, arguments: argparse.Namespace) -> None:
    directory = LogDirectory(Path(arguments.session_dir, "logs"))
    monitor = LogMonitor(
        directory,
        FramedTransport(find_secret(None, arguments.session_dir)),
        arguments.gcs_address,
        arguments.node_ip,
        bytes.fromhex(arguments.node_id),
    )
    service.on_dump(lambda: {"published_lines": monitor.published_lines})
    watch, stop = DirectoryWatch(str(directory.path)), asyncio.Event()
    task = service.tasks.spawn(follow(monitor, directory, watch, stop), "follow")
    service.announce_ready({})
    await service.until_stopped()
    stop.set()
    watch.wake()
    if not (await asyncio.wait({task}, timeout=LAST_ROUND_TIMEOUT_S))[0]:
        logger.warning("what the workers wrote last was not passed on: the GCS is away")
    monitor.close()
    watch.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gcs-address", required=True, help="host:port or unix:/path of the GCS")
    parser.add_argument(
        "--node-ip", required=True, help="the node's address, shown beside lines from other nodes"
    )
    parser.add_argument("--node-id", required=True, help="the node's id in hex")
    add_common_arguments(parser)
    arguments = parser.parse_args()
    if arguments.session_dir is None:
        parser.error("--session-dir is required: its logs/ holds what is to be followed")
    return run_service("log_monitor", functools.partial(serve, arguments=arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())

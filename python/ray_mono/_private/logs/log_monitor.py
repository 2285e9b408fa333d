"""The log monitor: tells each driver what its workers write.

It follows the workers' files in the session's logs directory (log_files.py), and publishes their lines on the
GCS's LOG channel, under their job's id. While the GCS is away it reads nothing, so that nothing is lost and
nothing piles up. What an earlier GCS may not have passed on any more it tells again. It also reads nothing of
a job whose driver is BACKLOG_MAX messages behind at the GCS, or has said that it shows lines more slowly than
they come. Nodes of one session on the same machine share the directory. The first monitor there holds a lock
and works for all of them, and the others wait for its end. Whoever is next goes on where it was
(log_positions.py).

A driver that leaves asks by LOG_FLUSH for what its workers have written so far
(core_worker/process/driver_messages.py):

    LogFlush(job, token) ──► the monitor notes how long the job's files are
        ──► rounds, as ever; after each of them LogFlushed(token, unread bytes)
        ──► when all is read: the begun lines, too, and LogFlushed(token, 0)

    python -m ray_mono._private.logs.log_monitor --session-dir DIR --gcs-address ADDRESS --node-ip IP \\
        --node-id HEX
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
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_mono._private.logs.directory_watch import DirectoryWatch
from ray_mono._private.logs.ended_logs import EndedLogs
from ray_mono._private.logs.log_files import Lines, LogDirectory
from ray_mono._private.logs.log_positions import LogPositions
from ray_mono.common.service import Service, add_common_arguments, run_service
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.protobuf.gcs_rpc import GcsServiceAsyncStub
from ray_mono.protobuf.raylet_rpc import RayletServiceAsyncStub
from ray_mono.rpc.auth import find_secret
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode, Transport

# If more messages wait for a driver at the GCS, it gets no more for a while: its lines wait in their files.
BACKLOG_MAX = 64
HELD_RETRY_PERIOD_S = 0.02
# The files are looked at so often, even if nothing says that one has changed.
LOOK_PERIOD_S = 1.0
# Lines that are written together are told together: a person does not see the difference, the GCS does.
GATHER_S = 0.03
# So many rounds lie between two looks for ended workers, if it is never quiet.
ENDED_ROUNDS = 16
LOCK_RETRY_PERIOD_S = 1.0
CONNECT_TIMEOUT_S = 5.0
# The pause between attempts to reach a GCS that is away.
RECONNECT_PERIOD_S = 0.1
# Of each job the latest batches are kept: those that wait at the GCS, and so many that may be on their way to
# the driver. Of more jobs than this, none.
ON_THEIR_WAY_MAX = 16
JOBS_KEPT_MAX = 100
# What was written last is passed on before the monitor ends, if the GCS is still there.
LAST_ROUND_TIMEOUT_S = 1.0
LOCK_FILE, POSITIONS_FILE = ".log_monitor.lock", ".log_monitor.positions"

logger = logging.getLogger(__name__)


@dataclass
class _Flush:
    """What a driver asked for: the files with something of its job, and how long they were then."""

    job_id: bytes
    token: bytes
    sizes: dict[str, int]
    told_bytes: int = -1


class LogMonitor:
    """One monitor of one logs directory."""

    def __init__(
        self,
        directory: LogDirectory,
        positions: LogPositions,
        transport: Transport,
        gcs_address: str,
        node_ip: str,
        node_id: bytes,
    ) -> None:
        self._directory = directory
        self._positions = positions
        self._transport = transport
        self._gcs_address = gcs_address
        self._node_ip = node_ip
        self._node_id = node_id
        self._channel: AsyncChannel | None = None
        self._ended = EndedLogs(directory)
        self._connecting = asyncio.Lock()
        # Jobs whose drivers are behind: for these many messages wait at the GCS, and those have said so.
        self._held: set[bytes] = set()
        self._held_by_driver: set[bytes] = set()
        self._flushes: list[_Flush] = []
        # By job: what was told last.
        self._latest: OrderedDict[bytes, deque[bytes]] = OrderedDict()
        # A monitor that follows this one on the node counts from here, or from a later time.
        self._sequence = time.time_ns()
        self._must_tell_again = False
        self.flush_wanted = asyncio.Event()
        self.published_lines = 0
        self._rounds = 0

    @property
    def is_held(self) -> bool:
        """Whether something was left unread because its driver is behind."""
        return bool(self._held or self._held_by_driver)

    async def take_over(self) -> None:
        """Goes on where an earlier monitor was: its last batch may not have been published."""
        self._sequence = max(self._sequence, self._positions.sequence)
        last = self._positions.in_doubt
        if last is not None:
            self._keep(last.job_id, last.payload)
            await self._publish(last.job_id, last.payload)

    async def round(self, with_begun: bool = False) -> bool:
        """Passes on what is new, with_begun as for LogDirectory.read_new; returns whether there is more.
        Waits while the GCS is away."""
        self.flush_wanted.clear()
        if self._must_tell_again:
            await self._ask(b"")  # which tells it
        for job_id in self._held | self._held_by_driver:
            reply = await self._ask(job_id)
            if reply.backlog <= BACKLOG_MAX:
                self._held.discard(job_id)
            if not reply.reached:
                self._held_by_driver.discard(job_id)
        held = self._held | self._held_by_driver
        for lines in self._directory.read_new(with_begun, held):
            await self._tell(lines)
            held |= self._held | self._held_by_driver
        for flush in list(self._flushes):
            await self._flush(flush)
        self._rounds += 1
        if with_begun or self._rounds % ENDED_ROUNDS == 0:
            self._ended.add(self._directory.drop_ended())
        return self._directory.has_more

    async def _flush(self, flush: _Flush) -> None:
        unread_bytes = self._directory.unread_bytes(flush.job_id, flush.sizes)
        if not unread_bytes:
            for lines in self._directory.read_begun(flush.job_id):
                await self._tell(lines)
            self._flushes.remove(flush)
        elif unread_bytes == flush.told_bytes:
            return
        flush.told_bytes = unread_bytes
        flushed = common_pb2.LogFlushed(token=flush.token, unread_bytes=unread_bytes)
        batch = common_pb2.LogBatch(job_id=flush.job_id, node_id=self._node_id, flushed=flushed)
        payload = batch.SerializeToString()
        self._keep(flush.job_id, payload)
        await self._publish(flush.job_id, payload)

    async def listen(self, wake: Callable[[], None]) -> None:
        """Listens to what drivers ask for, as long as this monitor lives. wake() has another round begin."""
        wanted = gcs_pb2.SubscribeRequest(channels=[gcs_pb2.ChannelFilter(channel=gcs_pb2.LOG_FLUSH)])
        while True:
            try:
                channel = await self._connected()
                wake()  # what may have to be told again is
                async for message in GcsServiceAsyncStub(channel).Subscribe(wanted):
                    self._asked(common_pb2.LogFlush.FromString(message.payload))
                    wake()
            except RpcError as error:
                logger.info("cannot listen to drivers: %s", error.message)
            await asyncio.sleep(RECONNECT_PERIOD_S)

    def _asked(self, request: common_pb2.LogFlush) -> None:
        job_id = request.job_id
        if request.token:
            self._flushes.append(_Flush(job_id, request.token, self._directory.sizes_of(job_id)))
            self.flush_wanted.set()
        elif request.hold:
            self._held_by_driver.add(job_id)
        else:
            self._held_by_driver.discard(job_id)

    async def follow_head(self, raylet_socket: str) -> None:
        """Learns from this node's raylet where the head is, as long as this monitor lives."""
        number = 0
        while True:
            try:
                raylet = await self._transport.connect(f"unix:{raylet_socket}", CONNECT_TIMEOUT_S)
                stub = RayletServiceAsyncStub(raylet)
                while True:
                    asked = raylet_pb2.AwaitHeadRequest(after_head_number=number)
                    head = await stub.AwaitHead(asked)
                    number = head.head_number
                    self._move_to(head.address)
            except RpcError as error:
                logger.info("the raylet does not tell where the head is: %s", error.message)
            await asyncio.sleep(LOCK_RETRY_PERIOD_S)

    def _move_to(self, gcs_address: str) -> None:
        if gcs_address != self._gcs_address:
            self._gcs_address = gcs_address
            if self._channel is not None:
                self._channel.close()

    async def _tell(self, lines: Lines) -> None:
        self._sequence += 1
        batch = common_pb2.LogBatch(
            job_id=lines.job_id,
            node_id=self._node_id,
            host=self._node_ip,
            pid=lines.pid,
            name=lines.name,
            is_error=lines.is_error,
            lines=lines.lines,
            is_end=lines.is_end,
            sequence=self._sequence,
        )
        payload = batch.SerializeToString()
        self._positions.passed_on(lines.file_name, lines.end_offset, self._sequence, lines.job_id, payload)
        latest = self._keep(lines.job_id, payload)
        reply = await self._publish(lines.job_id, payload)
        if reply.backlog > BACKLOG_MAX:
            self._held.add(lines.job_id)
        while len(latest) > reply.backlog + ON_THEIR_WAY_MAX:
            latest.popleft()
        self.published_lines += len(lines.lines)

    def _keep(self, job_id: bytes, payload: bytes) -> deque[bytes]:
        latest = self._latest.setdefault(job_id, deque())
        self._latest.move_to_end(job_id)
        if len(self._latest) > JOBS_KEPT_MAX:
            self._latest.popitem(last=False)
        latest.append(payload)
        return latest

    async def _publish(self, job_id: bytes, payload: bytes) -> gcs_pb2.PublishReply:
        while True:
            try:
                gcs = GcsServiceAsyncStub(await self._connected())
                if self._must_tell_again:
                    await self._tell_again(gcs)
                return await gcs.Publish(publication(job_id, payload))
            except RpcError as error:
                if error.code is not StatusCode.UNAVAILABLE:
                    raise
                logger.warning("waiting for the GCS at %s: %s", self._gcs_address, error.message)
                await asyncio.sleep(RECONNECT_PERIOD_S)

    async def _ask(self, job_id: bytes) -> gcs_pb2.PublishReply:
        """Publishes nothing: asks how many messages wait there."""
        return await self._publish(job_id, b"")

    async def _tell_again(self, gcs: GcsServiceAsyncStub) -> None:
        """To a GCS that is new, before anything else: what comes late drivers take for what they have had."""
        for job_id, batches in list(self._latest.items()):
            for batch in list(batches):
                await gcs.Publish(publication(job_id, batch))
        self._must_tell_again = False

    async def _connected(self) -> AsyncChannel:
        async with self._connecting:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._transport.connect(self._gcs_address, CONNECT_TIMEOUT_S)
                self._must_tell_again = bool(self._latest)
            return self._channel

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def publication(job_id: bytes, payload: bytes) -> gcs_pb2.PublishRequest:
    message = gcs_pb2.PubMessage(channel=gcs_pb2.LOG, key=job_id, payload=payload)
    return gcs_pb2.PublishRequest(message=message)


def try_lock(path: Path) -> int | None:
    """The descriptor that holds the lock; None while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


async def follow(
    monitor: LogMonitor,
    directory: LogDirectory,
    positions: LogPositions,
    watch: DirectoryWatch,
    stop: asyncio.Event,
) -> None:
    """Works until `stop` is set, and then once more, for what was written before that."""
    lock_path = directory.path / LOCK_FILE
    lock = try_lock(lock_path)
    while lock is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOCK_RETRY_PERIOD_S)
            return
        lock = try_lock(lock_path)
    try:
        positions.open()
        directory.skip(positions.offsets)
        await monitor.take_over()
        async with asyncio.TaskGroup() as group:
            listener = group.create_task(monitor.listen(watch.wake))
            await _rounds(monitor, watch, stop)
            listener.cancel()
    finally:
        positions.close()
        os.close(lock)


async def _rounds(monitor: LogMonitor, watch: DirectoryWatch, stop: asyncio.Event) -> None:
    is_quiet = False
    while True:
        is_last = stop.is_set()
        if await monitor.round(with_begun=is_quiet):
            is_quiet = False
            continue
        if is_last:
            await monitor.round(with_begun=True)  # nothing is new by now
            return
        is_changed = await watch.wait(HELD_RETRY_PERIOD_S if monitor.is_held else LOOK_PERIOD_S)
        is_quiet = not is_changed and not monitor.is_held
        if is_changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(monitor.flush_wanted.wait(), GATHER_S)


async def serve(service: Service, arguments: argparse.Namespace) -> None:
    logs = Path(arguments.session_dir, "logs")
    positions = LogPositions(logs / POSITIONS_FILE)
    directory = LogDirectory(logs, on_removed=positions.forget)
    monitor = LogMonitor(
        directory,
        positions,
        FramedTransport(find_secret(None, arguments.session_dir)),
        arguments.gcs_address,
        arguments.node_ip,
        bytes.fromhex(arguments.node_id),
    )
    service.on_dump(lambda: {"published_lines": monitor.published_lines})
    watch, stop = DirectoryWatch(str(directory.path)), asyncio.Event()
    task = service.tasks.spawn(follow(monitor, directory, positions, watch, stop), "follow")
    if arguments.raylet_socket:
        service.tasks.spawn(monitor.follow_head(arguments.raylet_socket), "follow the head")
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
    parser.add_argument(
        "--raylet-socket", default="", help="of the node's raylet, which knows when the head moves"
    )
    add_common_arguments(parser)
    arguments = parser.parse_args()
    if arguments.session_dir is None:
        parser.error("--session-dir is required: its logs/ holds what is to be followed")
    return run_service("log_monitor", functools.partial(serve, arguments=arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The raylet's side of the GCS: it registers the node, reports resources, passes on deaths and warnings, and
listens.

No lease waits on any of this. There is one connection at a time, and on each the same happens. First the
node registers (also again, after the GCS was away). Then five loops run until one of them fails:

    listen            changes of the cluster come in; at first, which jobs are over
    report            the node's resources go out when they changed, gathered for `report_period_s`
    outbox            messages go out
    keep registered   the node registers again whenever a lease for an actor has lost its requester
    keep confirmed    the head is asked whether it holds the node to be alive (head_lease.py)

Each registration names the leases for actors and the bundles of placement groups, and its answer names those
of them that nobody wants, and the bundles that are to be open. For a head that lost its store it says what
else this node knows.

A head that is not there is looked for in all places where it may be, in turn: those that this raylet was
given, and those that a head has told.

A head whose number is below one that the cluster has had is not listened to: another one took over from it.

If no GCS has confirmed the node for `gcs_reconnect_timeout_s`, or one holds it to be dead, the raylet ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ray_mono.common.backoff import Backoff
from ray_mono.common.our_bug import InternalError
from ray_mono.common.world import Clock
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.head_lease import HeadLease
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode, Transport

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 0.02
RETRY_MAX_S = 0.2
"""Pauses between attempts to reach the GCS, doubled from the first to this. One that its reaper starts again
listens within that."""
KNOWN_CLUSTERS_MAX = 16
CALL_TIMEOUT_S = 30.0
"""One call, whose answer waits for the GCS's storage. A GCS that takes longer is as good as gone, unless it
answers what needs no storage."""

# What the raylet has to know of the cluster.
CHANNELS = (
    gcs_pb2.NODE,
    gcs_pb2.NODE_RESOURCES,
    gcs_pb2.JOB,
    gcs_pb2.COLLECT_RESOURCES,
    gcs_pb2.COLLECT_GARBAGE,
)

# Whether the GCS has it is unknown: it is told again, which it takes once.
LOST_CODES = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)


class GcsEvents(Protocol):
    """What the raylet hears from the GCS, and what it tells when it registers."""

    def registration(
        self, node: common_pb2.NodeInfo, known_cluster_ids: Sequence[bytes]
    ) -> gcs_pb2.RegisterNodeRequest: ...

    def found(self, head: common_pb2.HeadPlace) -> None:
        """The GCS, which is there, has the node, for the first time or again."""

    def disowned(self, lease_ids: Sequence[bytes]) -> None: ...

    def bundles_unwanted(
        self,
        bundles: Sequence[common_pb2.BundleIndices],
        number: common_pb2.BundleRequestNumber,
        cluster_id: bytes,
    ) -> None: ...

    def node_changed(self, node: common_pb2.NodeInfo) -> None: ...

    def resources_changed(self, nodes: Sequence[common_pb2.NodeResources]) -> None: ...

    def job_changed(self, job: common_pb2.JobInfo) -> None: ...

    def garbage_is_wanted(self) -> None: ...


class GcsClient:
    """Keeps the node known to the GCS."""

    def __init__(
        self,
        config: RayletConfig,
        transport: Transport,
        clock: Clock,
        lease: HeadLease,
        outbox: GcsOutbox,
        current_resources: Callable[[], Awaitable[common_pb2.NodeResources]],
        events: GcsEvents,
    ) -> None:
        """current_resources(): without a version; that is counted here."""
        self._config = config
        self._transport = transport
        self._clock = clock
        self._lease = lease
        self._outbox = outbox
        self._current_resources = current_resources
        self._events = events
        # The numbers of those who want a report at once.
        self._asked: list[bytes] = []
        self._is_asked = asyncio.Event()
        # Those that ended before this connection listened.
        self._misses_jobs = asyncio.Event()
        self._last_report = common_pb2.NodeResources()
        self._stub: gcs_rpc.GcsServiceAsyncStub | None = None
        # Exactly one of the two is set.
        self._registered = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()
        # Where the head is, or may be: one of these.
        self._address = config.gcs_address
        self._places = list(dict.fromkeys((config.gcs_address, *config.other_gcs_addresses)))
        self._channel: AsyncChannel | None = None
        # Clusters whose heads answered, the latest first. Heads that lose their stores may follow each other
        # so quickly that some nodes know the one and some the other: by these they are one cluster.
        self._known_cluster_ids: deque[bytes] = deque(maxlen=KNOWN_CLUSTERS_MAX)
        # The highest number of a head of the latest: numbers of others say nothing.
        self._head_number = 0
        self.trouble = ""
        """What the latest connection to a head ended with; empty before that."""

    async def until_registered(self, after_head_number: int = 0) -> common_pb2.HeadPlace:
        """Waits until the node is registered at a head with a number above this one. `run` bounds the wait
        for some head."""
        while True:
            await self._registered.wait()
            if self._head_number > after_head_number:
                return self._place
            await self._lost.wait()

    @property
    def cluster_id(self) -> bytes:
        """Of the head where the node was registered last; empty before."""
        return self._known_cluster_ids[0] if self._known_cluster_ids else b""

    @property
    def _place(self) -> common_pb2.HeadPlace:
        return common_pb2.HeadPlace(
            address=self._address, head_number=self._head_number, cluster_id=self.cluster_id
        )

    def follow(self, head: common_pb2.HeadPlace) -> None:
        """A head says that it has taken over."""
        if head.cluster_id == self.cluster_id and head.head_number > self._head_number:
            logger.warning("head %d at %s has taken over", head.head_number, head.address)
            self._address = head.address
            if head.address not in self._places:
                self._places.append(head.address)
            if self._channel is not None:
                self._channel.close()

    async def workers(self) -> Sequence[common_pb2.WorkerInfo]:
        """All that the head knows. Raises RpcError."""
        if self._stub is None:
            raise RpcError(StatusCode.UNAVAILABLE, "the GCS is away")
        reply = await self._stub.GetAllWorkers(common_pb2.Empty(), timeout_s=CALL_TIMEOUT_S)
        return reply.workers

    async def next_of_group(self, group_id: bytes, after_version: int) -> common_pb2.PlacementGroupInfo:
        """The row of a placement group, once its version is above this one. Raises RpcError; NOT_FOUND where
        the head knows none."""
        if self._stub is None:
            raise RpcError(StatusCode.UNAVAILABLE, "the GCS is away")
        request = gcs_pb2.WatchPlacementGroupRequest(placement_group_id=group_id, after_version=after_version)
        return await self._stub.WatchPlacementGroup(request)

    async def unregister(self, reason: str, timeout_s: float) -> None:
        """The node leaves in order. reason: empty where it was told to. Where this fails the GCS notices
        anyway."""
        if self._stub is None:
            return
        kind = common_pb2.DeathCause.NODE_DIED if reason else common_pb2.DeathCause.KILLED
        cause = common_pb2.DeathCause(kind=kind, message=reason or "its raylet was stopped")
        try:
            request = gcs_pb2.UnregisterNodeRequest(node_id=self._config.node_id, cause=cause)
            await self._stub.UnregisterNode(request, timeout_s=timeout_s)
        except RpcError as error:
            logger.info("could not unregister: %s", error)

    async def run(self, node: common_pb2.NodeInfo) -> str:
        """Keeps the node registered until it must not, and returns why: the GCS was away for too long, or
        refuses this node.
        """
        pauses = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while True:
            try:
                channel = await self._connect()
            except RpcError as error:
                return f"the GCS at {self._address} cannot be reached: {error.message}"
            self._channel = channel
            try:
                await self._session(channel, node, pauses)
            except RpcError as error:
                if error.code in (StatusCode.FAILED_PRECONDITION, StatusCode.INVALID_ARGUMENT):
                    return f"the GCS refuses this node: {error.message}"
                if self._lease.is_over():
                    return f"the GCS at {self._address} does not take this node: {error.message}"
                self.trouble = f"{self._address}: {error.message}"
                logger.warning("lost the GCS at %s: %s; connecting again", self._address, error)
                if not self._registered.is_set():
                    self._look_elsewhere()
            finally:
                self._stub = self._channel = None
                self._registered.clear()
                self._lost.set()
                channel.close()
            await asyncio.sleep(pauses.next_s())

    async def _connect(self) -> AsyncChannel:
        """Raises RpcError when the bound of `gcs_reconnect_timeout_s` is over, or the secret is wrong."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        while True:
            try:
                return await self._transport.connect(self._address, self._config.connect_timeout_s)
            except RpcError as error:
                if error.code != StatusCode.UNAVAILABLE or self._lease.is_over():
                    raise
                pause_s = backoff.next_s()
                level = logging.INFO if pause_s < 1 else logging.WARNING
                logger.log(level, "waiting for the GCS at %s: %s", self._address, error.message)
                self._look_elsewhere()
            await asyncio.sleep(pause_s)

    def _look_elsewhere(self) -> None:
        """The head was not there: in the next of the places that it may be at."""
        self._address = self._places[(self._places.index(self._address) + 1) % len(self._places)]

    async def _session(self, channel: AsyncChannel, node: common_pb2.NodeInfo, pauses: Backoff) -> None:
        """One connection's work. Raises the RpcError that ended it.

        pauses: between connections whose GCS did not take this node.
        """
        stub = gcs_rpc.GcsServiceAsyncStub(channel)
        await self._register(stub, node)
        pauses.reset()
        self._events.found(self._place)
        self._stub = stub
        self._last_report = common_pb2.NodeResources(version=self._last_report.version)
        self._outbox.resources_changed()
        self._lost.clear()
        self._registered.set()
        loops = [
            asyncio.ensure_future(loop)
            for loop in (
                self._listen(stub),
                self._ask_for_jobs(stub),
                self._report(stub),
                self._empty_outbox(stub),
                self._keep_registered(stub, node),
                self._keep_confirmed(stub),
            )
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        for task in loops:
            if task in done:
                task.result()

    async def _register(self, stub: gcs_rpc.GcsServiceAsyncStub, node: common_pb2.NodeInfo) -> None:
        self._outbox.registers()
        asked_s = self._lease.now_s()
        request = self._events.registration(node, list(self._known_cluster_ids))
        reply = await stub.RegisterNode(request, timeout_s=CALL_TIMEOUT_S)
        if reply.cluster_id != self.cluster_id:
            self._known_cluster_ids.appendleft(reply.cluster_id)
        elif reply.head_number < self._head_number:
            raise RpcError(
                StatusCode.UNAVAILABLE,
                f"it is head {reply.head_number}, and head {self._head_number} took over",
            )
        self._head_number = reply.head_number
        self._lease.confirmed(asked_s)
        for row in reply.nodes:
            self._events.node_changed(row)
        self._events.disowned(reply.unwanted_lease_ids)
        self._events.bundles_unwanted(reply.unwanted_bundles, reply.unwanted_number, reply.cluster_id)

    async def _keep_registered(self, stub: gcs_rpc.GcsServiceAsyncStub, node: common_pb2.NodeInfo) -> None:
        while True:
            await self._outbox.until_it_must_register()
            await self._register(stub, node)

    async def _keep_confirmed(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        """A head that does not answer is as good as gone: the node looks for another connection, or head."""
        request = gcs_pb2.CheckAliveRequest(node_ids=[self._config.node_id])
        while True:
            await asyncio.sleep(self._lease.period_s)
            asked_s = self._lease.now_s()
            reply = await stub.CheckAlive(request, timeout_s=3 * self._lease.period_s)
            if not all(reply.raylet_alive):
                raise RpcError(StatusCode.UNAVAILABLE, "it does not know this node")
            self._lease.confirmed(asked_s)

    async def _listen(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        """Rows first, then changes."""
        filters = [gcs_pb2.ChannelFilter(channel=channel) for channel in CHANNELS]
        listens = False
        async for message in stub.Subscribe(gcs_pb2.SubscribeRequest(channels=filters)):
            if not listens:
                listens = True
                self._misses_jobs.set()
            match message.channel:
                case gcs_pb2.NODE:
                    for node in gcs_pb2.NodeNews.FromString(message.payload).nodes:
                        self._events.node_changed(node)
                case gcs_pb2.NODE_RESOURCES:
                    self._events.resources_changed(gcs_pb2.ResourceNews.FromString(message.payload).nodes)
                case gcs_pb2.JOB:
                    self._events.job_changed(common_pb2.JobInfo.FromString(message.payload))
                case gcs_pb2.COLLECT_RESOURCES:
                    self._asked.append(message.payload)
                    self._is_asked.set()
                    self._outbox.resources_changed()
                case gcs_pb2.COLLECT_GARBAGE:
                    self._events.garbage_is_wanted()
                case other:
                    raise InternalError(f"a message of a channel that was not asked for: {other}")
        raise RpcError(StatusCode.UNAVAILABLE, "the GCS ended the subscription")

    async def _ask_for_jobs(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        """Jobs have no rows on their channel: those that ended meanwhile are asked for once the first row of
        a node (there is one: this node's) shows that no later end will be missed. Nodes do not wait for it:
        a head on an empty store answers when it has heard all, and the next may have to be told of them.
        """
        while True:
            await self._misses_jobs.wait()
            self._misses_jobs.clear()
            for job in (await stub.GetAllJobs(common_pb2.Empty(), timeout_s=CALL_TIMEOUT_S)).jobs:
                self._events.job_changed(job)

    async def _report(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        while True:
            await self._outbox.until_resources_change()
            self._is_asked.clear()
            asked, self._asked = self._asked, []
            has_changed = self._count_change(await self._current_resources())
            if has_changed or asked:
                report = common_pb2.NodeResources(collections=asked)
                report.MergeFrom(self._last_report)
                await stub.ReportResources(report, timeout_s=CALL_TIMEOUT_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_asked.wait(), self._config.report_period_s)

    def _count_change(self, current: common_pb2.NodeResources) -> bool:
        """Whether this is another report than the last one; then it is the last one now, of the next
        version."""
        version = self._last_report.version
        current.MergeFrom(common_pb2.NodeResources(version=version))
        if current == self._last_report:
            return False
        current.MergeFrom(common_pb2.NodeResources(version=version + 1))
        self._last_report = current
        return True

    async def _check_there(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        """Raises RpcError unless the GCS answers what needs no store: that may have no room just now."""
        nothing = gcs_pb2.PublishRequest(message=gcs_pb2.PubMessage(channel=gcs_pb2.COLLECT_GARBAGE))
        await stub.Publish(nothing, timeout_s=CALL_TIMEOUT_S)

    async def _empty_outbox(self, stub: gcs_rpc.GcsServiceAsyncStub) -> None:
        while True:
            while self._outbox:
                method, message = self._outbox.take()
                try:
                    await getattr(stub, method)(message, timeout_s=CALL_TIMEOUT_S)
                except RpcError as error:
                    if error.code in LOST_CODES:
                        self._outbox.put_back(method, message)
                        if error.code is not StatusCode.DEADLINE_EXCEEDED:
                            raise
                        await self._check_there(stub)
                        continue
                    logger.error("the GCS refused %s: %s", method, error)
                except asyncio.CancelledError:
                    self._outbox.put_back(method, message)
                    raise
            await self._outbox.until_filled()

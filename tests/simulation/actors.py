"""A simulated caller of one actor: the driver's side. It owns the actor, and calls it in order.

It registers the actor with the GCS, learns by WatchActor where it lives, pushes calls straight to it, several
at a time, with sequence numbers of the incarnation; asks again when the connection ends; and lets go of the
actor at the end. What goes unanswered when an incarnation is lost costs that call an attempt. A connection
that broke is made again while the incarnation lives: an actor remembers what it answered, so that a call that
is sent again does not run again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict, dataclass

from ray_mono.common.ids import ActorID, TaskID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, core_worker_pb2, core_worker_rpc, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import AsyncChannel, RpcError, StatusCode
from tests.simulation.actor_checkers import ActorJournal
from tests.simulation.transport import SimTransport

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
GCS_TIMEOUT_S = 30.0
WATCH_S = 2.0
"""How long a caller whose connection ended waits for news before it tries the same address again."""
RETRY_PAUSE_S = 0.1
CALLS_IN_FLIGHT_MAX = 4


@dataclass(frozen=True)
class ActorScript:
    """What a simulated actor is and does, in virtual seconds."""

    construct_s: float = 0.01
    num_calls: int = 5
    call_s: float = 0.01
    max_restarts: int = 0
    max_task_retries: int = 0
    constructor_raises: bool = False
    dies_in_constructors: int = 0
    """The processes of so many first incarnations die before the constructor returns."""
    dies_at_call: int = -1
    """The process dies of this call when it runs for the first time."""
    cpus: float = 0.0
    """Held while it lives; to be placed it needs a CPU in any case."""
    is_killed_at_the_end: bool = False
    """By kill(), instead of going out of scope."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ActorScript:
        return cls(**json.loads(data))


@dataclass(frozen=True)
class Owner:
    """The driver that owns the actor."""

    job_id: bytes
    worker_id: bytes
    node_id: bytes
    gcs_address: str


class ActorGone(Exception):
    """The actor is dead."""


class SimActor:
    """One actor, as its owner sees it."""

    def __init__(
        self, owner: Owner, counter: int, script: ActorScript, transport: SimTransport, journal: ActorJournal
    ) -> None:
        self._owner = owner
        self._script = script
        self._transport = transport
        self._journal = journal
        parent = TaskID.for_driver(owner.job_id).binary()
        self.actor_id = ActorID.of(owner.job_id, parent, counter).binary()
        self._gcs: gcs_rpc.GcsServiceAsyncStub | None = None
        self._gcs_channel: AsyncChannel | None = None
        # Calls that have no answer yet, by number; how often each was sent to an incarnation that was lost.
        self._unanswered: dict[int, int] = dict.fromkeys(range(script.num_calls), 0)
        self._sent: dict[int, None] = {}
        # Of the incarnation: its worker id, and the sequence number of its first call.
        self._incarnation = b""
        self._first_call = 0

    async def run(self) -> None:
        """The actor's whole life: returns when it is dead and all calls have answers or failed."""
        self._journal.registered(self.actor_id, self._script.max_restarts)
        request = gcs_pb2.RegisterActorRequest(creation_spec=self._spec(), class_name="Simulated")
        await self._ask_gcs("RegisterActor", request)
        try:
            info = await self._watch(0)
            while self._unanswered:
                info = await self._until_alive(info)
                if await self._converse(info):
                    break
                info = await self._after_loss(info)
            await self._let_go()
            while True:
                info = await self._watch(info.version)
        except ActorGone:
            self._journal.calls_failed += len(self._unanswered)

    async def _let_go(self) -> None:
        if self._script.is_killed_at_the_end:
            kill = gcs_pb2.KillActorRequest(actor_id=self.actor_id, force=True, no_restart=True)
            await self._ask_gcs("KillActor", kill)
        else:
            request = gcs_pb2.ActorOutOfScopeRequest(actor_id=self.actor_id)
            await self._ask_gcs("ActorOutOfScope", request)

    # ---- what the GCS says

    async def _watch(self, after_version: int, timeout_s: float | None = None) -> common_pb2.ActorInfo:
        """The row when it is newer. Raises ActorGone when it is dead, RpcError DEADLINE_EXCEEDED after
        timeout_s.
        """
        request = gcs_pb2.WatchActorRequest(actor_id=self.actor_id, after_version=after_version)
        info: common_pb2.ActorInfo = await self._ask_gcs("WatchActor", request, timeout_s)
        if info.state == common_pb2.DEAD:
            raise ActorGone(info.death_cause.message)
        return info

    async def _until_alive(self, info: common_pb2.ActorInfo) -> common_pb2.ActorInfo:
        while info.state != common_pb2.ALIVE:
            info = await self._watch(info.version)
        return info

    async def _after_loss(self, info: common_pb2.ActorInfo) -> common_pb2.ActorInfo:
        """After the connection ended: the next version of the row, or the same one when nothing seems to have
        happened.
        """
        try:
            return await self._watch(info.version, timeout_s=WATCH_S)
        except RpcError:
            return info

    async def _ask_gcs(
        self, method: str, request: object, timeout_s: float | None = None
    ) -> common_pb2.ActorInfo:
        """A call to the GCS, again until it answers. Only a timeout_s of the caller's own can fail."""
        while True:
            try:
                if self._gcs is None or self._gcs_channel is None or self._gcs_channel.is_closed:
                    self._gcs_channel = await self._transport.connect(
                        self._owner.gcs_address, CONNECT_TIMEOUT_S
                    )
                    self._gcs = gcs_rpc.GcsServiceAsyncStub(self._gcs_channel)
                limit_s = timeout_s or (None if method == "WatchActor" else GCS_TIMEOUT_S)
                reply: common_pb2.ActorInfo = await getattr(self._gcs, method)(request, timeout_s=limit_s)
                return reply
            except RpcError as error:
                is_ours = timeout_s is not None and error.code == StatusCode.DEADLINE_EXCEEDED
                if is_ours or error.code not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
                    raise
                logger.debug("%s: %s", method, error)
            await asyncio.sleep(RETRY_PAUSE_S)

    # ---- calls

    async def _converse(self, info: common_pb2.ActorInfo) -> bool:
        """Pushes calls until all are answered (True) or the connection ends (False)."""
        if info.address.worker_id != self._incarnation:
            self._begin_incarnation(info.address.worker_id)
        try:
            address = f"{info.address.host}:{info.address.port}"
            channel = await self._transport.connect(address, CONNECT_TIMEOUT_S)
        except RpcError as error:
            logger.debug("actor at %s: %s", address, error)
            return False
        stub = core_worker_rpc.CoreWorkerServiceAsyncStub(channel)
        try:
            while self._unanswered:
                numbers = list(self._unanswered)[:CALLS_IN_FLIGHT_MAX]
                self._sent.update(dict.fromkeys(numbers))
                pushes = [self._push(stub, number, info) for number in numbers]
                outcomes = await asyncio.gather(*pushes, return_exceptions=True)
                for outcome in outcomes:
                    if isinstance(outcome, RpcError):
                        logger.debug("actor call: %s", outcome)
                        return False
                    if isinstance(outcome, BaseException):
                        raise outcome
            return True
        finally:
            channel.close()

    def _begin_incarnation(self, worker_id: bytes) -> None:
        """Another process is the actor now: what the last one was sent and did not answer has cost an
        attempt.
        """
        self._incarnation = worker_id
        for number in self._sent:
            if number in self._unanswered:
                self._unanswered[number] += 1
                if self._unanswered[number] > self._script.max_task_retries:
                    del self._unanswered[number]
                    self._journal.calls_failed += 1
        self._sent.clear()
        self._first_call = min(self._unanswered, default=0)

    async def _push(
        self, stub: core_worker_rpc.CoreWorkerServiceAsyncStub, number: int, info: common_pb2.ActorInfo
    ) -> None:
        spec = common_pb2.TaskSpec(
            type=common_pb2.ACTOR_TASK,
            name="simulated call",
            job_id=self._owner.job_id,
            flat_args=self._script.to_bytes(),
            attempt=self._unanswered[number],
            actor_task=common_pb2.ActorTaskSpec(actor_id=self.actor_id, sequence_number=number),
        )
        request = core_worker_pb2.PushTaskRequest(spec=spec, intended_worker_id=info.address.worker_id)
        reply = await stub.PushTask(request)
        if reply.status != core_worker_pb2.PushTaskReply.DONE:
            raise RpcError(StatusCode.UNAVAILABLE, "the worker at this address is another one")
        del self._unanswered[number]
        self._journal.calls_done += 1

    def _spec(self) -> common_pb2.TaskSpec:
        owner, script = self._owner, self._script
        return common_pb2.TaskSpec(
            type=common_pb2.ACTOR_CREATION_TASK,
            name="Simulated.__init__",
            job_id=owner.job_id,
            task_id=TaskID.for_actor_creation(self.actor_id).binary(),
            caller=common_pb2.Address(worker_id=owner.worker_id, node_id=owner.node_id),
            flat_args=script.to_bytes(),
            resources=ResourceSet.from_units({"CPU": script.cpus}).to_proto(),
            placement_resources=ResourceSet.from_units({"CPU": 1}).to_proto(),
            actor_creation=common_pb2.ActorCreationSpec(
                actor_id=self.actor_id,
                max_restarts=script.max_restarts,
                max_task_retries=script.max_task_retries,
            ),
        )

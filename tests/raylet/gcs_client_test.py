"""The raylet's side of the GCS in virtual time: nothing that it has to tell or to hear is lost while the
GCS is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.raylet import gcs_client, gcs_outbox
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.config import RayletConfig
from ray_mono.raylet.gcs_client import GcsClient
from ray_mono.raylet.gcs_outbox import GcsOutbox
from ray_mono.raylet.head_lease import HeadLease
from ray_mono.rpc.surface import CallContext, RpcError, StatusCode
from tests.simulation.process import SimProcess
from tests.simulation.world import World
from tests.waiting import until

NODE_ID = b"n" * 28
LIMIT_S = 300.0
EMPTY = common_pb2.Empty()


def nodes_message(*node_ids: bytes) -> gcs_pb2.PubMessage:
    news = gcs_pb2.NodeNews(nodes=[common_pb2.NodeInfo(node_id=node_id) for node_id in node_ids])
    return gcs_pb2.PubMessage(channel=gcs_pb2.NODE, payload=news.SerializeToString())


class FakeGcs(gcs_rpc.GcsServiceServicer):
    """Records what it is told, and answers when it is not told to hold its answers back."""

    def __init__(self, head: tuple[bytes, int]) -> None:
        self.head = head
        self.registrations: list[list[bytes]] = []
        self.unwanted: list[bytes] = []
        self.bundles: list[common_pb2.BundleIndices] = []
        """That have to be open."""
        self.deaths: list[bytes] = []
        self.reports: list[common_pb2.NodeResources] = []
        self.holds_answers = False
        self.is_silent = False
        """It does not confirm nodes."""
        self.knows_node = True
        self.refuses: set[bytes] = set()
        self.jobs: list[common_pb2.JobInfo] = []
        self.nodes: list[common_pb2.NodeInfo] = []
        self.is_hearing = False
        """Its store was lost: which jobs there are, it does not say before it has heard all."""
        self.published: asyncio.Queue[gcs_pb2.PubMessage | None] = asyncio.Queue()

    async def RegisterNode(
        self, request: gcs_pb2.RegisterNodeRequest, context: CallContext
    ) -> gcs_pb2.RegisterNodeReply:
        self.registrations.append([lease.lease_id for lease in request.actor_leases])
        return gcs_pb2.RegisterNodeReply(
            unwanted_lease_ids=self.unwanted,
            unwanted_bundles=self.bundles,
            head_number=self.head[1],
            cluster_id=self.head[0],
            nodes=self.nodes,
        )

    async def CheckAlive(
        self, request: gcs_pb2.CheckAliveRequest, context: CallContext
    ) -> gcs_pb2.CheckAliveReply:
        assert request.node_ids == [NODE_ID]
        if self.is_silent:
            await asyncio.Event().wait()
        return gcs_pb2.CheckAliveReply(raylet_alive=[self.knows_node])

    async def ReportResources(
        self, request: common_pb2.NodeResources, context: CallContext
    ) -> common_pb2.Empty:
        self.reports.append(request)
        return EMPTY

    async def ReportWorkerDeath(
        self, request: common_pb2.WorkerInfo, context: CallContext
    ) -> common_pb2.Empty:
        self.deaths.append(request.worker_id)
        if self.holds_answers:
            await asyncio.Event().wait()
        if request.worker_id in self.refuses:
            raise RpcError(StatusCode.NOT_FOUND, "no such worker")
        return EMPTY

    async def Publish(self, request: gcs_pb2.PublishRequest, context: CallContext) -> gcs_pb2.PublishReply:
        assert not request.message.payload
        return gcs_pb2.PublishReply()

    async def GetAllJobs(self, request: common_pb2.Empty, context: CallContext) -> gcs_pb2.GetAllJobsReply:
        if self.is_hearing:
            await asyncio.Event().wait()
        return gcs_pb2.GetAllJobsReply(jobs=self.jobs)

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: CallContext
    ) -> AsyncIterator[gcs_pb2.PubMessage]:
        yield nodes_message(NODE_ID)
        while (message := await self.published.get()) is not None:
            yield message


class Heard:
    """GcsEvents: what the raylet would do."""

    def __init__(self) -> None:
        self.leases = [b"lease"]
        self.known: list[list[bytes]] = []
        """The clusters that the node knew when it registered."""
        self.disowned_leases: list[bytes] = []
        self.unwanted_bundles: list[list[int]] = []
        """Bundles that are not wanted, and that have to be open, by registration."""
        self.finished: list[bytes] = []
        self.nodes: list[bytes] = []
        """Other ones."""
        self.news: list[str] = []

    def found(self, head: common_pb2.HeadPlace) -> None:
        self.news.append("found")

    def registration(
        self, node: common_pb2.NodeInfo, known_cluster_ids: Sequence[bytes]
    ) -> gcs_pb2.RegisterNodeRequest:
        self.known.append(list(known_cluster_ids))
        leases = [gcs_pb2.ActorLease(lease_id=lease_id) for lease_id in self.leases]
        return gcs_pb2.RegisterNodeRequest(node=node, actor_leases=leases)

    def disowned(self, lease_ids: Sequence[bytes]) -> None:
        self.disowned_leases += lease_ids

    def bundles_unwanted(
        self,
        bundles: Sequence[common_pb2.BundleIndices],
        number: common_pb2.BundleRequestNumber,
        cluster_id: bytes,
    ) -> None:
        self.unwanted_bundles.append([each.indices[0] for each in bundles])

    def node_changed(self, node: common_pb2.NodeInfo) -> None:
        if node.node_id != NODE_ID:
            self.nodes.append(node.node_id)

    def resources_changed(self, nodes: Sequence[common_pb2.NodeResources]) -> None: ...

    def job_changed(self, job: common_pb2.JobInfo) -> None:
        if job.is_finished:
            self.finished.append(job.job_id)

    def garbage_is_wanted(self) -> None: ...


class Scene:
    """One GcsClient that runs, and the GCS, which goes and comes."""

    def __init__(self, world: World, outbox_max: int) -> None:
        self.world = world
        self.heard = Heard()
        self.available = ResourceSet.from_units({"CPU": 2})
        self._outbox_max = outbox_max
        world.network.add_host("head")
        self.address = f"{world.network.ip_of('head')}:6379"
        self._gcs_process: SimProcess | None = None
        self.client: GcsClient
        self.lease: HeadLease
        self.outbox: GcsOutbox

    async def start_gcs(self, head: tuple[bytes, int] = (b"cluster", 1)) -> FakeGcs:
        """Another one than before, which knows nothing, at the same address; head: cluster and number."""
        gcs = FakeGcs(head)
        self._gcs_process = process = self.world.network.start_process("head", "gcs")
        await process.spawn(
            self.world.transport(process).serve(self.address, gcs_rpc.gcs_service_handlers(gcs))
        )
        return gcs

    def kill_gcs(self) -> None:
        assert self._gcs_process is not None
        self._gcs_process.kill("SIGKILL")

    async def start_client(self, *others: str) -> asyncio.Future[str]:
        """Returns when it is registered, with what will be why it ended. others: more places of the head."""
        process = self.world.network.start_process("head", "raylet")
        total = ResourceSet.from_units({"CPU": 2})
        config = RayletConfig(
            NODE_ID,
            self.address,
            "/s",
            "h",
            "/d",
            total,
            other_gcs_addresses=others,
            gcs_outbox_max=self._outbox_max,
        )
        transport, clock = self.world.transport(process), self.world.clock
        node = common_pb2.NodeInfo(node_id=NODE_ID)
        self.outbox = GcsOutbox(NODE_ID, self._outbox_max)
        launcher: Any = SimpleNamespace(lease_ends=lambda at_ns, awake_ns: None)
        duration_s = config.gcs_reconnect_timeout_s
        self.lease = HeadLease(duration_s, clock, launcher, Clients())
        self.client = GcsClient(
            config, transport, clock, self.lease, self.outbox, self._resources, self.heard
        )
        ended = process.spawn(self.client.run(node))
        await self.client.until_registered()
        return ended

    async def _resources(self) -> common_pb2.NodeResources:
        return common_pb2.NodeResources(node_id=NODE_ID, available=self.available.to_proto())

    def dies(self, name: str) -> None:
        self.outbox.report_worker_death(common_pb2.WorkerInfo(worker_id=name.encode()))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Errors in its log, which a world takes for failures."""
    errors: list[str] = []
    for module in (gcs_client, gcs_outbox):
        monkeypatch.setattr(module.logger, "error", lambda text, *values: errors.append(text % values))
    return errors


def play(script: Callable[[Scene], Awaitable[None]], outbox_max: int = 100) -> None:
    async def run(scene: Scene) -> None:
        await script(scene)

    with World(seed=1) as world:
        world.run(run(Scene(world, outbox_max)), LIMIT_S)


def test_a_report_in_flight_when_the_connection_breaks_is_told_again_before_later_ones() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        gcs.holds_answers = True
        await scene.start_client()
        scene.dies("in flight")
        await until(lambda: gcs.deaths == [b"in flight"])
        scene.dies("behind it")
        scene.kill_gcs()
        scene.dies("while it is away")
        gcs = await scene.start_gcs()
        await until(lambda: len(gcs.deaths) == 3)
        assert gcs.deaths == [b"in flight", b"behind it", b"while it is away"]
        assert scene.heard.news == ["found", "found"]

    play(script)


def test_a_report_in_flight_when_the_subscription_ends_is_told_again() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        gcs.holds_answers = True
        await scene.start_client()
        scene.dies("in flight")
        await until(lambda: gcs.deaths == [b"in flight"])
        scene.dies("behind it")
        gcs.holds_answers = False
        await gcs.published.put(None)
        await until(lambda: len(gcs.deaths) == 3)
        assert gcs.deaths == [b"in flight", b"in flight", b"behind it"] and len(gcs.registrations) == 2

    play(script)


def test_a_gcs_that_answers_what_needs_no_store_keeps_the_node_however_long_the_rest_takes() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        gcs.holds_answers = True
        ended = await scene.start_client()
        scene.dies("a")
        await asyncio.sleep(150)
        assert not ended.done() and len(gcs.registrations) == 1
        gcs.holds_answers = False
        scene.dies("b")
        await until(lambda: b"b" in gcs.deaths)
        assert gcs.deaths[0] == b"a" and gcs.deaths[-2:] == [b"a", b"b"]

    play(script)


def test_a_report_that_is_refused_holds_no_other_back(said: list[str]) -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        gcs.refuses = {b"unknown"}
        await scene.start_client()
        scene.dies("unknown")
        scene.dies("known")
        await until(lambda: gcs.deaths == [b"unknown", b"known"])
        assert said == ["the GCS refused ReportWorkerDeath: NOT_FOUND: no such worker"]

    play(script)


def test_the_outbox_is_bounded_and_loses_the_oldest(said: list[str]) -> None:
    async def script(scene: Scene) -> None:
        await scene.start_gcs()
        await scene.start_client()
        scene.kill_gcs()
        await asyncio.sleep(1)
        for name in ("a", "b", "c"):
            scene.dies(name)
        gcs = await scene.start_gcs()
        await until(lambda: len(gcs.deaths) == 2)
        assert gcs.deaths == [b"b", b"c"]
        assert len(said) == 1 and "dropped the oldest, a ReportWorkerDeath" in said[0]

    play(script, outbox_max=2)


def test_jobs_that_ended_while_the_raylet_was_cut_off_are_learned_and_later_ones_as_they_end() -> None:
    async def script(scene: Scene) -> None:
        await scene.start_gcs()
        await scene.start_client()
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        gcs.jobs = [
            common_pb2.JobInfo(job_id=b"gone", is_finished=True),
            common_pb2.JobInfo(job_id=b"runs"),
        ]
        await until(lambda: scene.heard.finished == [b"gone"])
        ended = common_pb2.JobInfo(job_id=b"runs", is_finished=True).SerializeToString()
        await gcs.published.put(gcs_pb2.PubMessage(channel=gcs_pb2.JOB, key=b"runs", payload=ended))
        await until(lambda: scene.heard.finished == [b"gone", b"runs"])

    play(script)


def test_a_node_learns_of_the_others_as_it_registers_and_while_a_head_on_an_empty_store_hears_all() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        gcs.is_hearing = True
        gcs.nodes = [common_pb2.NodeInfo(node_id=b"came before")]
        await scene.start_client()
        assert scene.heard.nodes == [b"came before"]
        await gcs.published.put(nodes_message(b"comes later", b"comes last"))
        await until(lambda: scene.heard.nodes == [b"came before", b"comes later", b"comes last"])

    play(script)


def test_a_gcs_that_is_new_hears_of_the_leases_for_actors_and_of_the_resources_again() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        await scene.start_client()
        await until(lambda: len(gcs.reports) == 1)
        version = gcs.reports[0].version
        # Nothing has changed: nothing is told.
        scene.outbox.resources_changed()
        await asyncio.sleep(1)
        assert len(gcs.reports) == 1
        scene.kill_gcs()
        gcs = await scene.start_gcs()
        gcs.unwanted, gcs.bundles = [b"lease"], [common_pb2.BundleIndices(indices=[3])]
        await until(lambda: bool(gcs.reports))
        assert gcs.registrations == [[b"lease"]] and scene.heard.disowned_leases == [b"lease"]
        assert scene.heard.unwanted_bundles == [[], [3]]
        assert gcs.reports[0].version > version and dict(gcs.reports[0].available.amounts) == {"CPU": 20000}
        # A lease that may have lost whoever wanted it.
        scene.heard.leases = []
        scene.outbox.register_again()
        await until(lambda: gcs.registrations == [[b"lease"], []])

    play(script)


def test_a_head_of_a_lower_number_is_not_listened_to_unless_it_is_of_another_cluster() -> None:
    async def script(scene: Scene) -> None:
        await scene.start_gcs((b"cluster", 7))
        await scene.start_client()
        await until(lambda: scene.heard.news == ["found"])
        for head, is_right in (
            ((b"cluster", 7), True),
            ((b"cluster", 6), False),
            ((b"cluster", 8), True),
            ((b"cluster", 7), False),
            ((b"another", 1), True),
            ((b"another", 2), True),
        ):
            await meet(scene, head, is_right)
        assert scene.heard.known[-1] == [b"another", b"cluster"]

    async def meet(scene: Scene, head: tuple[bytes, int], is_right: bool) -> None:
        scene.kill_gcs()
        scene.heard.news.clear()
        gcs = await scene.start_gcs(head)
        await until(lambda: "found" in scene.heard.news or len(gcs.registrations) == 3)
        assert ("found" in scene.heard.news) is is_right
        assert is_right or not gcs.reports

    play(script)


def test_a_head_that_took_over_elsewhere_is_followed_and_none_that_did_not() -> None:
    async def script(scene: Scene) -> None:
        await scene.start_gcs((b"cluster", 7))
        await scene.start_client()
        first, second = scene.address, f"{scene.address.partition(':')[0]}:7000"
        scene.address = second
        gcs = await scene.start_gcs((b"cluster", 8))

        def says(cluster_id: bytes, number: int) -> None:
            scene.client.follow(
                common_pb2.HeadPlace(address=second, cluster_id=cluster_id, head_number=number)
            )

        says(b"cluster", 7)
        says(b"another", 9)
        news = asyncio.ensure_future(scene.client.until_registered(7))
        await asyncio.sleep(1)
        assert gcs.registrations == [] and not news.done()
        # The old one holds the connection: it was stopped.
        says(b"cluster", 8)
        place = await news
        assert (place.address, place.head_number, place.cluster_id) == (second, 8, b"cluster")
        assert (await scene.client.until_registered()).address == second != first
        says(b"cluster", 8)
        await asyncio.sleep(1)
        assert len(gcs.registrations) == 1

    play(script)


def test_a_head_is_looked_for_in_all_places_where_it_may_be_and_an_older_one_is_refused() -> None:
    async def script(scene: Scene) -> None:
        host = scene.address.partition(":")[0]
        nobody, other, told = f"{host}:7001", f"{host}:7002", f"{host}:7003"
        await scene.start_gcs((b"cluster", 7))
        first = scene.address
        scene.address = nobody
        await scene.start_client(other, first)
        assert (await scene.client.until_registered()).address == first
        scene.kill_gcs()
        # An older one comes back to one place, and a newer one takes over in another.
        scene.address = first
        old = await scene.start_gcs((b"cluster", 6))
        scene.address = other
        await scene.start_gcs((b"cluster", 8))
        assert (await scene.client.until_registered(7)).address == other
        assert not old.reports
        scene.address = told
        await scene.start_gcs((b"cluster", 9))
        scene.client.follow(common_pb2.HeadPlace(address=told, cluster_id=b"cluster", head_number=9))
        assert (await scene.client.until_registered(8)).address == told

    play(script)


def test_a_node_that_only_finds_a_head_that_was_replaced_gives_up_as_if_there_were_none() -> None:
    async def script(scene: Scene) -> None:
        await scene.start_gcs((b"cluster", 7))
        ended = await scene.start_client()
        await until(lambda: scene.heard.news == ["found"])
        scene.kill_gcs()
        await scene.start_gcs((b"cluster", 6))
        async with asyncio.timeout(RayletConfig.gcs_reconnect_timeout_s + 10):
            assert "head 7 took over" in await ended

    play(script)


def test_a_node_may_run_actors_for_as_long_as_a_head_confirmed_it_counted_from_when_it_asked() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        ended = await scene.start_client()
        clock, duration_s = scene.world.clock, RayletConfig.gcs_reconnect_timeout_s
        await asyncio.sleep(3 * duration_s)
        assert not scene.lease.is_over()
        assert not ended.done()
        gcs.is_silent = True
        silent_s = clock.awake_or_asleep_s()
        assert scene.lease.ends_s < silent_s + duration_s
        await asyncio.sleep(scene.lease.period_s * 1.5)
        assert scene.lease.ends_s < silent_s + duration_s, "an answer that does not come confirms nothing"

    play(script)


def test_a_head_that_confirms_nothing_is_as_good_as_gone() -> None:
    async def script(scene: Scene) -> None:
        gcs = await scene.start_gcs()
        await scene.start_client()
        gcs.is_silent = True
        await until(lambda: len(gcs.registrations) >= 2)
        gcs.is_silent = False
        gcs.knows_node = False
        await until(lambda: len(gcs.registrations) >= 3)

    play(script)

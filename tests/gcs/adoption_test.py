"""A GCS that was killed and starts on an empty store, in virtual time: those who outlived the first tell the
second what there is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from ray_mono.gcs.storage.table_storage import Write
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.lost_head import (
    BEFORE,
    EMPTY,
    GRACE_S,
    Lost,
    actor_row,
    job_row,
    named,
    owner_row,
    owner_tells,
    tell,
    told_by_node,
    worker_row,
)
from tests.gcs.scene import (
    JOB,
    OWNER,
    FakeNode,
    GcsScene,
    actor_id,
    create_actor,
    never,
    play,
    registration,
    until_state,
)


def test_a_living_actor_is_adopted_found_by_its_name_and_can_restart() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name", max_restarts=1)
        asked = asyncio.ensure_future(named(it.gcs, "name"))
        watched = asyncio.ensure_future(
            it.gcs.WatchActor(gcs_pb2.WatchActorRequest(actor_id=actor_id(), after_version=it.info.version))
        )
        await it.all_tell()
        # Nobody waits for the whole grace where all have told.
        async with asyncio.timeout(GRACE_S / 2):
            info = await asked
        assert (await watched) == info
        assert info.version > it.info.version
        assert (info.address, info.state, info.pid) == (it.info.address, common_pb2.ALIVE, 7)
        assert it.node.killed == [] and it.node.returned == []
        await it.node.process.spawn(it.node.crash(it.worker))
        await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert scene.pushed[-1].spec.flat_args == b"the arguments"
        # That was its last one.
        again = it.node.workers[scene.pushed[-1].intended_worker_id]
        await it.node.process.spawn(it.node.crash(again))
        await until_state(it.gcs, common_pb2.DEAD)

    play(script)


@pytest.mark.parametrize("is_detached", [False, True])
@pytest.mark.parametrize("owner_lives", [False, True])
def test_an_actor_that_awaits_its_arguments_is_told_by_its_owner_and_dies_where_that_is_gone(
    is_detached: bool, owner_lives: bool
) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        late = registration(
            2, owner_node_id=it.node.node_id, name="late", is_detached=is_detached, awaits_arguments=True
        )
        row = actor_row(late, common_pb2.DEPENDENCIES_UNREADY)
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        if not owner_lives:
            await it.node.process.spawn(it.node.report_death(OWNER.binary(), common_pb2.DeathCause()))
        await tell(it.gcs, OWNER.binary(), row, job=job_row(it.node))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        if owner_lives:
            assert (await named(it.gcs, "late")).state == common_pb2.DEPENDENCIES_UNREADY
            await it.gcs.RegisterActor(registration(2, name="late"))
            await until_state(it.gcs, common_pb2.ALIVE, 2)
            assert scene.pushed[-1].spec.flat_args == b"the arguments"
        else:
            await until_state(it.gcs, common_pb2.DEAD, 2)

    play(script)


@pytest.mark.parametrize("is_detached", [False, True])
def test_an_actor_without_a_handle_ends_though_the_head_before_was_told_so(is_detached: bool) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name", is_detached=is_detached, max_restarts=-1)
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, OWNER.binary(), job=job_row(it.node), owned=())
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        # Waits until all was heard.
        names = (await it.gcs.ListNamedActors(gcs_pb2.ListNamedActorsRequest(namespace="space"))).actors
        assert [each.name for each in names] == (["name"] if is_detached else [])
        await asyncio.sleep(1)
        assert [who for who, _ in scene.exits] == ([] if is_detached else [it.worker.worker_id])

    play(script)


def test_an_actor_that_begins_after_its_owner_has_told_lives() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        idle = await it.node.process.spawn(
            it.node.grant_new_worker(raylet_pb2.RequestWorkerLeaseRequest(lease_id=b"idle"))
        )
        rows = [owner_row(it.node), *(worker_row(worker) for worker in it.node.workers.values())]
        await it.node.process.spawn(it.node.join({}, told_by_node(*rows)))
        await tell(it.gcs, OWNER.binary(), job=job_row(it.node))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        new = registration(3, owner_node_id=it.node.node_id)
        await it.gcs.RegisterActor(new)
        row = actor_row(new, common_pb2.ALIVE, it.node.workers[idle.grant.worker.worker_id])
        await tell(it.gcs, idle.grant.worker.worker_id, row)
        await asyncio.sleep(GRACE_S)
        assert (await until_state(it.gcs, common_pb2.ALIVE, 3)).num_restarts == 0

    play(script)


def test_a_job_is_adopted_and_the_next_number_is_above_all_that_nodes_have_heard_of() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await it.node.process.spawn(it.node.join({}, told_by_node(owner_row(it.node), last_job=6)))
        new = gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(driver=common_pb2.Address(worker_id=b"n" * 28)))
        added = asyncio.ensure_future(it.gcs.AddJob(new))
        await tell(it.gcs, OWNER.binary(), job=job_row(it.node))
        assert (await added).job_id == b"\7\0\0\0"
        row = await it.gcs.GetJob(gcs_pb2.GetJobRequest(job_id=JOB.binary()))
        assert not row.is_finished and row.driver.worker_id == OWNER.binary()
        # Its end ends it, as ever.
        await it.node.process.spawn(it.node.report_death(OWNER.binary(), common_pb2.DeathCause()))
        assert (await it.gcs.GetJob(gcs_pb2.GetJobRequest(job_id=JOB.binary()))).is_finished

    play(script)


async def owner_is_gone(it: Lost) -> None:
    await it.node_joins(worker_row(it.worker))
    await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))


async def worker_is_gone(it: Lost) -> None:
    await it.node_joins(owner_row(it.node))
    await tell(it.gcs, OWNER.binary(), it.row(), job=job_row(it.node))


@pytest.mark.parametrize(
    ("tells", "kind"),
    [
        (owner_is_gone, common_pb2.DeathCause.OWNER_DIED),
        (worker_is_gone, common_pb2.DeathCause.WORKER_DIED),
    ],
)
def test_what_its_node_did_not_name_is_gone(
    tells: Callable[[Lost], Awaitable[None]], kind: common_pb2.DeathCause.Kind
) -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await tells(it)
        info = await until_state(it.gcs, common_pb2.DEAD)
        assert info.death_cause.kind == kind

    play(script)


def test_an_actor_whose_worker_died_meanwhile_restarts_within_its_limits() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(max_restarts=1)
        await worker_is_gone(it)
        info = await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.num_restarts == 1

    play(script)


def test_an_actor_that_dies_while_its_owner_tells_of_it_is_placed_once_though_the_store_is_slow() -> None:
    """When all have told, its restart waits for the store: nobody seeks a place for it yet."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(max_restarts=-1)
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        commit = scene.storage.commit

        async def slow_commit(writes: Sequence[Write]) -> None:
            await asyncio.sleep(2.0)
            await commit(writes)

        scene.storage.commit = slow_commit  # type: ignore[method-assign]
        crash = it.node.process.spawn(it.node.crash(it.worker))
        await asyncio.sleep(0.5)
        await tell(it.gcs, OWNER.binary(), job=job_row(it.node))
        await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        await crash
        assert len(it.node.leases) == len(scene.pushed) == 2

    play(script)


def test_a_detached_actor_outlives_its_driver_and_its_job_is_finished_and_not_over() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="detached", is_detached=True)
        await owner_is_gone(it)
        assert (await named(it.gcs, "detached")).state == common_pb2.ALIVE
        [row] = (await it.gcs.GetAllJobs(EMPTY)).jobs
        assert row.is_finished and not row.is_over

    play(script)


def test_an_actor_that_is_being_created_goes_on_on_its_worker() -> None:
    async def script(scene: GcsScene) -> None:
        scene.push = never
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        told = registration(1, owner_node_id=node.node_id)
        await gcs.RegisterActor(told)
        while not scene.pushed:
            await asyncio.sleep(0.01)
        [worker] = node.workers.values()
        lease_id = scene.pushed[0].lease_id
        scene.kill_gcs()
        scene.lose_storage()
        scene.push = create_actor
        gcs = await scene.start_gcs()
        rows = owner_row(node), worker_row(worker)
        await node.process.spawn(node.join({lease_id: worker.worker_id}, told_by_node(*rows)))
        grant = raylet_pb2.Grant(lease_id=lease_id, worker=worker.address, worker_pid=7).SerializeToString()
        # The owner has only heard that it waits.
        await tell(gcs, OWNER.binary(), actor_row(told, common_pb2.PENDING_CREATION), job=job_row(node))
        await tell(gcs, worker.worker_id, actor_row(told, common_pb2.PENDING_CREATION, worker, 0, grant))
        info = await until_state(gcs, common_pb2.ALIVE)
        assert info.address.worker_id == worker.worker_id
        assert [push.intended_worker_id for push in scene.pushed] == [worker.worker_id] * 2
        assert len(node.leases) == 1 and node.returned == []

    play(script)


def test_an_actor_that_had_no_place_is_placed_and_a_lease_that_nobody_has_is_freed() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        spare = await it.node.process.spawn(
            it.node.grant_new_worker(raylet_pb2.RequestWorkerLeaseRequest(lease_id=b"spare"))
        )
        rows = [owner_row(it.node), *(worker_row(worker) for worker in it.node.workers.values())]
        leases = {b"spare": spare.grant.worker.worker_id}
        unwanted = await it.node.process.spawn(it.node.join(leases, told_by_node(*rows)))
        # It may be an actor's that has yet to tell. So it is where the node registers again meanwhile.
        assert unwanted == [] == await it.node.process.spawn(it.node.join(leases))
        second = registration(2, owner_node_id=it.node.node_id)
        waits = actor_row(second, common_pb2.PENDING_CREATION)
        await tell(it.gcs, OWNER.binary(), it.row(), waits, job=job_row(it.node))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        await tell(it.gcs, spare.grant.worker.worker_id)
        await until_state(it.gcs, common_pb2.ALIVE, 2)
        while not it.node.returned:
            await asyncio.sleep(0.1)
        assert [(each.lease_id, each.dispose) for each in it.node.returned] == [(b"spare", True)]
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.info.address

    play(script)


def test_what_nobody_knows_is_refused_once_all_have_told_and_after_the_grace_where_one_is_silent() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name")
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        # The driver says nothing. It lives, as its raylet knows, and so does its actor.
        with pytest.raises(RpcError) as refused:
            await named(it.gcs, "another name")
        assert refused.value.code is StatusCode.NOT_FOUND
        assert GRACE_S - 1 < loop.time() - began_s < GRACE_S + 1
        assert (await named(it.gcs, "name")).state == common_pb2.ALIVE

    play(script)


def test_a_node_that_does_not_come_is_dead_and_its_actors_restart_elsewhere() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play(name="name", max_restarts=1)
        first = FakeNode(scene, scene.world.network.add_host("first").name, {"CPU": 1})
        await first.process.spawn(first.start())
        it.node.process.kill("its machine is gone")
        await first.process.spawn(first.join({}, told_by_node(owner_row(first), others=(it.node,))))
        told = registration(1, owner_node_id=first.node_id, name="name", max_restarts=1)
        await tell(it.gcs, OWNER.binary(), actor_row(told, common_pb2.ALIVE, it.worker), job=job_row(first))
        info = await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
        assert info.address.node_id == first.node_id

    play(script)


async def restart_of_a_silent_nodes_actor_s(scene: GcsScene, state: Any, is_named: bool) -> float:
    """A node with a lease of 60 s is cut off with its actor. The actor's owner, on another node, tells of it
    in this state. is_named: that node tells of the silent one. Returns how long it takes until the actor is
    elsewhere."""
    scene.head_lease_s = 60.0
    it = Lost(scene)
    await it.play(name="name", max_restarts=1)
    first = FakeNode(scene, scene.world.network.add_host("first").name, {"CPU": 1})
    await first.process.spawn(first.start())
    scene.world.network.crash_host(it.node.process.host_name)
    began_s = scene.world.clock.time_s()
    others = (it.node,) if is_named else ()
    await first.process.spawn(first.join({}, told_by_node(owner_row(first), others=others)))
    told = registration(1, owner_node_id=first.node_id, name="name", max_restarts=1)
    row = actor_row(told, state, it.worker)
    if state == common_pb2.RESTARTING:
        row.ClearField("address")
        row.num_restarts, row.lost_on_node_id = 1, it.node.node_id
    await tell(it.gcs, OWNER.binary(), row, job=job_row(first))
    await until_state(it.gcs, common_pb2.ALIVE, num_restarts=1)
    return scene.world.clock.time_s() - began_s


@pytest.mark.parametrize("state", [common_pb2.ALIVE, common_pb2.RESTARTING])
def test_a_node_that_nobody_names_since_it_was_held_to_be_dead_has_that_time_as_well(state: Any) -> None:
    """The head before had begun to wait for it, or the owner has not heard of its death."""

    async def script(scene: GcsScene) -> None:
        assert 65 <= await restart_of_a_silent_nodes_actor_s(scene, state, is_named=False) < 70

    play(script)


def test_a_silent_node_that_others_named_may_run_its_actors_for_the_time_of_its_lease() -> None:
    async def script(scene: GcsScene) -> None:
        assert await restart_of_a_silent_nodes_actor_s(scene, common_pb2.ALIVE, is_named=True) >= 65

    play(script)


def test_an_actor_without_a_worker_is_not_placed_while_a_silent_node_may_have_one_of_it() -> None:
    """The head before had leased it there, and its owner had not heard of that."""

    async def script(scene: GcsScene) -> None:
        scene.head_lease_s = 60.0
        it = Lost(scene)
        await it.play()
        scene.world.network.crash_host(it.node.process.host_name)
        began_s = scene.world.clock.time_s()
        await owner_tells(it)
        await until_state(it.gcs, common_pb2.ALIVE)
        assert 65 <= scene.world.clock.time_s() - began_s < 70

    play(script)


def test_what_a_process_tells_after_the_grace_is_judged_as_well() -> None:
    """It was stopped for that long."""

    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await it.node_joins(owner_row(it.node), worker_row(it.worker))
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        await asyncio.sleep(2 * GRACE_S)
        second = registration(2, owner_node_id=it.node.node_id)
        waits = actor_row(second, common_pb2.PENDING_CREATION)
        await tell(it.gcs, OWNER.binary(), it.row(), waits, job=job_row(it.node))
        await until_state(it.gcs, common_pb2.ALIVE, 2)
        assert (await until_state(it.gcs, common_pb2.ALIVE)).address == it.info.address

    play(script)


def test_a_new_cluster_waits_for_nobody() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        await scene.add_node({"CPU": 1})
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(RpcError, match="no actor named"):
            await named(gcs, "name")
        await gcs.AddJob(gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(entrypoint="x")))
        assert loop.time() - began_s < 0.5

    play(script)


def test_a_node_that_registers_again_at_a_new_head_tells_nothing_of_an_earlier_one() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        known = gcs_pb2.RegisterNodeRequest(
            known_cluster_ids=[(await gcs.GetClusterInfo(EMPTY)).cluster_id, BEFORE]
        )
        worker_id = b"w" * 28
        assert await node.process.spawn(node.join({b"lease": worker_id}, known)) == [b"lease"]

    play(script)


def test_after_a_job_has_begun_a_node_of_an_earlier_head_is_not_adopted() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        await scene.add_node({"CPU": 1})
        await it.gcs.AddJob(gcs_pb2.AddJobRequest(job=common_pb2.JobInfo(entrypoint="x")))
        unwanted = await it.node_joins(owner_row(it.node), worker_row(it.worker))
        assert unwanted == [it.node.leases[0].lease_id]
        await tell(it.gcs, it.worker.worker_id, it.row(), job=job_row(None))
        assert not (await it.gcs.GetAllActors(EMPTY)).actors

    play(script)


def test_code_of_a_job_that_nobody_told_of_goes() -> None:
    async def script(scene: GcsScene) -> None:
        it = Lost(scene)
        await it.play()
        mine, others = JOB.binary() + b"h" * 28, b"\5\0\0\0" + b"h" * 28
        for key in (mine, others):
            await it.gcs.KvPut(gcs_pb2.KvPutRequest(namespace=b"fun", key=key, value=b"code"))
        await it.all_tell()
        keys = await it.gcs.KvKeys(gcs_pb2.KvKeysRequest(namespace=b"fun"))
        assert list(keys.keys) == [mine]

    play(script)

"""A call that is heard twice, since its answer was lost with a GCS, is done once: the second hearing gets the
answer of the first."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.gcs.answers import Answers
from ray_mono.gcs.storage.table_storage import Table
from ray_mono.protobuf import common_pb2, gcs_pb2, gcs_rpc
from ray_mono.rpc.surface import RpcError
from tests.gcs.scene import GcsScene, actor_id, play, registration, until_state

CALLER = b"c" * 28
Gcs = gcs_rpc.GcsServiceAsyncStub


def asked(number: int, answered_below: int = 0, caller: bytes = CALLER) -> gcs_pb2.RequestId:
    return gcs_pb2.RequestId(caller=caller, number=number, answered_below=answered_below)


class Rows:
    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        assert table is Table.ANSWER
        self.rows[key] = value

    def delete(self, table: Table, key: bytes) -> None:
        assert table is Table.ANSWER
        del self.rows[key]


class Scene:
    """Answers are counted: each that is made anew has another number."""

    def __init__(self, callers_max: int = 3, answers_max: int = 3) -> None:
        self.rows = Rows()
        self.limits = callers_max, answers_max
        self.made = 0
        self.answers = Answers(self.rows, *self.limits)

    def ask(self, request_id: gcs_pb2.RequestId) -> int:
        def make() -> gcs_pb2.KvDelReply:
            self.made += 1
            return gcs_pb2.KvDelReply(deleted=self.made)

        return self.answers.once(request_id, make, gcs_pb2.KvDelReply).deleted

    def start_again(self) -> None:
        self.answers = Answers(self.rows, *self.limits)
        self.answers.restore(self.rows.rows)


def test_a_second_hearing_gets_the_first_ones_answer_also_from_the_next_gcs() -> None:
    scene = Scene()
    assert [scene.ask(asked(number)) for number in (1, 2, 1)] == [1, 2, 1]
    scene.start_again()
    assert [scene.ask(asked(number)) for number in (2, 1, 3)] == [2, 1, 3]
    assert scene.ask(asked(1, caller=b"another")) == 4
    # Who does not name itself is never heard twice.
    assert [scene.ask(gcs_pb2.RequestId()) for _ in range(2)] == [5, 6]


def test_answers_go_when_their_caller_has_them_and_with_it() -> None:
    scene = Scene(answers_max=100)
    for number in range(50):
        scene.ask(asked(number, answered_below=number))
    assert scene.answers.count() == 1
    scene.answers.forget(CALLER)
    scene.answers.forget(b"unknown")
    assert scene.answers.count() == 0 and scene.rows.rows == {}


def test_answers_and_callers_are_bounded_and_the_oldest_go() -> None:
    scene = Scene(callers_max=2, answers_max=3)
    for number in range(10):
        scene.ask(asked(number))
    assert scene.answers.count() == 3
    assert scene.ask(asked(9)) == 10
    for caller in (b"1", b"2"):
        scene.ask(asked(1, caller=caller))
    assert sorted(scene.rows.rows) == [b"1", b"2"]


def test_what_was_refused_has_done_nothing_and_is_tried_again() -> None:
    scene = Scene()

    def refuse() -> gcs_pb2.KvDelReply:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        scene.answers.once(asked(1), refuse, gcs_pb2.KvDelReply)
    assert scene.ask(asked(1)) == 1


# ---- with a whole GCS


async def killed_and_started(scene: GcsScene) -> Gcs:
    scene.kill_gcs()
    return await scene.start_gcs()


def test_a_key_is_added_once_and_says_so_and_what_was_put_since_stays() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        first = gcs_pb2.KvPutRequest(key=b"k", value=b"first", overwrite=True, request_id=asked(1))
        assert (await gcs.KvPut(first)).added
        assert not (await gcs.KvPut(gcs_pb2.KvPutRequest(key=b"k", value=b"other's", overwrite=True))).added
        gcs = await killed_and_started(scene)
        assert (await gcs.KvPut(first)).added
        assert (await gcs.KvGet(gcs_pb2.KvGetRequest(key=b"k"))).value == b"other's"
        delete = gcs_pb2.KvDelRequest(key=b"k", request_id=asked(2, 2))
        assert (await gcs.KvDel(delete)).deleted == 1
        gcs = await killed_and_started(scene)
        assert (await gcs.KvDel(delete)).deleted == 1
        assert not (await gcs.KvGet(gcs_pb2.KvGetRequest(key=b"k"))).found

    play(script)


def test_a_kill_that_lets_the_actor_restart_restarts_it_once() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(1, max_restarts=5))
        await until_state(gcs, common_pb2.ALIVE)
        kill = gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, request_id=asked(1))
        await gcs.KillActor(kill)
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)
        gcs = await killed_and_started(scene)
        await node.process.spawn(node.join())
        await gcs.KillActor(kill)
        await asyncio.sleep(10)
        assert (await until_state(gcs, common_pb2.ALIVE)).num_restarts == 1
        # Another one is another one.
        await gcs.KillActor(gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, request_id=asked(2)))
        await until_state(gcs, common_pb2.ALIVE, num_restarts=2)

    play(script)


def test_a_kill_that_was_acknowledged_happens_although_the_gcs_died_before_it_told_the_raylet() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 4})
        await gcs.RegisterActor(registration(1, max_restarts=5))
        info = await until_state(gcs, common_pb2.ALIVE)
        scene.world.network.partition("head", node.host_name)
        await gcs.KillActor(gcs_pb2.KillActorRequest(actor_id=actor_id(), force=True, request_id=asked(1)))
        scene.kill_gcs()
        scene.world.network.heal()
        assert node.killed == []
        # The raylet kills it, and has nobody to tell yet.
        worker = node.workers.pop(info.address.worker_id)
        gcs = await scene.start_gcs()
        while not node.killed:
            await asyncio.sleep(0.1)
        assert [request.worker_id for request in node.killed] == [worker.worker_id]
        await node.process.spawn(node.join())
        await node.process.spawn(node.crash(worker))
        await until_state(gcs, common_pb2.ALIVE, num_restarts=1)

    play(script)


def test_answers_go_with_the_death_of_their_caller() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        node = await scene.add_node({"CPU": 1})
        put = gcs_pb2.KvPutRequest(key=b"k", value=b"v", request_id=asked(1))
        assert (await gcs.KvPut(put)).added
        await node.process.spawn(node.report_death(CALLER, common_pb2.DeathCause()))
        assert not (await gcs.KvPut(put)).added

    play(script)


def test_a_refused_put_is_refused_again() -> None:
    async def script(scene: GcsScene) -> None:
        gcs = await scene.start_gcs()
        put = gcs_pb2.KvPutRequest(key=b"k", value=b"v" * 100, request_id=asked(1))
        for _ in range(2):
            with pytest.raises(RpcError, match="kv_bytes_max"):
                await gcs.KvPut(put)

    play(script, kv_bytes_max=50)

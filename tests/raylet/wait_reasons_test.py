"""What a raylet says of a lease that waits, and of who holds what on its node."""

from __future__ import annotations

import asyncio

import pytest

from ray_mono.common.scheduling.bundle_resources import ANY_BUNDLE, asked_for_in
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.store_client import StoreClient
from ray_mono.raylet.wait_reasons import StoreReasons, WaitReasons
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.raylet.scheduling.lease_scene import HERE, THERE, Scene, units

Subject = common_pb2.WaitSubject

MAKER = common_pb2.Address(worker_id=b"maker", host="10.0.0.1", port=7)
GROUPS = {b"g" * 18: common_pb2.PlacementGroupInfo(creator=MAKER, creator_task_id=b"its call")}


def reason(scene: Scene, lease: str) -> common_pb2.WaitReason:
    return reasons(scene).of(Subject(kind=Subject.LEASE, id=lease.encode(), name="f()"))


def reasons(scene: Scene) -> WaitReasons:
    return WaitReasons(scene.manager, scene.manager.stories, Clients(), GROUPS.get)


def names(told: common_pb2.WaitReason) -> list[str]:
    return [subject.name for subject in told.waits_for]


def ask_in_bundle(scene: Scene, name: str, group: bytes, index: int, num_cpus: int) -> None:
    strategy = Strategy(StrategyKind.PLACEMENT_GROUP, group_id=group, bundle_index=index)
    scene.ask(name, strategy=strategy, resources=asked_for_in(units(CPU=num_cpus), group, index))


def test_a_lease_waits_for_whoever_has_what_it_needs() -> None:
    scene = Scene(units(CPU=4, A=1))
    scene.ask("other", resources=units(CPU=1))
    scene.ask("holder", resources=units(A=1))
    scene.ask("waits", resources=units(CPU=1, A=1))
    told = reason(scene, "waits")
    assert (told.code, told.any, names(told)) == ("RESOURCES", True, ["holder()"])
    assert told.text.startswith("f() needs {A: 1, CPU: 1}; node 62626262 has {A: 0, CPU: 3} free of")
    (shortage,) = told.shortages
    assert shortage.node_id == HERE and dict(shortage.missing.amounts) == {"A": 10000}


def test_a_blocked_worker_holds_no_cpus() -> None:
    scene = Scene(units(CPU=1, A=1))
    scene.ask("blocked", resources=units(CPU=1, A=1))
    scene.take(scene.manager.worker_blocked(scene.granted["blocked"].worker_id, b"", True, scene.now_s))
    scene.ask("runs")
    scene.ask("waits")
    assert names(reason(scene, "waits")) == ["runs()"]
    scene.ask("wants a", resources=units(A=1))
    assert names(reason(scene, "wants a")) == ["blocked()"]


def test_an_actor_that_holds_it_has_the_name_of_its_class() -> None:
    scene = Scene(units(A=1))
    scene.ask("Thing.__init__", resources=units(A=1), for_actor=True)
    scene.ask("waits", resources=units(A=1))
    assert names(reason(scene, "waits")) == ["Thing"]


def test_what_no_node_has_waits_for_nobody() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("waits", resources=units(GPU=1))
    told = reason(scene, "waits")
    assert (told.code, names(told)) == ("INFEASIBLE", [])
    assert "no node of the cluster has that much" in told.text and "It waits until" not in told.text
    assert told.unblock == "start a node with {GPU: 1}, or ask for less"


def test_a_node_that_is_not_there_is_named() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("waits", strategy=Strategy(StrategyKind.NODE_AFFINITY, node_id=THERE))
    told = reason(scene, "waits")
    assert told.code == "NO_SUCH_NODE" and THERE.hex() in told.text


def test_a_lease_that_has_its_resources_waits_for_a_worker_process() -> None:
    scene = Scene(units(CPU=1))
    scene.hold_starts = True
    scene.ask("waits")
    told = reason(scene, "waits")
    assert told.code == "STARTING" and "waits for a worker process" in told.text


def test_a_lease_that_was_answered_is_about_to_be_heard_of() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("granted")
    assert reason(scene, "granted").code == "WORKER"
    assert reason(scene, "never asked").code == "STARTING"


def test_a_node_says_who_has_what_somebody_needs() -> None:
    scene = Scene(units(CPU=2, A=1))
    scene.ask("holder", resources=units(A=1))
    subject = Subject(kind=Subject.NODE, id=HERE, needs=units(A=1, CPU=1).to_proto())
    told = reasons(scene).of(subject)
    assert (told.code, names(told)) == ("RESOURCES", ["holder()"])
    assert "has {A: 0, CPU: 2} free of {A: 1, CPU: 2}" in told.text


def test_a_placement_group_that_holds_what_somebody_needs_is_named() -> None:
    scene = Scene(units(CPU=4, A=1))
    group = b"g" * 18
    scene.take(scene.manager.prepare_bundles(group, {0: units(CPU=3), 1: units(A=1)}, scene.now_s)[1])
    scene.take(scene.manager.commit_bundles([(group, 0), (group, 1)], scene.now_s))
    scene.ask("waits", resources=units(CPU=2))
    told = reason(scene, "waits")
    assert (told.code, names(told)) == ("RESOURCES", ["placement group 67676767"])
    [held] = told.waits_for
    assert (held.kind, held.id, held.at, held.creator_task_id) == (
        Subject.PLACEMENT_GROUP,
        group,
        MAKER,
        b"its call",
    )
    assert told.text.endswith("; placement group 67676767 holds {CPU: 3} there until it is removed")
    assert "remove a placement group" in told.unblock
    told = reasons(scene).of(Subject(kind=Subject.NODE, id=HERE, needs=units(A=1).to_proto()))
    assert "placement group 67676767 holds {A: 1}" in told.text and "remove" in told.unblock


def test_who_waits_for_a_full_bundle_is_not_told_to_add_nodes() -> None:
    scene = Scene(units(CPU=4))
    group = b"g" * 18
    scene.take(scene.manager.prepare_bundles(group, {0: units(CPU=1)}, scene.now_s)[1])
    scene.take(scene.manager.commit_bundles([(group, 0)], scene.now_s))
    ask_in_bundle(scene, "holder", group, 0, num_cpus=1)
    ask_in_bundle(scene, "waits", group, 0, num_cpus=1)
    told = reason(scene, "waits")
    assert (told.code, names(told)) == ("RESOURCES", ["holder()"])
    assert told.unblock == "wait for one of its holders to end, or end one"


def test_who_needs_a_whole_bundle_waits_for_those_in_each_that_could_hold_it() -> None:
    scene = Scene(units(CPU=6))
    group = b"g" * 18
    bundles = {0: units(CPU=2), 1: units(CPU=2), 2: units(CPU=1)}
    scene.take(scene.manager.prepare_bundles(group, bundles, scene.now_s)[1])
    scene.take(scene.manager.commit_bundles([(group, index) for index in bundles], scene.now_s))
    for index in bundles:
        ask_in_bundle(scene, f"holder {index}", group, index, num_cpus=1)
    ask_in_bundle(scene, "waits", group, ANY_BUNDLE, num_cpus=2)
    told = reason(scene, "waits")
    assert told.code == "RESOURCES" and told.any and names(told) == ["holder 0()", "holder 1()"]
    assert "of which no bundle has so much free" in told.text
    (shortage,) = told.shortages
    assert sorted(shortage.missing.amounts.values()) == [10000]


@pytest.mark.parametrize(
    ("held", "needs", "num_needed"),
    [((2, 2, 2), 2, 1), ((2, 2, 2), 3, 2), ((2, 2, 2), 4, 2), ((1, 2, 3), 3, 1), ((1, 1, 1, 1), 3, 3)],
)
@pytest.mark.parametrize("for_actor", [False, True])
def test_where_no_holder_alone_has_enough_so_many_are_needed_as_have_it(
    held: tuple[int, ...], needs: int, num_needed: int, for_actor: bool
) -> None:
    scene = Scene(units(A=sum(held)))
    for number, amount in enumerate(held):
        scene.ask(f"holder {number}", resources=units(A=amount), for_actor=for_actor)
    scene.ask("waits", resources=units(A=needs))
    told = reason(scene, "waits")
    assert (told.any, told.num_needed, len(told.waits_for)) == (True, num_needed, len(held))
    count = "one" if num_needed == 1 else num_needed
    assert told.unblock.startswith(f"wait for {count} of its holders to end, end {count}, or add a node")


def test_with_what_ends_by_itself_one_of_those_that_do_not_is_enough() -> None:
    scene = Scene(units(A=6))
    for name, for_actor in (("first", True), ("second", True), ("passing", False)):
        scene.ask(name, resources=units(A=2), for_actor=for_actor)
    scene.ask("waits", resources=units(A=4))
    told = reason(scene, "waits")
    assert (names(told), told.any, told.num_needed) == (["first", "second"], True, 1)


def test_where_all_holders_are_needed_it_is_said_how_many_they_are() -> None:
    scene = Scene(units(A=2, B=1))
    scene.ask("task", resources=units(A=1))
    scene.ask("actor", resources=units(A=1), for_actor=True)
    scene.ask("waits", resources=units(A=2))
    told = reason(scene, "waits")
    assert (names(told), told.any, told.num_needed) == (["task()", "actor"], False, 2)
    assert told.unblock.startswith("wait for 2 of its holders to end, end 2, or add a node with ")


def test_a_task_that_asks_with_anothers_lease_is_told_by_its_own_name() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("first", resources=units(GPU=1))
    told = reason(scene, "first")
    assert told.code == "INFEASIBLE" and told.text.startswith("f() needs {GPU: 1}, and no node")


def test_where_several_holders_are_needed_here_and_another_node_may_have_it_sooner_both_are_asked() -> None:
    scene = Scene(units(A=4))
    for number in range(4):
        scene.ask(f"holder {number}", resources=units(A=1))
    scene.other_node(units(), total=units(A=4))
    scene.ask("waits", resources=units(A=3))
    told = reason(scene, "waits")
    assert [each.kind for each in told.waits_for] == [Subject.NODE, Subject.NODE] and told.num_needed == 1


def test_what_a_raylet_knows_nothing_of_is_refused() -> None:
    with pytest.raises(ValueError, match="was asked of ACTOR 61"):
        reasons(Scene(units(CPU=1))).of(Subject(kind=Subject.ACTOR, id=b"a"))


class FakeStore(StoreClient):
    """Answers with a reason, or with an error."""

    def __init__(self, answer: common_pb2.WaitReason | RpcError) -> None:
        self._answer = answer

    async def explain(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if isinstance(self._answer, RpcError):
            raise self._answer
        return self._answer


def in_store(scene: Scene, answer: common_pb2.WaitReason | RpcError) -> common_pb2.WaitReason:
    told = StoreReasons(HERE, FakeStore(answer), reasons(scene))
    return asyncio.run(told.of(Subject(kind=Subject.STORE, id=b"object")))


def test_whom_a_store_knows_by_ids_gets_an_address() -> None:
    scene = Scene(units(CPU=1))
    scene.cluster.node_joined(THERE, "there", 2, units(CPU=1))
    scene.ask("holder")
    worker_id = scene.granted["holder"].worker_id
    nodes = [common_pb2.Address(node_id=node_id) for node_id in (THERE, b"unknown")]
    waits_for = [
        Subject(kind=Subject.WORKER, id=worker_id),
        Subject(kind=Subject.WORKER, id=b"of another node"),
        *(Subject(kind=Subject.STORE, id=b"object", at=at) for at in nodes),
    ]
    told = in_store(scene, common_pb2.WaitReason(code="STORE_FULL", waits_for=waits_for))
    worker, store = told.waits_for
    assert (worker.kind, worker.id, worker.name) == (Subject.WORKER, worker_id, "holder()")
    assert (store.kind, store.at.node_id, store.at.host, store.at.port) == (Subject.STORE, THERE, "there", 2)


def test_a_store_that_does_not_answer_is_named() -> None:
    told = in_store(Scene(units(CPU=1)), RpcError(StatusCode.DEADLINE_EXCEEDED, "a path, and so on"))
    node = HERE.hex()[:8]
    assert told.code == "UNREACHABLE" and told.unblock
    assert told.text == f"the object store of node {node} cannot be asked: it did not answer within 1 s"

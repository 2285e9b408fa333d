"""What a raylet does with what the GCS tells it, over the real machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.common.ids import JobID
from ray_mono.common.scheduling.bundle_resources import given_by
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.bundle_requests import BundleRequests
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.cluster_events import ClusterEvents
from ray_mono.raylet.dead_nodes import DeadNodes
from ray_mono.raylet.lease_answers import LeaseAnswers
from tests.raylet.scheduling.lease_scene import HERE, JOB_A, THERE, Scene, units


class Node:
    """One CPU, and what its store and its raylet are told."""

    def __init__(self) -> None:
        self.scene = scene = Scene(units(CPU=1))
        self.ends: list[str] = []
        self.collected = 0
        self.drain: common_pb2.NodeDrain | None = None
        self.dead_nodes = DeadNodes()
        clock: Any = SimpleNamespace(time_s=lambda: scene.now_s)
        effects: Any = SimpleNamespace(run=scene.take)
        store: Any = SimpleNamespace(collect_garbage=self._collect)
        self.clients = Clients()
        self.bundles = BundleRequests(HERE, clock, scene.manager, LeaseAnswers(), effects)
        self.events = ClusterEvents(
            HERE,
            clock,
            self.clients,
            scene.manager,
            scene.ledger,
            self.bundles,
            scene.cluster,
            effects,
            store,
            self.dead_nodes,
            lambda: self.drain,
            self.ends.append,
        )

    def _collect(self) -> None:
        self.collected += 1


def there(state: common_pb2.NodeState = common_pb2.NODE_ALIVE) -> common_pb2.NodeInfo:
    return common_pb2.NodeInfo(node_id=THERE, state=state, host="there", total=units(CPU=4).to_proto())


def test_what_waits_goes_to_a_node_that_joins() -> None:
    node = Node()
    node.scene.ask("big", resources=units(CPU=4))
    node.events.node_changed(there())
    assert node.scene.spilled == {"big": THERE}


def test_nothing_goes_to_a_node_that_is_drained() -> None:
    node = Node()
    node.scene.ask("big", resources=units(CPU=4))
    drained = there()
    drained.drain.reason = common_pb2.DRAIN_NODE_REASON_PREEMPTION
    node.events.node_changed(drained)
    assert not node.scene.spilled
    assert [other.is_draining for other in node.scene.cluster.nodes()] == [True]


def test_a_node_that_is_drained_says_so_each_time_that_it_registers() -> None:
    node = Node()
    info = common_pb2.NodeInfo(node_id=HERE)
    assert not node.events.registration(info, b"").node.HasField("drain")
    node.drain = common_pb2.NodeDrain(reason_message="spot")
    assert node.events.registration(info, b"").node.drain.reason_message == "spot"


def test_what_waits_goes_to_a_node_that_reports_room_once_it_is_news() -> None:
    node = Node()
    node.events.node_changed(there())
    total, none = units(CPU=4).to_proto(), units().to_proto()

    def reports(version: int, available: common_pb2.ResourceSet) -> None:
        row = common_pb2.NodeResources(node_id=THERE, version=version, total=total, available=available)
        node.events.resources_changed([row])

    reports(2, none)
    node.scene.ask("big", resources=units(CPU=4))
    reports(1, total)
    assert node.scene.spilled == {}
    reports(3, total)
    assert node.scene.spilled == {"big": THERE}


def test_a_raylet_whose_own_node_is_held_for_dead_ends_and_no_other() -> None:
    node = Node()
    node.events.node_changed(there())
    node.events.node_changed(there(common_pb2.NODE_DEAD))
    assert node.ends == []
    cause = common_pb2.DeathCause(message="it did not answer")
    own = common_pb2.NodeInfo(node_id=HERE, state=common_pb2.NODE_DEAD, death_cause=cause)
    node.events.node_changed(own)
    assert node.ends == ["the cluster holds this node for dead: it did not answer"]


def test_the_store_is_asked_to_collect_garbage_where_the_cluster_is() -> None:
    node = Node()
    node.events.garbage_is_wanted()
    assert node.collected == 1


def test_a_finished_job_gets_nothing_more() -> None:
    node = Node()
    node.scene.ask("a")
    node.scene.ask("b")
    node.events.job_changed(common_pb2.JobInfo(job_id=JOB_A, is_finished=True))
    assert "b" in node.scene.rejected and node.scene.ended[0].worker_id == node.scene.granted["a"].worker_id


def test_actors_leases_are_named_when_the_node_registers_and_end_where_nobody_wants_them() -> None:
    node = Node()
    node.scene.ask("actor", for_actor=True)
    worker_id = node.scene.granted["actor"].worker_id
    [named] = node.events.registration(common_pb2.NodeInfo(node_id=HERE), []).actor_leases
    assert (named.lease_id, named.worker_id) == (b"actor", worker_id)
    node.events.disowned([b"actor", b"unknown"])
    assert [end.worker_id for end in node.scene.ended] == [worker_id]


def bundle() -> common_pb2.GroupBundles:
    """The only one of a group."""
    group = common_pb2.PlacementGroupInfo(
        placement_group_id=b"g" * 18, bundles=[common_pb2.Bundle(resources=units(CPU=1).to_proto())]
    )
    return common_pb2.GroupBundles(group=group, indices=[0])


def test_bundles_are_told_at_each_registration_with_what_they_give_and_its_answer_settles_them() -> None:
    node = Node()
    node.bundles.prepare([bundle()], (1, 1))
    info = common_pb2.NodeInfo(node_id=HERE)
    told = node.events.registration(info, [])
    assert (list(told.bundles), told.node.total) == (node.bundles.told(), units(CPU=1).to_proto())
    indices = [common_pb2.BundleIndices(placement_group_id=b"g" * 18, indices=[0])]
    node.bundles.commit(indices, (1, 2))
    total = units(CPU=1) + given_by(units(CPU=1), b"g" * 18, 0)
    assert node.events.registration(info, []).node.total == total.to_proto()
    node.events.bundles_unwanted(indices, common_pb2.BundleRequestNumber(head_number=1, number=3), b"c")
    told = node.events.registration(info, [])
    assert (list(told.bundles), told.node.total) == ([], units(CPU=1).to_proto())


def test_bundles_that_were_asked_for_since_nobody_wanted_them_stay() -> None:
    """The answer to a registration, and what the same head asks for after that, travel on two connections."""
    node, indices = Node(), [common_pb2.BundleIndices(placement_group_id=b"g" * 18, indices=[0])]
    node.bundles.registered(b"c")
    node.bundles.prepare([bundle()], (2, 8))
    for number, held in ((7, True), (9, False)):
        order = common_pb2.BundleRequestNumber(head_number=2, number=number)
        node.events.bundles_unwanted(indices, order, b"c")
        assert bool(node.bundles.told()) is held


def test_a_head_without_its_store_counts_anew_and_does_not_want_what_an_earlier_one_asked_for() -> None:
    node, indices = Node(), [common_pb2.BundleIndices(placement_group_id=b"g" * 18, indices=[0])]
    node.bundles.registered(b"before")
    node.bundles.prepare([bundle()], (2, 8))
    node.events.bundles_unwanted(
        indices, common_pb2.BundleRequestNumber(head_number=1, number=1), b"another cluster"
    )
    assert not node.bundles.told()


def test_a_registration_names_what_a_head_without_its_store_cannot_know() -> None:
    node = Node()
    process: Any = SimpleNamespace(worker_id=b"w", info=lambda node_id: common_pb2.WorkerInfo(worker_id=b"w"))
    worker: ClientProcess = process
    node.clients.add(worker)
    node.events.node_changed(there())
    for number in (3, 2):
        node.events.job_changed(common_pb2.JobInfo(job_id=JobID.from_int(number).binary()))
    told = node.events.registration(common_pb2.NodeInfo(node_id=HERE), [b"before"])
    assert (told.node.node_id, told.known_cluster_ids, told.last_job_number) == (HERE, [b"before"], 3)
    assert [each.worker_id for each in told.workers] == [b"w"]
    [other] = told.other_nodes
    assert (other.node_id, other.host, other.total) == (THERE, "there", units(CPU=4).to_proto())
    assert other.state == common_pb2.NODE_ALIVE
    node.events.node_changed(there(common_pb2.NODE_DEAD))
    [other] = node.events.registration(common_pb2.NodeInfo(), [b"before"]).other_nodes
    assert (other.node_id, other.state) == (THERE, common_pb2.NODE_DEAD)

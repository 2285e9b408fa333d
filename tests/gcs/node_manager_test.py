"""The machines that keep nodes, jobs and workers."""

from __future__ import annotations

import pytest

from ray_mono.common.ids import JobID, NodeID
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.node_manager import NodeIsDead, NodeManager, UnknownNode
from ray_mono.protobuf import common_pb2

NODE = NodeID(b"n" * 28)
FOUR_CPUS = ResourceSet.from_units({"CPU": 4})
SILENCE = common_pb2.DeathCause(kind=common_pb2.DeathCause.NODE_DIED, message="silence")
FAILURES_MAX = 3


def info(node_id: NodeID = NODE) -> common_pb2.NodeInfo:
    return common_pb2.NodeInfo(
        node_id=node_id.binary(), host="10.0.0.1", node_manager_port=1, total=FOUR_CPUS.to_proto()
    )


def report(version: int, free: float) -> common_pb2.NodeResources:
    available = ResourceSet.from_units({"CPU": free}).to_proto()
    return common_pb2.NodeResources(
        node_id=NODE.binary(), version=version, total=FOUR_CPUS.to_proto(), available=available
    )


def make(*nodes: NodeID, dead_nodes_max: int = 10) -> NodeManager:
    manager = NodeManager(dead_nodes_max, FAILURES_MAX)
    for node_id in nodes:
        manager.register(info(node_id), now_s=1.0)
    return manager


def free(manager: NodeManager) -> float:
    [node] = manager.placements
    return node.available.to_units().get("CPU", 0)


def placed(manager: NodeManager) -> list[NodeID]:
    return [NodeID(node.node_id) for node in manager.placements.in_order()]


def test_a_node_has_what_it_registers_with_until_it_reports() -> None:
    manager = make(NODE)
    assert free(manager) == 4
    assert manager.report(report(version=1, free=3))
    assert free(manager) == 3


def test_an_older_report_never_replaces_a_newer_one() -> None:
    manager = make(NODE)
    manager.report(report(version=5, free=1))
    assert not manager.report(report(version=4, free=3))
    assert free(manager) == 1


def test_registering_again_changes_nothing_and_keeps_the_reports() -> None:
    manager = make(NODE)
    manager.report(report(version=5, free=1))
    assert not manager.register(info(), now_s=9.0)
    assert free(manager) == 1
    assert manager.rows()[0].start_time_s == 1.0


def test_a_node_is_dead_when_enough_checks_in_a_row_failed() -> None:
    manager = make(NODE)
    assert [manager.check_failed(NODE, False) for _ in range(2)] == [False, False]
    manager.check_answered(NODE)
    assert [manager.check_failed(NODE, False) for _ in range(3)] == [False, False, True]
    assert not manager.has_ended(NODE)


def test_a_node_has_ended_when_nobody_listened_in_its_stead_for_some_checks() -> None:
    manager = make(NODE)
    manager.check_failed(NODE, False)
    assert [manager.check_failed(NODE, True) for _ in range(3)] == [False, False, True]
    assert manager.has_ended(NODE)
    row = manager.died(NODE, SILENCE, may_linger=False, now_s=5.0)
    assert row is not None and not manager.dead()[0].may_linger


def test_a_node_that_only_sometimes_refuses_is_dead_in_the_end() -> None:
    manager = make(NODE)
    failed = [manager.check_failed(NODE, number % 2 == 1) for number in range(FAILURES_MAX)]
    assert failed == [False, False, True]
    assert not manager.has_ended(NODE)


def test_a_dead_node_is_refused_with_the_reason() -> None:
    manager = make(NODE)
    row = manager.died(NODE, SILENCE, may_linger=True, now_s=5.0)
    assert row is not None and (row.state, row.end_time_s) == (common_pb2.NODE_DEAD, 5.0)
    assert manager.died(NODE, SILENCE, may_linger=True, now_s=6.0) is None
    assert [(row.node_id, row.may_linger) for row in manager.dead()] == [(NODE.binary(), True)]
    manager.ended(NODE)
    assert not manager.dead()[0].may_linger
    with pytest.raises(NodeIsDead, match="silence"):
        manager.register(info(), now_s=7.0)
    with pytest.raises(NodeIsDead):
        manager.report(report(version=1, free=1))
    assert not list(manager.placements) and manager.resources() == []


def test_a_node_that_is_not_known_has_to_register() -> None:
    with pytest.raises(UnknownNode):
        make().report(report(version=1, free=1))


def test_a_restored_node_counts_for_placement_only_when_it_registers() -> None:
    manager = make()
    manager.restore([info()])
    assert manager.unregistered() == [NODE]
    assert not list(manager.placements) and manager.alive(NODE) is not None
    with pytest.raises(UnknownNode):
        manager.report(report(version=1, free=1))
    manager.register(info(), now_s=9.0)
    assert manager.unregistered() == [] and free(manager) == 4


def test_what_the_scheduler_chooses_from_is_told_in_the_order_of_ids_too() -> None:
    a, b, c = (NodeID(letter * 28) for letter in (b"a", b"b", b"c"))
    manager = make(c)
    manager.restore([info(b)])
    assert placed(manager) == [c]
    for node_id in (a, b, a):
        manager.register(info(node_id), now_s=1.0)
    assert placed(manager) == [a, b, c]
    manager.died(b, SILENCE, may_linger=False, now_s=2.0)
    assert placed(manager) == [a, c]
    assert [node.node_id for node in manager.placements] == [c.binary(), a.binary()]


def test_the_nodes_that_died_first_are_forgotten_first() -> None:
    nodes = [NodeID(bytes([number]) * 28) for number in range(3)]
    manager = make(*nodes, dead_nodes_max=2)
    for node_id in (nodes[1], nodes[0], nodes[2]):
        manager.died(node_id, SILENCE, may_linger=True, now_s=2.0)
    assert manager.forget_oldest(0) == [nodes[1]]
    assert [row.node_id for row in manager.rows()] == [nodes[0].binary(), nodes[2].binary()]


def test_an_id_of_another_kind_is_no_node() -> None:
    with pytest.raises(ValueError, match="NodeID takes 28 bytes"):
        make().register(common_pb2.NodeInfo(node_id=JobID.from_int(1).binary()), now_s=1.0)

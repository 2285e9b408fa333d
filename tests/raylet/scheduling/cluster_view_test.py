"""What a raylet knows of the other nodes."""

from __future__ import annotations

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.scheduling import cluster_view
from ray_mono.raylet.scheduling.cluster_view import ClusterView

OWN, A = b"o" * 28, b"a" * 28


def cpus(amount: float) -> ResourceSet:
    return ResourceSet.from_units({"CPU": amount})


def joined() -> ClusterView:
    view = ClusterView(OWN, hold_s=1.0)
    view.node_joined(A, "host", 1, cpus(4))
    return view


def free(view: ClusterView) -> ResourceSet:
    return view.nodes()[0].available


def test_a_node_counts_as_empty_until_it_reports() -> None:
    assert free(joined()) == cpus(4)


def test_an_older_report_never_replaces_a_newer_one() -> None:
    view = joined()
    view.resources_reported(A, 2, cpus(4), cpus(1))
    revision = view.revision
    view.resources_reported(A, 1, cpus(4), cpus(3))
    view.resources_reported(A, 2, cpus(4), cpus(3))
    assert free(view) == cpus(1)
    assert view.revision == revision


def test_what_was_sent_to_a_node_is_deducted_until_it_reports() -> None:
    view = joined()
    view.hold(A, cpus(3), now_s=0)
    assert free(view) == cpus(1)
    view.resources_reported(A, 1, cpus(4), cpus(4))
    assert free(view) == cpus(4)


def test_what_was_returned_there_counts_as_free_before_the_node_says_so() -> None:
    view = joined()
    view.hold(A, cpus(3), now_s=0)
    view.hold(A, cpus(1), now_s=0)
    revision = view.revision
    view.returned(A, cpus(3))
    assert free(view) == cpus(3) and view.revision > revision
    view.resources_reported(A, 1, cpus(4), cpus(2))
    view.returned(A, cpus(1))
    assert free(view) == cpus(3)
    view.returned(A, cpus(3))
    assert free(view) == cpus(4), "no more than there is"
    view.resources_reported(A, 2, cpus(4), cpus(1))
    assert free(view) == cpus(1), "the node's own word counts"
    view.returned(b"x" * 28, cpus(1))  # of a node that was forgotten


def test_a_deduction_ends_by_itself_when_no_report_comes() -> None:
    view = joined()
    view.hold(A, cpus(3), now_s=0)
    revision = view.revision
    view.tick(0.9)
    assert free(view) == cpus(1)
    view.tick(1.0)
    assert free(view) == cpus(4)
    assert view.revision > revision


def test_the_dead_stay_known_and_never_come_back() -> None:
    view = joined()
    assert view.node_died(A)
    assert not view.node_died(A)
    view.node_joined(A, "host", 1, cpus(4))
    assert [node.is_alive for node in view.nodes()] == [False]
    assert not any(node.is_alive for node in view.nodes())


def test_of_many_dead_the_last_ones_stay_known() -> None:
    view = joined()
    dead = [b"%028d" % number for number in range(cluster_view.DEAD_MAX + 1)]
    for node_id in dead:
        view.node_joined(node_id, "host", 1, cpus(4))
        view.node_died(node_id)
    assert [node.node_id for node in view.nodes()] == [*dead[1:], A]


def test_the_own_node_and_strangers_are_ignored() -> None:
    view = ClusterView(OWN, hold_s=1.0)
    view.node_joined(OWN, "host", 1, cpus(4))
    view.resources_reported(A, 1, cpus(4), cpus(4))
    view.hold(A, cpus(1), 0)
    assert not list(view.nodes())
    assert not view.node_died(A)


def test_nodes_stay_in_the_order_of_their_ids_whatever_changes_of_them() -> None:
    view = ClusterView(OWN, hold_s=1.0)
    for name in (b"d", b"b", b"c", b"a"):
        view.node_joined(name * 28, "host", 1, cpus(4))
        view.resources_reported(name * 28, 1, cpus(4), cpus(2))
        view.hold(b"b" * 28, cpus(0.5), now_s=0.0)
        view.nodes()
    view.node_died(b"c" * 28)
    told = [(node.node_id[:1], node.available, node.is_alive) for node in view.nodes()]
    assert told == [
        (b"a", cpus(2), True),
        (b"b", cpus(0.5), True),
        (b"c", cpus(2), False),
        (b"d", cpus(2), True),
    ]
    view.tick(2.0)
    assert view.nodes()[1].available == cpus(2)

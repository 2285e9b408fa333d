"""What must not grow with a cluster, at a size that takes seconds; and the program for large ones."""

from __future__ import annotations

import pytest

from ray_mono.gcs.pubsub.paced_news import PERIOD_S
from tests.simulation import scale

NODES = 32


def test_what_the_head_tells_a_node_while_tasks_run_does_not_grow_with_the_cluster() -> None:
    """Each of 32 nodes reports 20 times a second. Were all told of each at once, they would be told 187 times
    in this second and a half."""
    costs = scale.measure(NODES, ["tasks"])[-1]
    others = 5  # jobs, and the like
    assert costs.num_told / NODES <= costs.virtual_s / PERIOD_S + others


def test_what_the_head_tells_a_node_while_the_cluster_starts_does_not_grow_with_the_cluster() -> None:
    """A raylet and a store listen on each node. Were each told of every other node by itself, and the raylet
    of what it has, each node would be told more often than there are others."""
    num_nodes = 100
    costs = scale.measure(num_nodes, [])[0]
    assert costs.num_told / num_nodes < num_nodes


def test_the_program_prints_a_row_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main(["--nodes", "2", "--phases", "actors,groups"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["2", "start"], ["2", "actors"], ["2", "groups"]]
    num_actors = 2 * scale.ACTORS_PER_NODE
    assert int(rows[1][3]) >= 2 * num_actors and int(rows[2][3]) >= 2  # the head's choice, the raylet's grant


def test_a_phase_that_is_none_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--phases", "tasks,fun"])
    assert "got 'fun'" in capsys.readouterr().err

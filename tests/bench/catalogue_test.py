"""Which workloads there are, and how some of them are chosen."""

from __future__ import annotations

import pytest

from bench import dask_workloads, floors
from bench.guard import GUARDED, LOSS_MAX, guarded_lines, verdict
from ray_mono.microbenchmark.catalogue import GROUPS, lines, select

# What Ray's own command prints.
RAYS_LINES = 31


def test_a_line_has_one_workload() -> None:
    names = [line.name for line in [*lines(GROUPS), *floors.FLOORS.lines()]]
    assert len(names) == len(set(names))


def test_rays_microbenchmark_is_complete() -> None:
    own = [line for group in GROUPS if group.is_microbenchmark for line in group.lines()]
    assert len(own) == RAYS_LINES
    assert all(line.target is not None for line in own)


def test_floors_exist_in_the_unit_of_their_lines() -> None:
    units = {line.name: line.unit for line in floors.FLOORS.lines()}
    for line in [*lines(GROUPS), *guarded_lines()]:
        assert not line.floor or units[line.floor] is line.unit, line.name
    assert guarded_lines()[0].floor == GUARDED[guarded_lines()[0].name]


def test_what_dask_does_is_what_the_others_do() -> None:
    ours = {(group.name, workload.name) for group in GROUPS for workload in group.workloads}
    theirs = {(group.name, workload.name) for group in dask_workloads.GROUPS for workload in group.workloads}
    assert theirs and theirs <= ours


def test_a_pattern_chooses_lines_and_a_groups_name_the_group() -> None:
    assert {line.name for line in lines(select(GROUPS, "1:1 actor calls sync"))} == {
        "1:1 actor calls sync",
        "client: 1:1 actor calls sync",
        "two nodes: tasks sync",
        "two nodes: tasks async",
        "two nodes: 1:1 actor calls sync",
        "two nodes: 1:1 actor calls async",
    }
    assert [group.name for group in select(GROUPS, "calls")] == ["calls"]
    assert select(GROUPS) == GROUPS


def test_a_quick_run_has_nothing_heavy() -> None:
    chosen = select(GROUPS, quick=True)
    assert not any(workload.heavy for group in chosen for workload in group.workloads)
    assert any(workload.heavy for group in GROUPS for workload in group.workloads)


def test_a_pattern_that_chooses_nothing_is_answered_with_what_there_is() -> None:
    with pytest.raises(
        ValueError, match="(?s)no workload is about 'warp drive'.*calls: single client tasks sync"
    ):
        select(GROUPS, "warp drive")


def test_the_guard_tells_a_loss_from_noise() -> None:
    assert verdict(1.0, 1.0) == "kept"
    assert verdict(1.0 - LOSS_MAX + 0.01, 1.0) == "kept"
    assert verdict(1.0 - LOSS_MAX - 0.01, 1.0) == "lost"
    assert verdict(None, 1.0).startswith("lost")
    assert verdict(1.0, None) == "new"

"""What shows of a worker: its title, the labels in its output, and how many threads its libraries start."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import CPU, SCALE
from ray_mono.core_worker.task_execution import process_title
from ray_mono.core_worker.task_execution.call import KnownSpec
from ray_mono.core_worker.task_execution.process_title import SHOWN_MAX, ProcessTitle
from ray_mono.core_worker.task_execution.thread_limit import VARIABLE, ThreadLimit
from ray_mono.protobuf import common_pb2


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    monkeypatch.setattr(process_title, "setproctitle", written.append)
    monkeypatch.setenv(VARIABLE, "1")
    return written


def task(name: str, kind: int = common_pb2.NORMAL_TASK, **fields: Any) -> KnownSpec:
    return KnownSpec(common_pb2.TaskSpec(name=name, type=kind, **fields))  # type: ignore[arg-type]


def test_the_title_is_written_where_it_changes(titles: list[str]) -> None:
    title, first, second = ProcessTitle(), task("f"), task("g")
    assert title.shown is None
    for spec in (first, first, second, first):
        title.show(spec)
        assert title.shown is spec
    title.show_idle()
    assert titles == ["ray_mono::f", "ray_mono::g", "ray_mono::f", "ray_mono::IDLE"] and title.shown is None
    title.show(first)
    assert titles[-1] == "ray_mono::f"


def test_an_actor_is_named_at_rest_and_its_calls_by_it(titles: list[str]) -> None:
    title = ProcessTitle()
    title.show(task("Actor.__init__", common_pb2.ACTOR_CREATION_TASK))
    title.show(task("method", common_pb2.ACTOR_TASK))
    title.show_idle()
    assert titles == ["ray_mono::Actor", "ray_mono::Actor.method", "ray_mono::Actor"]


def test_a_name_is_one_line_without_nul_and_not_too_long(
    titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ProcessTitle().show(task("a\0b\n c" + "x" * SHOWN_MAX))
    assert titles[0].startswith("ray_mono::a b cx") and len(titles[0]) == len("ray_mono::") + SHOWN_MAX
    assert capsys.readouterr().out.count("\n") == 1


def test_output_is_labelled_once_for_each_task_and_not_for_calls(
    titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    title = ProcessTitle()
    for spec in (task("f"), task("f"), task("g")):
        title.show(spec)
    title.show(task("method", common_pb2.ACTOR_TASK))
    said = capsys.readouterr()
    assert said.out == said.err == ":task_name:f\n:task_name:g\n"


def test_output_that_the_user_closed_is_no_trouble(
    titles: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    ProcessTitle().show(task("f"))
    assert capsys.readouterr().err == ":task_name:f\n"


# ---- threads


def cpus(units: float) -> common_pb2.ResourceSet:
    return common_pb2.ResourceSet(amounts={CPU: round(units * SCALE)})


def test_libraries_start_as_many_threads_as_the_task_has_whole_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    limit, told = ThreadLimit(), []
    for units in (1, 4, 2.9, 0.5, 0):
        limit.show(cpus(units))
        told.append(os.environ[VARIABLE])
    limit.show(common_pb2.ResourceSet())
    assert [*told, os.environ[VARIABLE]] == ["1", "4", "2", "1", "1", "1"]


def test_what_the_node_or_the_job_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "7")
    limit = ThreadLimit()
    limit.show(cpus(4))
    assert os.environ[VARIABLE] == "7"


def test_what_the_job_says_later_stays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    limit = ThreadLimit()
    limit.show(cpus(4))
    monkeypatch.setenv(VARIABLE, "7")
    limit.show(cpus(2))
    assert os.environ[VARIABLE] == "7"


def test_a_task_sets_it_and_an_actors_call_does_not(
    titles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    title = ProcessTitle()
    title.show(task("f", resources=cpus(3)))
    title.show(task("method", common_pb2.ACTOR_TASK, resources=cpus(1)))
    assert os.environ[VARIABLE] == "3"

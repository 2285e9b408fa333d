"""Of the CoreInterface's conformance suite (core_interface_test.py) what is about tasks and calls for many
items."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ray_mono import cloudpickle
from ray_mono.common.exceptions import RayTaskError
from ray_mono.core_worker.interface import CoreInterface
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from tests.integration import cores
from tests.integration.cores import WAIT_S, Actor, Counter, a_core, double, fail, submit, submit_all, value_of


@pytest.fixture(scope="module", autouse=True)
def programs_by_value() -> Iterator[None]:
    """Workers need not import them."""
    cloudpickle.register_pickle_by_value(cores)
    yield
    cloudpickle.unregister_pickle_by_value(cores)


@pytest.fixture(scope="module", params=["cluster", "local"])
def core(request: pytest.FixtureRequest) -> Iterator[CoreInterface]:
    with a_core(request) as made:
        yield made


@pytest.mark.parametrize("chunk", [0, 1, 5])
def test_a_task_for_each_item(core: CoreInterface, chunk: int) -> None:
    before = core.put(3)
    refs = submit_all(core, double, [*range(20), before, [4]], chunk)
    assert [type(ref) for ref in refs] == [ObjectRef] * 22 and len(set(refs)) == 22
    assert core.get(refs, WAIT_S) == [*range(0, 40, 2), 6, [4, 4]]


def test_tasks_for_items_fail_one_by_one(core: CoreInterface) -> None:
    failed = submit(core, fail, "no")[0]
    refs = submit_all(core, double, [1, None, failed, 2])
    assert [value_of(core, refs[at]) for at in (0, 3)] == [2, 4]
    for ref in refs[1:3]:
        with pytest.raises(RayTaskError):
            value_of(core, ref)


def test_tasks_for_no_items_are_none(core: CoreInterface) -> None:
    assert submit_all(core, double, []) == []


@pytest.mark.parametrize("chunk", [0, 1, 5])
def test_a_call_for_each_item_in_order(core: CoreInterface, chunk: int) -> None:
    actor = Actor(core, Counter)
    refs = actor.submit_all("add", [1, 2, core.put(3), *range(4, 20)], chunk)
    sums = [sum(range(last + 1)) for last in range(1, 20)]
    assert core.get(refs, WAIT_S) == sums


def test_references_are_given_also_where_an_item_does_not_pickle(core: CoreInterface) -> None:
    refs: list[ObjectRef[int]] = []
    template = core.task_template(core.export(double, "function"), TaskOptions(name="double"))
    with pytest.raises(TypeError, match="pickle"):
        core.submit_tasks(template, [*range(5000), threading.Lock()], 0, refs)
    assert core.get(refs, WAIT_S) == [2 * each for each in range(len(refs))]

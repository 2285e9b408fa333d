"""`experimental.get_object_locations` on a real cluster."""

from __future__ import annotations

import time
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.experimental import get_local_object_locations, get_object_locations
from tests.integration.bounded import GET_TIMEOUT_S, get

pytestmark = pytest.mark.usefixtures("shared_cluster")


def test_a_task_that_was_only_given_references_is_told_where_their_values_are() -> None:
    @ray.remote
    def looks(refs: list[Any]) -> list[dict[str, Any]]:
        assert get_local_object_locations(refs)[refs[0]]["object_size"] is None
        return [
            get_object_locations([ref], timeout_ms)[ref]
            for ref, timeout_ms in zip(refs, (-1, -1, 10), strict=True)
        ]

    @ray.remote
    def stays() -> None:
        time.sleep(GET_TIMEOUT_S)

    here = ray.get_runtime_context().get_node_id()
    running = stays.remote()
    large, small, nothing_yet = get(looks.remote([ray.put(bytes(1 << 20)), ray.put(1), running]))
    assert large["node_ids"] == [here] and large["object_size"] >= 1 << 20
    assert small["node_ids"] == [] and small["object_size"] > 0
    assert nothing_yet == {"node_ids": [], "object_size": None, "did_spill": False}
    ray.cancel(running)


def test_only_references_have_locations() -> None:
    ref = ray.put(1)
    for wrong, told in ((ref, "got the single ObjectRef"), ([ref, 3], "has 3 of type int")):
        for function in (get_object_locations, get_local_object_locations):
            with pytest.raises(TypeError, match=told):
                function(wrong)  # type: ignore[arg-type]


def test_the_time_to_wait_for_owners_is_a_number_of_any_size() -> None:
    ref = ray.put(1)
    for wrong in ("soon", None, True, float("nan")):
        with pytest.raises(TypeError, match="timeout_ms must be a number of milliseconds"):
            get_object_locations([ref], timeout_ms=wrong)  # type: ignore[arg-type]

    @ray.remote
    def where(refs: list[ray.ObjectRef[int]]) -> int:
        return len(get_object_locations(refs, timeout_ms=10**400))

    assert ray.get(where.remote([ref])) == 1

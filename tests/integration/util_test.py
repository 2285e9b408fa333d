"""Tools around the core, on a real cluster: the key-value store, results as they come, node affinity."""

from __future__ import annotations

import pytest

import ray_mono as ray
from ray_mono.experimental import internal_kv

pytestmark = pytest.mark.usefixtures("shared_cluster")
GET_TIMEOUT_S = 60


def test_the_key_value_store_keeps_what_it_is_given() -> None:
    assert internal_kv._internal_kv_initialized()
    assert not internal_kv._internal_kv_put("key", b"1")
    assert internal_kv._internal_kv_put("key", "2", overwrite=False)
    assert internal_kv._internal_kv_get(b"key") == b"1"
    assert internal_kv._internal_kv_put("key", b"3")
    assert internal_kv._internal_kv_get("key") == b"3"
    assert internal_kv._internal_kv_exists("key") and not internal_kv._internal_kv_exists("other")
    assert internal_kv._internal_kv_get("other") is None


def test_namespaces_of_the_key_value_store_are_apart() -> None:
    internal_kv._internal_kv_put("shared", b"a", namespace="one")
    assert internal_kv._internal_kv_get("shared", namespace=b"one") == b"a"
    assert internal_kv._internal_kv_get("shared") is None


def test_keys_are_listed_and_deleted_by_prefix_across_processes() -> None:
    @ray.remote
    def put(name: str) -> bool:
        from ray_mono.experimental import internal_kv

        return internal_kv._internal_kv_put(f"list/{name}", b"", namespace="l")

    assert ray.get([put.remote(name) for name in "ba"], timeout=GET_TIMEOUT_S) == [False, False]
    assert internal_kv._internal_kv_list("list/", namespace="l") == [b"list/a", b"list/b"]
    assert internal_kv._internal_kv_del("list/a", namespace="l") == 1
    assert internal_kv._internal_kv_del("list/", del_by_prefix=True, namespace="l") == 1
    assert internal_kv._internal_kv_list("list/", namespace="l") == []


def test_a_key_that_is_no_text_is_named() -> None:
    with pytest.raises(TypeError, match="key must be bytes or a string, got 3"):
        internal_kv._internal_kv_get(3)  # type: ignore[arg-type]


@ray.remote
def double(x: int) -> int:
    return 2 * x


def test_results_come_as_they_are_ready() -> None:
    references = [double.remote(x) for x in range(5)]
    assert sorted(ray.util.as_completed(references, chunk_size=2, timeout=GET_TIMEOUT_S)) == [0, 2, 4, 6, 8]
    assert set(ray.util.as_completed(references, yield_obj_refs=True)) == set(references)


def test_a_map_keeps_few_calls_unfinished_and_gives_every_result() -> None:
    results = ray.util.map_unordered(double, range(20), backpressure_size=3, chunk_size=2)
    assert sorted(results) == list(range(0, 40, 2))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ray.util.map_unordered(double, [], chunk_size=0)
    with pytest.raises(ValueError, match="accepted are timeout and fetch_local"):
        ray.util.as_completed([], num_returns=2)


def test_affinity_to_this_node_runs_here_and_a_node_nobody_knows_is_passed_over_when_soft() -> None:
    from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote
    def where() -> str:
        return ray.get_runtime_context().get_node_id()

    here = ray.get_runtime_context().get_node_id()
    for strategy in (
        NodeAffinitySchedulingStrategy(here, soft=False),
        NodeAffinitySchedulingStrategy("01" * 28, soft=True),
    ):
        reference = where.options(scheduling_strategy=strategy).remote()
        assert ray.get(reference, timeout=GET_TIMEOUT_S) == here


def test_errors_travel_as_bytes() -> None:
    error = ray.exceptions.ActorDiedError("it fell", "01")
    again = ray.exceptions.RayError.from_bytes(error.to_bytes())
    assert isinstance(again, ray.exceptions.ActorDiedError) and str(again) == str(error)
    assert issubclass(ray.exceptions.RayActorError, ray.exceptions.RAY_EXCEPTION_TYPES)


def test_addresses_and_once() -> None:
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert ray.util.get_node_instance_id() == ray.get_runtime_context().get_node_id()
    assert (ray.util.log_once("key of this test"), ray.util.log_once("key of this test")) == (True, False)

"""`get_runtime_context()`: every answer, to a driver, a task, an actor and an async actor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.common.ids import ActorID, JobID, NodeID, PlacementGroupID, TaskID
from ray_mono.runtime_env import RuntimeEnv

RUNTIME_ENV = {"env_vars": {"OF_THE_JOB": "1"}}


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[Any]:
    yield ray.init(
        address="local", num_cpus=2, namespace="of the test", runtime_env=RUNTIME_ENV, labels={"zone": "a"}
    )


def answers() -> dict[str, Any]:
    """Every public answer by name; an error is its type."""
    context = ray.get_runtime_context()
    found: dict[str, Any] = {}
    for name in dir(type(context)):
        if name.startswith("_"):
            continue
        try:
            value = getattr(context, name)
            found[name] = value() if callable(value) and not isinstance(value, ray.ActorHandle) else value
        except RuntimeError as error:
            found[name] = type(error)
    return found


def on_a_thread() -> dict[str, Any]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(answers).result()


@ray.remote(num_cpus=0.5)
def task() -> dict[str, Any]:
    return answers()


@ray.remote(num_cpus=1)
class Actor:
    def method(self) -> dict[str, Any]:
        return answers()


@ray.remote
class AsyncActor:
    async def method(self) -> dict[str, Any]:
        return answers()


def test_every_answer_is_right_wherever_it_is_asked_for(cluster: Any) -> None:
    named = Actor.options(name="named").remote()
    asynchronous = AsyncActor.remote()
    driver = answers()
    of_task, of_actor, of_async = ray.get(
        [task.options(name="t").remote(), named.method.remote(), asynchronous.method.remote()], timeout=60
    )
    for found in (driver, of_task, of_actor, of_async):
        assert found["namespace"] == "of the test"
        assert (
            isinstance(found["job_id"], JobID)
            and found["job_id"].hex() == found["get_job_id"] == driver["get_job_id"]
        )
        assert (
            isinstance(found["node_id"], NodeID)
            and found["node_id"].hex() == found["get_node_id"] == cluster["node_id"]
        )
        assert found["get_session_name"] == Path(cluster["session_dir"]).name
        assert found["get_temp_dir"] == str(Path(cluster["session_dir"]).parent)
        assert isinstance(found["runtime_env"], RuntimeEnv) and found["runtime_env"] == RUNTIME_ENV
        assert RuntimeEnv.deserialize(found["get_runtime_env_string"]) == RUNTIME_ENV
        assert found["get_accelerator_ids"] == found["get_resource_ids"] == {"GPU": []}
        assert found["gcs_address"] == driver["gcs_address"]
        assert (
            found["get_node_labels"]
            == ray.nodes()[0]["Labels"]
            == {"zone": "a", "ray.io/node-id": cluster["node_id"]}
        )
        assert (
            found["current_placement_group_id"] == PlacementGroupID.nil()
            and found["get_placement_group_id"] is None
        )
        assert found["should_capture_child_tasks_in_placement_group"] is False
        assert found["was_current_actor_reconstructed"] is False
        assert found["get"].keys() >= {"job_id", "node_id", "namespace"}
    assert len({found["get_worker_id"] for found in (driver, of_task, of_actor, of_async)}) == 4
    for found, name, function in (
        (of_task, "t", "task"),
        (of_actor, "Actor.method", "Actor.method"),
        (of_async, "AsyncActor.method", "AsyncActor.method"),
    ):
        assert isinstance(found["task_id"], TaskID) and found["task_id"].hex() == found["get_task_id"]
        assert found["get_task_name"] == name
        assert found["get_task_function_name"] == f"{__name__}.{function}"
        assert found["get"]["task_id"] == found["task_id"]
    for found in (of_actor, of_async):
        assert isinstance(found["actor_id"], ActorID) and found["actor_id"].hex() == found["get_actor_id"]
        assert found["get"]["actor_id"] == found["actor_id"]
    assert of_actor["get_actor_name"] == "named" and of_async["get_actor_name"] == ""
    assert (
        ray.get(of_actor["current_actor"].method.remote(), timeout=60)["get_actor_id"]
        == of_actor["get_actor_id"]
    )
    assert [found["get_assigned_resources"] for found in (driver, of_task, of_actor, of_async)] == [
        {},
        {"CPU": 0.5},
        {"CPU": 1.0},
        {},
    ]
    assert of_task["is_canceled"] is of_actor["is_canceled"] is False
    assert driver["is_canceled"] is of_async["is_canceled"] is RuntimeError


def test_a_thread_is_part_of_its_actor_and_shares_the_resources_of_its_task(cluster: Any) -> None:
    @ray.remote(num_cpus=0.5)
    class Starts:
        def __init__(self) -> None:
            self.from_constructor = on_a_thread()

        def method(self) -> list[Any]:
            return [answers(), self.from_constructor, on_a_thread()]

    of_method, *of_threads = ray.get(Starts.options(name="starts").remote().method.remote(), timeout=60)
    for found in of_threads:
        for name in ("get_actor_id", "get_actor_name", "get_assigned_resources", "get_job_id"):
            assert found[name] == of_method[name], name
        # But it is no call.
        assert found["get_task_name"] == found["get_task_function_name"] == ""
        assert found["get_task_id"] != of_method["get_task_id"]
        assert found["current_actor"] == of_method["current_actor"]
    of_task = ray.get(ray.remote(num_cpus=0.5)(on_a_thread).remote(), timeout=60)
    assert of_task["get_assigned_resources"] == {"CPU": 0.5} and of_task["get_actor_id"] is None


def test_what_there_is_not_is_none(cluster: Any) -> None:
    driver, of_task = answers(), ray.get(task.remote(), timeout=60)
    for name in (
        "task_id",
        "get_task_id",
        "get_task_name",
        "get_task_function_name",
        "actor_id",
        "get_actor_id",
        "get_actor_name",
    ):
        assert driver[name] is None, name
    assert driver["current_actor"] is of_task["current_actor"] is RuntimeError
    assert of_task["actor_id"] is of_task["get_actor_id"] is of_task["get_actor_name"] is None

"""What the API promises beyond the plain programs, on a real cluster: contexts, kinds of actors, retries,
joining.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from tests.integration.bounded import GET_TIMEOUT_S, get
from tests.integration.conftest import NUM_CPUS
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")


# ---------------------------------------------------------------- who and where


def test_the_cluster_tells_what_it_has(shared_cluster: Any) -> None:
    (node,) = ray.nodes()
    assert node["Alive"] and node["NodeID"] == shared_cluster["node_id"]
    assert ray.cluster_resources()["CPU"] == NUM_CPUS
    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs are free")


def test_what_is_free_is_what_is_free_now() -> None:
    class Holder:
        def ready(self) -> float:
            return ray.available_resources()["CPU"]

    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs are free")
    for _ in range(4):
        holder = ray.remote(Holder).options(num_cpus=0.25).remote()
        # Asked there and here.
        assert get(holder.ready.remote()) == ray.available_resources()["CPU"] == NUM_CPUS - 0.25
        ray.kill(holder)
        wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, "all CPUs are free")


def test_code_knows_where_it_runs(shared_cluster: Any) -> None:
    @ray.remote(num_cpus=0.5)
    def task() -> dict[str, Any]:
        context = ray.get_runtime_context()
        return {
            "job": context.get_job_id(),
            "node": context.get_node_id(),
            "task": context.get_task_id(),
            "name": context.get_task_name(),
            "function": context.get_task_function_name(),
            "resources": context.get_assigned_resources(),
            "actor": context.get_actor_id(),
            "namespace": context.namespace,
            "gcs": context.gcs_address,
            "accelerators": context.get_accelerator_ids(),
            "gpus": ray.get_gpu_ids(),
            "initialized": ray.is_initialized(),
        }

    context = ray.get_runtime_context()
    reference = task.remote()
    told = get(reference)
    assert (told["job"], told["namespace"]) == (context.get_job_id(), context.namespace)
    assert told["node"] == shared_cluster["node_id"] and told["gcs"] == shared_cluster["address"]
    assert (told["task"], told["name"]) == (reference.task_id().hex(), "task")
    assert told["function"].endswith("api_test.task")
    assert told["resources"] == {"CPU": 0.5} and told["actor"] is None and told["initialized"]
    assert told["accelerators"] == {"GPU": []} and told["gpus"] == []
    assert context.get_task_id() is None and context.get_assigned_resources() == {}


def test_an_actor_knows_itself() -> None:
    class Self:
        def who(self) -> Any:
            context = ray.get_runtime_context()
            assert context.get_task_name().endswith("Self.who")
            assert context.get_task_function_name().endswith("api_test.Self.who")
            return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

        def own_handle(self) -> Any:
            return ray.get_runtime_context().current_actor

    actor = ray.remote(Self).options(name="self").remote()
    assert get(actor.who.remote()) == (actor._actor_id.hex(), "self", False)
    assert get(actor.own_handle.remote()) == actor
    assert ray.util.list_named_actors() == ["self"]


# ---------------------------------------------------------------- tasks


def test_several_returns_and_none() -> None:
    @ray.remote(num_returns=2)
    def two() -> tuple[int, int]:
        return 1, 2

    left, right = two.remote()
    assert get([right, left]) == [2, 1]
    assert two.options(num_returns=0).remote() is None
    assert get(two.options(num_returns=1).remote()) == (1, 2)
    with pytest.raises(ValueError):
        get(two.options(num_returns=3).remote()[0])


def test_errors_that_are_covered_are_retried(tmp_path: Path) -> None:
    @ray.remote(max_retries=3, retry_exceptions=[OSError])
    def flaky(kind: type[Exception], name: str) -> int:
        marks = tmp_path / name
        marks.mkdir(exist_ok=True)
        count = len(list(marks.iterdir()))
        (marks / str(count)).touch()
        if count < 2:
            raise kind("again")
        return count

    assert get(flaky.remote(FileNotFoundError, "covered")) == 2
    with pytest.raises(KeyError):
        get(flaky.remote(KeyError, "not covered"))


def test_references_work_in_futures_and_await() -> None:
    @ray.remote
    def f(x: int) -> int:
        return x + 1

    assert f.remote(1).future().result(GET_TIMEOUT_S) == 2

    async def ask() -> list[int]:
        return await asyncio.wait_for(asyncio.gather(f.remote(1), f.remote(2)), GET_TIMEOUT_S)

    assert asyncio.run(ask()) == [2, 3]


def test_threads_of_a_driver_use_the_cluster_side_by_side() -> None:
    @ray.remote
    def f(x: int) -> int:
        return x * 2

    results: dict[int, list[int]] = {}

    def use(number: int) -> None:
        results[number] = get([f.remote(number * 10 + i) for i in range(10)])

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GET_TIMEOUT_S)
    assert results == {n: [2 * (n * 10 + i) for i in range(10)] for n in range(4)}


# ---------------------------------------------------------------- actors


def test_an_async_actor_runs_calls_beside_each_other() -> None:
    class Async:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        async def wait(self) -> str:
            await self.event.wait()
            return "woken"

        async def wake(self) -> None:
            self.event.set()

    actor = ray.remote(Async).remote()
    waiting = [actor.wait.remote() for _ in range(5)]
    get(actor.wake.remote())
    assert get(waiting) == ["woken"] * 5


def test_a_threaded_actor_and_concurrency_groups(tmp_path: Path, touch_and_wait: Any) -> None:
    class Threaded:
        def wait(self, gate: str) -> str:
            touch_and_wait(None, gate)
            return "waited"

        @ray.method(concurrency_group="control")
        def open(self, gate: str) -> None:
            touch_and_wait(gate, None)

    groups: Any = ray.remote(concurrency_groups={"control": 1})(Threaded)
    actor = groups.remote()
    waiting = actor.wait.remote(f"{tmp_path}/first")
    get(actor.open.remote(f"{tmp_path}/first"))
    assert get(waiting) == "waited"

    threads: Any = ray.remote(Threaded).options(max_concurrency=2, concurrency_groups={"control": 1})
    actor = threads.remote()
    waiting = actor.wait.remote(f"{tmp_path}/second")
    get(actor.wait.remote(f"{tmp_path}/first"))
    get(actor.open.remote(f"{tmp_path}/second"))
    assert get(waiting) == "waited"


def test_actors_are_shared_by_name() -> None:
    class Shared:
        def pid(self) -> int:
            return os.getpid()

    shared: Any = ray.remote(Shared)
    first = shared.options(name="shared", get_if_exists=True).remote()
    second = shared.options(name="shared", get_if_exists=True).remote()
    assert get(first.pid.remote()) == get(second.pid.remote()) and first == second
    with pytest.raises(ValueError, match="shared"):
        shared.options(name="shared").remote()
    with pytest.raises(ValueError, match="nobody"):
        ray.get_actor("nobody")


def test_an_actor_restarts_as_often_as_it_may() -> None:
    class Phoenix:
        def pid(self) -> int:
            return os.getpid()

        def leave(self) -> None:
            os._exit(1)

    phoenix = ray.remote(max_restarts=1, max_task_retries=-1)(Phoenix).remote()
    before = get(phoenix.pid.remote())
    ray.kill(phoenix, no_restart=False)
    assert get(phoenix.pid.remote()) != before
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(phoenix.leave.remote())


def test_actors_leave_by_themselves_and_on_request() -> None:
    class Leaver:
        def leave(self) -> None:
            ray.exit_actor()

        def here(self) -> bool:
            return True

    for leave in (lambda actor: actor.leave.remote(), lambda actor: actor.__ray_terminate__.remote()):
        actor = ray.remote(Leaver).remote()
        assert get(actor.__ray_ready__.remote()) and get(actor.__ray_call__.remote(lambda self: self.here()))
        leave(actor)
        with pytest.raises(ray.exceptions.ActorDiedError):
            get(actor.here.remote())


def test_an_actor_whose_constructor_raises_says_so_at_its_calls() -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no luck today")

        def method(self) -> None: ...

    broken = ray.remote(Broken).remote()
    with pytest.raises(ray.exceptions.ActorDiedError, match="no luck today"):
        get(broken.method.remote())


# ---------------------------------------------------------------- joining


def test_another_driver_joins_the_cluster_and_shares_named_actors(shared_cluster: Any) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.items: list[str] = []

        def add(self, item: str) -> list[str]:
            self.items.append(item)
            return self.items

    namespace = ray.get_runtime_context().namespace
    keeper = ray.remote(Keeper).options(name="keeper").remote()
    program = """
import sys
import ray_mono as ray
context = ray.init(address=sys.argv[1], namespace=sys.argv[2])
assert ray.get(ray.get_actor("keeper").add.remote("from another driver"), timeout=60)
try:
    ray.shutdown()
    ray.init(address=sys.argv[1], num_cpus=3)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, shared_cluster["address"], namespace],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert "num_cpus=3 was given, but this joins a cluster" in done.stdout
    assert get(keeper.add.remote("here")) == ["from another driver", "here"]
    assert get(ray.remote(lambda: 1).remote()) == 1

"""Programs that say `import ray`, run under ray_mono.compat on real clusters: in workers, too, `ray` is
ray_mono."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.scripts import Script

Start = Callable[..., Script]
INSTALL = "import ray_mono.compat\nray_mono.compat.install()\n"
SHUTDOWN = "ray.shutdown()\n"


def test_tasks_and_actors_find_ray_in_their_workers(start: Start) -> None:
    source = """
import pickle
import ray
from ray.exceptions import GetTimeoutError
import ray_mono

ray.init(num_cpus=2)

@ray.remote
def imports_in_the_task():
    import ray
    import ray.util.scheduling_strategies
    import ray_mono
    return ray.get is ray_mono.get and ray.exceptions.GetTimeoutError is ray_mono.exceptions.GetTimeoutError

@ray.remote
class Actor:
    def load(self, data):
        return pickle.loads(data) is GetTimeoutError

    def nested(self):
        return ray.get(imports_in_the_task.remote())

print(ray.get(imports_in_the_task.remote()))
actor = Actor.remote()
print(ray.get(actor.load.remote(b"cray.exceptions\\nGetTimeoutError\\n.")))
print(ray.get(actor.nested.remote()))
"""
    assert start(INSTALL + source + SHUTDOWN).check_ended_well().split() == ["True"] * 3


def test_a_class_of_the_program_is_one_class_on_both_sides(start: Start) -> None:
    source = """
import ray

class Wrong(ray.exceptions.RayError):
    pass

@ray.remote
def fails():
    raise Wrong("no")

ray.init(num_cpus=1)
try:
    ray.get(fails.remote())
except Wrong as error:
    print("caught", isinstance(error, ray.exceptions.RayTaskError))
"""
    assert start(INSTALL + source + SHUTDOWN).check_ended_well().split() == ["caught", "True"]


def test_install_after_init_reaches_workers_that_run_already(start: Start) -> None:
    source = """
import ray_mono

@ray_mono.remote
def imports():
    import ray
    return ray.__name__

@ray_mono.remote
def nothing():
    pass

ray_mono.init(num_cpus=1)
ray_mono.get(nothing.remote())
import ray_mono.compat
ray_mono.compat.install()
print(ray_mono.get(imports.remote()))
ray_mono.shutdown()
"""
    assert start(source).check_ended_well().split() == ["ray"]


def test_old_options_work_in_tasks_that_submit_tasks(start: Start) -> None:
    source = """
import ray

@ray.remote
def outer():
    @ray.remote(num_return_vals=2)
    def two():
        return 1, 2
    return ray.get(two.remote())

ray.init(num_cpus=1)
print(ray.get(outer.remote()))
"""
    assert "[1, 2]" in start(INSTALL + source + SHUTDOWN).check_ended_well()


def test_handles_can_be_registered_under_a_name_as_in_ray_08(start: Start) -> None:
    source = """
import ray

@ray.remote
class Counter:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

@ray.remote
def adds():
    return ray.get(ray.experimental.get_actor("counter").add.remote())

ray.init(num_cpus=1)
told = []
ray.experimental.register_actor("counter", Counter.remote())
told += [ray.get(adds.remote()), ray.get(adds.remote())]
for name, handle in (("counter", ray.experimental.get_actor("counter")), ("other", None)):
    try:
        ray.experimental.register_actor(name, handle)
    except (ValueError, TypeError) as error:
        told.append(type(error).__name__)
try:
    ray.experimental.get_actor("nobody")
except ValueError:
    told.append("nobody")
assert told == [1, 2, "ValueError", "TypeError", "nobody"], told
"""
    start(INSTALL + source + SHUTDOWN).check_ended_well()


def test_rays_environment_variables_count(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "hooks.py").write_text(
        "def add(runtime_env):\n    return {'env_vars': {'FROM_HOOK': str(runtime_env)}}\n"
    )
    monkeypatch.setenv("RAY_NAMESPACE", "blue")
    monkeypatch.setenv("RAY_RUNTIME_ENV_HOOK", "hooks.add")
    source = """
import os
import ray

ray.init(num_cpus=1)
print(ray.get_runtime_context().namespace)
print(ray.get(ray.remote(lambda: os.environ["FROM_HOOK"]).remote()))
"""
    assert start(INSTALL + source + SHUTDOWN).check_ended_well().split() == ["blue", "None"]


def test_auto_connect_can_be_switched_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")
    source = """
import ray
try:
    ray.put(1)
except ray.exceptions.RaySystemError as error:
    print("refused:", error)
"""
    assert start(INSTALL + source).check_ended_well().startswith("refused:")


def test_what_libraries_and_tracers_use_of_ray_works(start: Start) -> None:
    source = """
import ray
from ray._private.profiling import profile
from ray.util.actor_group import ActorGroup
from ray.util.iter import from_range

ray.init(num_cpus=2)
hooks = []
ray._private.worker._post_init_hooks.append(lambda: hooks.append("called"))
ray.shutdown()
ray.init(num_cpus=2)
node = ray._private.worker._global_node
assert hooks == ["called"] and node.head and node.session_dir.startswith(node.get_temp_dir_path() + "/")
assert node.address == ray.get_runtime_context().gcs_address
assert ray.get_runtime_context().worker.node.session_dir == node.get_session_dir_path()
[of_node] = ray._private.state.total_resources_per_node().values()
[free] = ray._private.state.available_resources_per_node().values()
assert of_node["CPU"] == free["CPU"] == 2
assert len(ray._private.state.state.node_table()) == 1 and ray._private.state.state.actor_table() == {}

@ray.remote
def told():
    node = ray._private.worker._global_node
    return node.get_logs_dir_path(), node.address, node.node_id

assert ray.get(told.remote(), timeout=60) == (node.get_logs_dir_path(), node.address, node.node_id)

def traced(submit):
    def call(args, kwargs):
        hooks.append(args)
        return submit(args, kwargs)
    return call

def plain(x):
    with profile("inside"):
        return x + 1

plain.__ray_invocation_decorator__ = traced
f = ray.remote(plain)
assert ray.get([f.remote(1), f.options(num_cpus=1).remote(2)], timeout=60) == [2, 3]
assert hooks[1:] == [(1,), (2,)]
here = ray.get_runtime_context().get_node_id()
tagged = f.options(_labels={"a": "b"}, _metadata={}, label_selector={"ray.io/node-id": here})
assert ray.get(tagged.remote(3), timeout=60) == 4

with profile("of the driver", {"name": "named"}):
    large = ray.put(bytes(1 << 20))
small = f.remote(4)
ray.get(small, timeout=60)
found = ray.experimental.get_object_locations([large, small])
assert found[large]["node_ids"] == [here] and found[large]["object_size"] >= 1 << 20, found
assert found[small]["node_ids"] == [] and found[small]["object_size"] > 0, found

class Adder:
    def __init__(self, n):
        self.n = n
    def add(self, x):
        return self.n + x

g = ActorGroup(Adder, num_actors=2, num_cpus_per_actor=0, init_args=[5])
assert ray.get([*g.add.remote(1), g[0].add.options(_labels={"a": "b"}).remote(2)], timeout=60) == [6, 6, 7]
g.shutdown()

shards = from_range(8).for_each(lambda x: x + 1).repartition(2).shards()
assert sorted(ray.get([ray.remote(lambda s: sum(s)).remote(s) for s in shards], timeout=60)) == [16, 20]
spans = {event["name"] for event in ray.timeline()}
assert {"inside", "named", "plain"} <= spans, spans
"""
    start(INSTALL + source + SHUTDOWN).check_ended_well()


def test_processes_that_programs_and_tasks_start_find_ray_too(start: Start) -> None:
    source = """
import multiprocessing
import subprocess
import sys

import ray

def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()

def spawned(results):
    results.put(ray.__version__)

if __name__ == "__main__":
    version = "import ray.util; print(ray.__version__)"
    assert run("-c", version) == ["2.60.0"]
    assert "version" in run("-m", "ray.scripts.scripts", "--version")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=spawned, args=(results,))
    child.start()
    assert results.get(timeout=60) == "2.60.0"
    child.join()
    ray.init(num_cpus=1)
    assert ray.get(ray.remote(run).remote("-c", version), timeout=60) == ["2.60.0"]
    ray.shutdown()
"""
    start(INSTALL + source).check_ended_well()

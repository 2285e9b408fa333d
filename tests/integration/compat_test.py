"""Programs that say `import ray`, run under ray_mono.compat on real clusters: in workers, too, `ray` is ray_mono."""

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
    return ray is ray_mono and ray.exceptions.GetTimeoutError is ray_mono.exceptions.GetTimeoutError

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
    assert start(source).check_ended_well().split() == ["ray_mono"]


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

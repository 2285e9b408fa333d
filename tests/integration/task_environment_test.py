"""Environment variables of single tasks and actors: beside the job's, inherited by what they submit, never
seen by others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.runtime_env import RuntimeEnv
from tests.integration.bounded import get
from tests.integration.nothing_left import wait_for_nothing_left

OF_JOB = {"SHARED": "job", "OWN": "job", "EXPANDED": "${HOME}/x:${NOT_SET_ANYWHERE}"}


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Any:
    return ray.init(address="local", num_cpus=2, runtime_env={"env_vars": OF_JOB})


@pytest.fixture(autouse=True)
def leaves_nothing(cluster: Any) -> Iterator[None]:
    yield
    wait_for_nothing_left()


def env(**variables: str) -> dict[str, Any]:
    return {"env_vars": variables}


@ray.remote
def variables() -> tuple[Any, ...]:
    return tuple(os.environ.get(name) for name in ("SHARED", "OWN", "MORE"))


@ray.remote
def submits(inner_env: dict[str, Any] | None) -> Any:
    return get(variables.options(runtime_env=inner_env).remote())


@ray.remote
class Actor:
    def variables(self) -> Any:
        return get(variables.remote())

    def told(self) -> Any:
        return os.environ.get("OWN"), ray.get_runtime_context().runtime_env


def test_a_tasks_variables_go_beside_the_jobs() -> None:
    assert get(variables.remote()) == ("job", "job", None)
    assert get(variables.options(runtime_env=env(OWN="task")).remote()) == ("job", "task", None)
    assert get(variables.remote()) == ("job", "job", None)  # in a worker without them


def test_a_variable_may_be_made_of_others_of_the_node() -> None:
    expanded = ray.remote(lambda: os.environ["EXPANDED"])
    assert get(expanded.remote()) == f"{os.environ['HOME']}/x:"


def test_what_a_task_submits_inherits_its_variables() -> None:
    outer = submits.options(runtime_env=env(OWN="outer"))
    assert get(outer.remote(None)) == ("job", "outer", None)
    assert get(outer.remote(env(MORE="inner"))) == ("job", "outer", "inner")
    assert get(outer.remote(env(OWN="inner"))) == ("job", "inner", None)


def test_an_actor_has_variables_and_tells_of_them() -> None:
    actor = Actor.options(runtime_env=RuntimeEnv(env_vars={"OWN": "actor"})).remote()
    assert get(actor.variables.remote()) == ("job", "actor", None)
    assert get(actor.told.remote()) == ("actor", {"env_vars": {**OF_JOB, "OWN": "actor"}})


def test_an_actor_that_is_restarted_has_them_again() -> None:
    restarted = Actor.options(runtime_env=env(OWN="actor"), max_restarts=1, max_task_retries=1).remote()
    assert get(restarted.told.remote())[0] == "actor"
    ray.kill(restarted, no_restart=False)
    assert get(restarted.told.remote())[0] == "actor"


def test_what_looks_at_a_worker_from_outside_sees_the_environment_of_its_node(shared_base: Path) -> None:
    @ray.remote
    def named() -> tuple[dict[str, str], str]:
        shown = Path("/proc/self/environ").read_text().split("\0")
        return dict(item.split("=", 1) for item in shown if item), Path("/proc/self/cmdline").read_text()

    seen, title = get(named.remote())
    assert seen["RAY_MONO_TMPDIR"] == str(shared_base) and seen["PATH"] == os.environ["PATH"]
    assert title.rstrip("\0").startswith("ray_mono::") and title.rstrip("\0").endswith("named")

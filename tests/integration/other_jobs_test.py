"""Actors that drivers of other jobs call: they stay in the job that made them, with what runs below them,
also when its driver is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray_mono as ray
from tests.integration.bounded import get
from tests.integration.scripts import Script

OTHER_DRIVER = """
import json, sys
import ray_mono as ray
variables = {"WHOSE": "other", "ONLY_OTHER": "1"}
ray.init(address=sys.argv[1], namespace="other", runtime_env={"env_vars": variables})
print("found", json.dumps(ray.get(ray.get_actor("actor", namespace="made").all.remote())))
ray.shutdown()
"""
MAKER = """
import os, sys
import ray_mono as ray
ray.init(address=sys.argv[1], namespace="made", runtime_env={"env_vars": {"WHOSE": "maker"}})

def here():
    context = ray.get_runtime_context()
    return [context.get_job_id(), context.namespace, os.environ.get("WHOSE"), os.environ.get("ONLY_OTHER")]

@ray.remote(num_cpus=0)
class Child:
    def here(self):
        return here()

@ray.remote(num_cpus=0)
def task():
    return here()

@ray.remote(num_cpus=0)
def parent():
    child = Child.remote()
    return [ray.get(task.remote()), ray.get(child.here.remote())]

@ray.remote(num_cpus=0, max_restarts=1)
class Detached:
    def all(self):
        if not hasattr(self, "child"):
            self.child = Child.remote()
        return [here(), ray.get(task.remote()), ray.get(self.child.here.remote()), *ray.get(parent.remote())]

    def die(self):
        os._exit(1)

actor = Detached.options(name="actor", lifetime="detached").remote()
print("made", ray.get(actor.all.remote()))
sys.stdin.readline()
ray.shutdown()
"""


def test_an_actor_and_what_it_makes_are_of_its_makers_job_whoever_calls(
    shared_cluster: Any, start_script: Callable[..., Script]
) -> None:
    address = shared_cluster.address_info["gcs_address"]
    maker = start_script(MAKER, address, name="maker.py")
    made = maker.wait_for_line("made")
    job_id = ray.get_runtime_context().get_job_id()

    def other() -> list[list[str | None]]:
        script = start_script(OTHER_DRIVER, address, name="other.py")
        found: list[list[str | None]] = json.loads(script.wait_for_line("found").removeprefix("found "))
        script.check_ended_well()
        return found

    found = other()
    assert str(found) in made
    assert all(row == found[0] for row in found) and len(found) == 5
    assert found[0][1:] == ["made", "maker", None] and found[0][0] != job_id
    # Its job's driver goes: it lives on, with its child, and may run and make more, also after a restart.
    maker.say("end")
    maker.check_ended_well()
    assert other() == found
    actor = ray.get_actor("actor", namespace="made")
    actor.die.remote()
    assert get(actor.all.options(max_task_retries=3).remote()) == found
    ray.kill(actor)

"""The GCS goes while a driver is connected, and does not come back: every function of the API ends in time,
with an error of ours that says who is gone."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.scripts import Script

PROGRAM = """
import ray_mono as ray
from ray_mono import exceptions, util
from ray_mono.experimental import internal_kv
from tests.chaos.victims import Victims

patience = {"raylet": {"gcs_reconnect_timeout_s": 3.0}}
ray.init(
    address="local", num_cpus=2, namespace="n", log_to_driver=False, _system_config=patience
)

@ray.remote(num_cpus=0)
class Actor:
    def method(self):
        return 1

@ray.remote(max_retries=0)
def known():
    return 1

@ray.remote
def new():
    return 2

@ray.remote
class New:
    pass

actor, silent = Actor.options(name="actor").remote(), Actor.remote()
ray.get([actor.method.remote(), silent.method.remote(), known.remote()])
reference = ray.put(3)

ASK_THE_GCS = {
    "available_resources": ray.available_resources,
    "cluster_resources": ray.cluster_resources,
    "nodes": ray.nodes,
    "timeline": ray.timeline,
    "get_actor": lambda: ray.get_actor("actor"),
    "get_actor of nobody": lambda: ray.get_actor("nobody"),
    "kill": lambda: ray.kill(silent),
    "run_function_on_all_workers": lambda: ray.run_function_on_all_workers(lambda info: None),
    "a named actor": lambda: Actor.options(name="named").remote(),
    "list_named_actors": util.list_named_actors,
    "gcs_address": lambda: ray.get_runtime_context().gcs_address,
    "internal_kv_get": lambda: internal_kv._internal_kv_get(b"k"),
    "internal_kv_put": lambda: internal_kv._internal_kv_put(b"k", b"v"),
    "internal_kv_exists": lambda: internal_kv._internal_kv_exists(b"k"),
    "internal_kv_del": lambda: internal_kv._internal_kv_del(b"k"),
    "internal_kv_list": lambda: internal_kv._internal_kv_list(b"k"),
}
# The rest of the node follows: until then these work.
END_IN_TIME = {
    "get of a task": lambda: ray.get(known.remote(), timeout=60),
    "get of a call": lambda: ray.get(actor.method.remote(), timeout=60),
    "get of a new task": lambda: ray.get(new.remote(), timeout=60),
    "get of a new actor": lambda: ray.get(New.remote().__ray_ready__.remote(), timeout=60),
    "put of a large value": lambda: ray.put(b"x" * (1 << 20)),
}
NEED_NOBODY = {
    "get": lambda: ray.get(reference, timeout=60),
    "put": lambda: ray.put(1),
    "wait": lambda: ray.wait([reference], timeout=60),
    "cancel": lambda: ray.cancel(known.remote()),
    "get_gpu_ids": ray.get_gpu_ids,
    "is_initialized": ray.is_initialized,
    "get_runtime_context": lambda: ray.get_runtime_context().get(),
    "explain": lambda: ray.explain(reference),
    "explain of an actor": lambda: says_that_the_head_is_away(ray.explain(silent)),
    "explain of all": lambda: says_that_the_head_is_away(ray.explain()),
}

def says_that_the_head_is_away(told):
    assert "the head" in str(told), told

def outcome(call):
    try:
        call()
    except exceptions.GetTimeoutError as error:
        return error
    except exceptions.RayError as error:
        return error
    return None

with Victims().without_head():
    for name, call in ASK_THE_GCS.items():
        error = outcome(call)
        assert isinstance(error, exceptions.RayError) and "the GCS at " in str(error), (name, error)
        assert "is gone: it has been away for" in str(error), (name, error)
    for name, call in END_IN_TIME.items():
        error = outcome(call)
        assert not isinstance(error, exceptions.GetTimeoutError), (name, error)
    for name, call in NEED_NOBODY.items():
        assert outcome(call) is None, name
told = {name.split(" ")[0] for table in (ASK_THE_GCS, END_IN_TIME, NEED_NOBODY) for name in table}
functions = {name for name in ray.__all__ if callable(getattr(ray, name)) and name.islower()}
others = {"init", "shutdown", "remote", "method", "exit_actor", "client", "java_function", "java_actor_class"}
assert functions - told - others == set(), functions - told - others
ray.shutdown()
print("all told")
"""


def test_every_function_says_that_the_gcs_is_gone(start: Callable[..., Script]) -> None:
    assert "all told" in start(PROGRAM).check_ended_well()

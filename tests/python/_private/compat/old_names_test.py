"""Names of Ray 0.8 to 1.x: they work under ray_mono.compat, warn where the program uses them, and do not
exist otherwise."""

from __future__ import annotations

import pytest

import ray_mono
from ray_mono._private.compat import old_names
from tests.integration.clusters import run_python

ALWAYS = ("-W", "always::DeprecationWarning")


def run(code: str) -> list[str]:
    """The lines that a program with compat prints, and its warnings in "line: message"."""
    done = run_python(*ALWAYS, "-c", f"import ray_mono.compat; ray_mono.compat.install(); import ray\n{code}")
    assert done.status == 0, done.error
    return done.out.splitlines() + [
        line.partition("DeprecationWarning: ")[2] for line in done.error.splitlines() if "<string>:" in line
    ]


def test_options_have_their_old_names_on_functions_classes_and_methods() -> None:
    code = """
@ray.remote(num_return_vals=2)
def f(): pass

@ray.remote(max_reconstructions=3, detached=True, is_direct_call=True, name="a")
class A:
    @ray.method(num_return_vals=2)
    def m(self): pass

print(f._default_options, f.options(num_return_vals=3)._default_options)
print(sorted(A._default_options.items()))
print(A._metadata.method("m").options)
"""
    assert run(code) == [
        "{'num_returns': 2} {'num_returns': 3}",
        "[('lifetime', 'detached'), ('max_restarts', 3), ('name', 'a')]",
        "{'num_returns': 2}",
        "num_return_vals of remote is a name of Ray 0.8 to 1.x: use num_returns",
        "num_return_vals of remote is a name of Ray 0.8 to 1.x: use num_returns",  # of the method
        "max_reconstructions of remote is a name of Ray 0.8 to 1.x: use max_restarts",
        "is_direct_call, an argument of remote in Ray 0.8 to 1.x, has no effect any more",
        "detached of remote is a name of Ray 0.8 to 1.x: use lifetime='detached'",
        "num_return_vals of remote is a name of Ray 0.8 to 1.x: use num_returns",
    ]


def test_arguments_of_init_have_their_old_names() -> None:
    code = """
ray.init(local_mode=True, num_redis_shards=2, redis_password="x")
print(ray.is_initialized())
ray.shutdown()
try:
    ray.init(redis_address="local", address="local")
except TypeError as error:
    print(error)
"""
    assert run(code) == [
        "True",
        "init was given redis_address and address, which are the same: give address alone",
        "num_redis_shards, an argument of init in Ray 0.8 to 1.x, has no effect any more",
        "redis_password of init is a name of Ray 0.8 to 1.x: use _redis_password",
        "redis_address of init is a name of Ray 0.8 to 1.x: use address",
    ]


def test_names_of_modules_and_errors_are_found_where_they_were() -> None:
    code = """
import ray_mono.worker, ray_mono._private.state
from ray.exceptions import RayTimeoutError
from ray.experimental import named_actors
import ray.node, ray.parameter, ray.state
assert ray.node.Node is ray._private.node.Node and ray.parameter.RayParams
assert RayTimeoutError is ray.exceptions.GetTimeoutError
assert ray.ObjectID is ray.ObjectRef
assert ray.state is ray_mono._private.state
print(ray.experimental.get_actor is named_actors.get_actor)
print(ray.worker.get is ray.get)
"""
    found = run(code)
    assert found[0] == found[1] == "True"
    assert {line.partition(" is a name")[0] for line in found[2:]} >= {
        "ray.exceptions.RayTimeoutError",
        "ray.experimental.named_actors",
        "ray.experimental.get_actor",
        "ray.node",
        "ray.parameter",
        "ray.state",
    }


def test_get_and_wait_and_put_take_what_they_took() -> None:
    code = """
ray.init(local_mode=True)
refs = [ray.put(number, weakref=False) for number in range(3)]
print(ray.get(refs, 10), ray.get(object_ids=refs), ray.get(object_refs=refs))
waited = ray.wait(refs, 2, 10), ray.wait(object_ids=refs, num_returns=3)
print(*[[len(part) for part in parts] for parts in waited])
try:
    ray.wait(refs, 1, num_returns=2)
except TypeError as error:
    print(error)
"""
    found = run(code)
    assert found[:3] == [
        "[0, 1, 2] [0, 1, 2] [0, 1, 2]",
        "[2, 1] [3, 0]",
        "wait() was given num_returns twice, by position and by name",
    ]
    assert {line.partition(" is a name")[0] for line in found[3:] if "is a name" in line} == {
        "get() with 2 arguments by position",
        "object_ids of get",
        "wait() with 3 arguments by position",
        "wait() with 2 arguments by position",
        "object_ids of wait",
    }
    assert "weakref, an argument of put in Ray 0.8 to 1.x, has no effect any more" in found


def test_what_had_only_an_effect_inside_of_ray_is_accepted() -> None:
    code = """
import asyncio, ray.internal, ray.profiling
from ray.experimental import async_api
from ray.memory_monitor import RayOutOfMemoryError
ray.init(local_mode=True)
ref = ray.put(3)
with ray.profile("task"), ray.profiling.profile("task", extra_data={"a": "b"}):
    ray.internal.free([ref])
print(asyncio.run(async_api.as_future(ref)), RayOutOfMemoryError is ray.exceptions.OutOfMemoryError)
"""
    found = run(code)
    assert found[0] == "3 True"
    assert {line.partition(" is a name")[0] for line in found[1:]} >= {
        "ray.experimental.async_api",
        "ray.internal",
        "ray.memory_monitor",
        "ray.profile",
        "ray.profiling",
    }


def test_the_global_worker_answers() -> None:
    code = """
import ray.worker
from ray._private.worker import global_worker
ray.init(local_mode=True)
assert global_worker is ray.worker.global_worker
print(global_worker.connected, global_worker.mode == ray.LOCAL_MODE, global_worker.actor_id.is_nil())
print(global_worker.current_job_id.hex() == ray.get_runtime_context().get_job_id())
"""
    found = run(code)
    assert found[:2] == ["True True True", "True"]
    assert {line.partition(" is a name")[0] for line in found[2:]} == {
        "ray.worker",
        "ray.worker.global_worker",
    }


def test_without_compat_there_are_no_old_names() -> None:
    with pytest.raises(AttributeError):
        ray_mono.exceptions.RayTimeoutError  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ValueError, match="'num_return_vals' is not an option"):
        ray_mono.remote(num_return_vals=2)(len)
    with pytest.raises(RuntimeError, match="init\\(\\) has no argument redis_address"):
        ray_mono.init(redis_address="local", local_mode=True)


def test_every_old_name_leads_somewhere_known() -> None:
    for names in old_names._NAMES.values():
        for place, _, advice in names.values():
            assert place.startswith("ray_mono") and advice
    assert not old_names.INIT_ARGUMENTS.keys() & old_names.DROPPED_INIT_ARGUMENTS

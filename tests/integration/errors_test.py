"""Every class of `ray_mono.exceptions` where Ray raises it, and what errors tell those who get them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono import exceptions
from ray_mono.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.integration.nothing_left import wait_for_nothing_left
from tests.waiting import wait_until

TIMEOUT_S = 60

pytestmark = pytest.mark.usefixtures("shared_cluster")


def get(references: Any) -> Any:
    return ray.get(references, timeout=TIMEOUT_S)


@ray.remote(max_retries=0)
def fail(error: BaseException) -> None:
    raise error


@ray.remote(num_cpus=0)
class Actor:
    def fail(self, error: BaseException) -> None:
        raise error

    def crash(self) -> None:
        os._exit(3)

    def rest(self) -> None:
        time.sleep(60)

    def own(self) -> list[Any]:
        return [ray.put("mine")]


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


@ray.remote
def fail_unreadably() -> None:
    # Neither the class can be found there, nor sent.
    raise type("UnreadableError", (Exception,), {"lock": threading.Lock()})("text")


NOWHERE = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)


def an_actor_killed() -> Any:
    actor = Actor.remote()
    get(actor.__ray_ready__.remote())
    ray.kill(actor)
    return get(actor.crash.remote())


def an_actor_that_restarts() -> Any:
    return get(Actor.options(max_restarts=1).remote().crash.remote())


def a_name_taken() -> Any:
    first = Actor.options(name="taken").remote()
    return Actor.options(name="taken").remote(), first


def an_owner_that_died() -> Any:
    actor = Actor.remote()
    (reference,) = get(actor.own.remote())
    with contextlib.suppress(exceptions.ActorDiedError):
        get(actor.crash.remote())
    return get(reference)


def too_many_calls() -> Any:
    actor = Actor.options(max_pending_calls=1).remote()
    try:
        return [actor.rest.remote() for _ in range(2)]
    finally:
        ray.kill(actor)


def a_cancelled_task() -> Any:
    reference = ray.remote(time.sleep).options(num_cpus=0).remote(60)
    ray.cancel(reference)
    return get(reference)


def too_late() -> Any:
    actor = Actor.remote()
    try:
        return ray.get(actor.rest.remote(), timeout=0)
    finally:
        ray.kill(actor)


def a_cause_that_cannot_travel() -> Any:
    try:
        return get(fail_unreadably.remote())
    except exceptions.RayTaskError as error:
        raise error.cause from None


RAISED: dict[str, Callable[[], Any]] = {
    "RayError": lambda: get(fail.remote(ValueError())),
    "RayTaskError": lambda: get(fail.remote(ValueError())),
    "UnserializableException": a_cause_that_cannot_travel,
    "RaySystemError": lambda: get(ray.put(Unreadable())),
    "RayActorError": an_actor_killed,
    "ActorDiedError": an_actor_killed,
    "ActorUnavailableError": an_actor_that_restarts,
    "ActorUnschedulableError": lambda: get(
        Actor.options(scheduling_strategy=NOWHERE).remote().crash.remote()
    ),
    "TaskUnschedulableError": lambda: get(fail.options(scheduling_strategy=NOWHERE).remote(ValueError())),
    "ActorAlreadyExistsError": a_name_taken,
    "GetTimeoutError": too_late,
    "TaskCancelledError": a_cancelled_task,
    "WorkerCrashedError": lambda: get(ray.remote(os._exit).options(max_retries=0).remote(1)),
    "PendingCallsLimitExceeded": too_many_calls,
    "ObjectLostError": an_owner_that_died,
    "OwnerDiedError": an_owner_that_died,
}
"""Those for which one cluster of one node is enough."""

ELSEWHERE = {
    "ActorHandleNotFoundError": "sessions_test",
    "AuthenticationError": "secret_test",
    "NodeDiedError": "node_death_test",
    "ObjectStoreFullError": "store_limits_test",
    **dict.fromkeys(
        (
            "ObjectReconstructionFailedError",
            "ObjectReconstructionFailedLineageEvictedError",
            "ObjectReconstructionFailedMaxAttemptsExceededError",
        ),
        "lineage_test",
    ),
    **dict.fromkeys(("ActorPlacementGroupRemoved", "TaskPlacementGroupRemoved"), "placement_groups_test"),
    "OutOfDiskError": "spilling_test",
    "OutOfMemoryError": "out_of_memory_test",
    "ReferenceCountingAssertionError": "objects_test",
    "RuntimeEnvSetupError": "runtime environments have tests of their own",
}
NOT_RAISED = {
    # What raises this in Ray is a later part: other languages.
    "CrossLanguageError",
    *(
        "StreamingGeneratorReplayInconsistentError",
        "ObjectFetchTimedOutError",
    ),
    # Compiled graphs and device transport, which are not here.
    *("RayCgraphCapacityExceeded", "RayChannelError", "RayChannelTimeoutError", "RayDirectTransportError"),
    # Ray's own programs never see them: StopIteration, exit_actor() and a clear error of another class come
    # in their places.
    *(
        "ObjectRefStreamEndOfStreamError",
        "AsyncioActorExit",
        "PlasmaObjectNotAvailable",
        "LocalRayletDiedError",
        "RpcError",
    ),
    # For libraries to raise; and about what is allowed here (a reference pickled by itself) or is not there
    # (`internal.free`).
    *("UserCodeException", "OufOfBandObjectRefSerializationException", "ObjectFreedError"),
}


def test_the_tables_have_every_class_once() -> None:
    told = [*RAISED, *ELSEWHERE, *NOT_RAISED]
    assert sorted(told) == sorted(exceptions._exceptions.__all__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RAISED)
def test_each_class_is_raised_where_ray_raises_it(name: str) -> None:
    kind = getattr(exceptions, name)
    with pytest.raises(kind) as caught:
        RAISED[name]()
    assert str(caught.value) and isinstance(caught.value, exceptions.RayError)
    assert kind.__module__ == "ray_mono.exceptions"


def test_an_actors_death_says_which_actor_it_was() -> None:
    actor = Actor.options(name="late", namespace="theatre").remote()
    pid = get(actor.__ray_call__.remote(lambda self: os.getpid()))
    for call in (actor.crash.remote(), actor.crash.remote()):
        with pytest.raises(exceptions.ActorDiedError) as caught:
            get(call)
        *lines, cause = str(caught.value).splitlines()[1:]
        assert lines == [
            "\tclass_name: Actor",
            f"\tactor_id: {actor._actor_id.hex()}",
            f"\tpid: {pid}",
            "\tname: late",
            "\tnamespace: theatre",
            "\tip: 127.0.0.1",
        ]
        assert cause.startswith(f"\tcause: worker pid {pid} exited with code 3; node 127.0.0.1, output in /")
        assert caught.value.actor_id == actor._actor_id.hex() and not caught.value.actor_init_failed


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [GeneratorExit("on purpose"), StopIteration("on purpose"), Own("on purpose")], ids=repr
)
def test_errors_that_are_no_exceptions_are_caught_by_their_type_too(error: BaseException) -> None:
    for call in (fail.remote(error), Actor.remote().fail.remote(error)):
        with pytest.raises(type(error)) as caught:
            get(call)
        assert isinstance(caught.value, exceptions.RayTaskError) and type(caught.value.cause) is type(error)
        assert type(caught.value).__name__ == f"RayTaskError({type(error).__name__})"


def test_what_would_end_whoever_waits_comes_as_a_plain_task_error() -> None:
    with pytest.raises(exceptions.RayTaskError) as caught:
        get(fail.remote(asyncio.CancelledError("there")))
    assert not isinstance(caught.value, asyncio.CancelledError)
    assert isinstance(caught.value.cause, asyncio.CancelledError)


def test_an_argument_that_could_not_be_computed_is_of_its_errors_type_and_shows_both_hops() -> None:
    for failed, kind in (
        (fail.remote(KeyError("first")), KeyError),
        (ray.remote(os._exit).options(max_retries=0).remote(1), exceptions.WorkerCrashedError),
        (Unreadable(), exceptions.RaySystemError),
    ):
        with pytest.raises(kind) as caught:
            get(fail.remote(failed))
        assert isinstance(caught.value, exceptions.RayTaskError) and caught.value.function_name == "fail"
        assert "One of its arguments could not be computed" in str(caught.value)


def test_what_a_failed_result_goes_into_fails_though_no_worker_is_free(
    tmp_path: Path, touch_and_wait: Callable[..., None]
) -> None:
    @ray.remote(num_cpus=0)
    def consume_borrowed(references: list[Any], number: int) -> None:
        get(fail.remote(references[number]))

    class Made:
        def __init__(self, value: Any) -> None: ...

        def method(self) -> None: ...

    def generate(value: Any) -> Any:
        yield value

    def consume(failed: Any) -> list[Any]:
        stream = ray.remote(generate).remote(failed)
        named = ray.remote(Made).options(name="never", num_cpus=2).remote(failed)
        made = ray.remote(Made).options(num_cpus=2).remote(failed)
        return [fail.remote(fail.remote(failed)), next(stream), made.method.remote(), named.method.remote()]

    actor = Actor.remote()
    get(actor.own.remote())
    started = [str(tmp_path / name) for name in "ab"]
    wait = ray.remote(touch_and_wait)
    holding = [wait.remote(path, str(tmp_path / "over")) for path in started]
    wait_until(lambda: all(os.path.exists(path) for path in started), "both CPUs are in use")
    late = wait.options(num_cpus=0).remote(None, str(tmp_path / "fail"))
    failed = ray.remote(num_cpus=0, max_retries=0)(lambda waited: 1 / 0).remote(late)
    consumers = [fail.remote(failed), actor.fail.remote(failed), consume_borrowed.remote([failed], 0)]
    (tmp_path / "fail").touch()
    try:
        for consumer in [*consumers, *consume(failed)]:
            with pytest.raises(
                (ZeroDivisionError, exceptions.ActorDiedError), match="One of its arguments could not"
            ):
                get(consumer)
        # A name is not taken by what was never created.
        with pytest.raises(ValueError, match="no actor named"):
            ray.get_actor("never")
        assert ray.wait(holding, num_returns=2, timeout=0)[0] == []
    finally:
        (tmp_path / "over").touch()
    get(holding)


@ray.remote
def deepest() -> None:
    raise ValueError("deep")


@ray.remote(num_cpus=0)
class Plain:
    def method(self) -> None:
        get(deepest.remote())

    def stream(self) -> Any:
        yield 1
        get(deepest.remote())


@ray.remote(num_cpus=0)
class Later:
    async def method(self) -> None:
        await deepest.remote()

    async def stream(self) -> Any:
        yield 1
        await deepest.remote()


@ray.remote(num_cpus=0)
def through(actor: Any) -> None:
    get(actor.method.remote())


@ray.remote(num_cpus=0)
def through_stream(actor: Any) -> None:
    for reference in actor.stream.options(num_returns="streaming").remote():
        get(reference)


def test_errors_are_called_by_their_public_names_in_workers_that_never_imported_these() -> None:
    interrupt = ray.remote(signal.default_int_handler).options(
        runtime_env={"env_vars": {"WORKER": "of its own"}}
    )
    with pytest.raises(exceptions.TaskCancelledError) as caught:
        get(interrupt.remote(signal.SIGINT, None))
    assert "\nray_mono.exceptions.TaskCancelledError: " in str(caught.value)


@pytest.mark.parametrize("kind", [Plain, Later], ids=["plain", "async"])
@pytest.mark.parametrize("way", [through, through_stream], ids=["method", "generator"])
def test_a_traceback_of_three_hops_has_the_users_frames_alone(kind: Any, way: Any) -> None:
    with pytest.raises(ValueError, match="deep") as caught:
        get(way.remote(kind.remote()))
    text = str(caught.value)
    files = {line.split('"')[1] for line in text.splitlines() if line.strip().startswith("File ")}
    assert files == {__file__}, text
    names = [line.rpartition(" in ")[2] for line in text.splitlines() if line.strip().startswith("File ")]
    middle = "stream" if way is through_stream else "method"
    assert [name for name in names if name != "get"] == [way._function.__name__, middle, "deepest"], text
    assert text in "".join(traceback.format_exception(caught.value))


def test_nothing_is_kept_by_errors_that_were_caught() -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="deep"):
            get(through.remote(Plain.remote()))
    wait_for_nothing_left()

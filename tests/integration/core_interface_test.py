"""core_worker/interface.py's CoreInterface: the same tests over a driver of a real cluster and over local
mode's core.

A member that is added there fails here until it is present in both, and used by a test of this file.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_mono import cloudpickle
from ray_mono._private.local_mode.local_core import LocalCore
from ray_mono.common.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    RaySystemError,
    RayTaskError,
)
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.global_state import GlobalState
from ray_mono.core_worker.interface import CoreInterface
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from ray_mono.core_worker.options import (
    DYNAMIC_RETURNS,
    STREAMING_RETURNS,
    CallRules,
    TaskOptions,
)
from ray_mono.core_worker.process import current
from ray_mono.protobuf import common_pb2, object_manager_pb2
from tests.integration import cores
from tests.integration.cores import (
    WAIT_S,
    Actor,
    AsyncActor,
    Counter,
    a_core,
    add,
    as_this_process,
    count,
    fail,
    interrupt,
    join,
    members,
    submit,
    takes_the_same,
    value_of,
)
from tests.waiting import wait_until

KINDS = ["cluster", "local"]


# ---- the two


@pytest.fixture(scope="module", autouse=True)
def programs_by_value() -> Iterator[None]:
    """Workers need not import them."""
    cloudpickle.register_pickle_by_value(cores)
    yield
    cloudpickle.unregister_pickle_by_value(cores)


@pytest.fixture(scope="module", params=KINDS)
def core(request: pytest.FixtureRequest) -> Iterator[CoreInterface]:
    """One for the tests that leave it as it was."""
    with a_core(request) as made:
        yield made


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest) -> Iterator[CoreInterface]:
    """One for a test that ends it."""
    is_local = request.param == "local"
    made = LocalCore("space", {"CPU": 2}) if is_local else join(request.getfixturevalue("cluster"))
    with as_this_process(made):
        yield made
        made.shutdown()


# ---- every member


MEMBERS = members(CoreInterface)
METHODS = sorted(name for name, member in MEMBERS.items() if not isinstance(member, property))


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_every_member_is_there(core: CoreInterface, name: str) -> None:
    assert hasattr(core, name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_what_the_interface_says(core: CoreInterface, name: str) -> None:
    takes_the_same(getattr(core, name), MEMBERS[name])


@pytest.mark.parametrize("name", sorted(members(GlobalState)))
def test_every_member_of_the_global_state_is_there(core: CoreInterface, name: str) -> None:
    takes_the_same(getattr(core.global_state, name), members(GlobalState)[name])


def test_every_member_is_used_by_these_tests() -> None:
    text = Path(__file__).read_text() + Path(cores.__file__).read_text()
    assert not [name for name in MEMBERS if f".{name}" not in text]
    assert not [name for name in members(GlobalState) if f"state.{name}(" not in text]


# ---- facts


def test_facts_have_their_types(core: CoreInterface) -> None:
    assert core.is_driver is True
    assert (type(core.worker_id), len(core.worker_id)) == (bytes, 28)
    assert (type(core.node_id), len(core.node_id)) == (bytes, 28)
    assert (type(core.job_id), len(core.job_id)) == (bytes, 4)
    assert type(core.node_host) is str and core.node_host
    assert isinstance(core.node_labels, Mapping)
    assert type(core.session_dir) is str
    assert core.namespace == "space"
    assert core.default_actor_lifetime in ("", "non_detached")
    assert isinstance(json.loads(core.runtime_env), dict)
    assert core.task_runtime_env == ""
    assert isinstance(core.context, WorkerContext) and core.placement_groups.row(b"?" * 18) is None
    assert isinstance(core.store_stats(), object_manager_pb2.StoreStats)


def test_the_context_tells_what_runs_on_this_thread(core: CoreInterface) -> None:
    def tell() -> tuple[bool, str, bytes]:
        context = current.require().context
        return context.is_main, context.task_name(), context.task_id()

    assert (
        core.context.is_main and core.context.actor_id() == b"" and core.context.placement_group()[0] == b""
    )
    (ref,) = submit(core, tell, name="told")
    assert value_of(core, ref) == (False, "told", ref.task_id().binary())


# ---- objects


def test_a_value_is_frozen_as_it_was_put(core: CoreInterface) -> None:
    value = [1, {"a": 2}]
    ref = core.put(value)
    value.append(3)
    first, second = core.get([ref, ref], None)
    assert first == second == [1, {"a": 2}] and first is not second


def test_what_does_not_pickle_is_refused(core: CoreInterface) -> None:
    with pytest.raises(TypeError, match=r"value of put\(\)"):
        core.put(threading.Lock())


def test_references_are_counted(core: CoreInterface) -> None:
    before = core.reference_counts()
    inner = core.put("inner")
    outer = core.put([inner])
    assert core.reference_counts() == before + 2
    del inner
    assert core.reference_counts() == before + 2
    (again,) = value_of(core, outer)
    del outer
    assert value_of(core, again) == "inner" and core.reference_counts() == before + 1
    core.reference_dropped(b"x" * 28)
    assert core.reference_counts() == before + 1
    del again
    assert core.reference_counts() == before


def test_a_reference_that_arrives_is_one_more(core: CoreInterface) -> None:
    before = core.reference_counts()
    ref = core.put("value")
    again = core.reference_arrived(ref.binary(), core.owner_address_of(ref))
    assert again == ref
    del ref
    assert value_of(core, again) == "value"
    del again
    assert core.reference_counts() == before


def test_a_reference_that_was_pickled_by_the_user_keeps_its_object(fresh: CoreInterface) -> None:
    ref = fresh.put("value")
    text = pickle.dumps(ref)
    del ref
    assert fresh.reference_counts() == 1
    assert value_of(fresh, pickle.loads(text)) == "value"
    fresh.keep(fresh.put("other"))
    assert fresh.reference_counts() == 2


def test_where_an_object_lies_and_how_large_it_is(core: CoreInterface) -> None:
    ref = core.put("value")
    locations, size_bytes = core.location_of(ref) or ((), None)
    assert list(locations) == [] and size_bytes is not None and 0 < size_bytes < 100


def test_what_is_there_waits_for_nothing(core: CoreInterface) -> None:
    ref = core.put(1)
    explanation = core.explain("object", ref.binary())
    assert (explanation.code, explanation.is_stuck) == ("READY", False)
    assert explanation.links[0].id == ref.hex() and str(core.explain_all()) == "Nothing waits."


def test_wait_names_what_is_ready_in_order(core: CoreInterface) -> None:
    refs = [core.put(number) for number in range(3)]
    assert core.wait(refs, 2, WAIT_S, True) == (refs[:2], refs[2:])
    assert core.wait(refs, 3, 0, False) == (refs, [])


def test_a_future_gets_the_value_or_the_error(core: CoreInterface) -> None:
    assert core.as_future(core.put(1)).result(WAIT_S) == 1
    future = core.as_future(*submit(core, fail, "k"))
    assert isinstance(future, concurrent.futures.Future)
    assert isinstance(future.exception(WAIT_S), KeyError)


def test_a_future_of_what_raised_stop_iteration_can_be_awaited(core: CoreInterface) -> None:
    def stop() -> None:
        raise StopIteration("now")

    assert isinstance(core.as_future(*submit(core, stop)).exception(WAIT_S), RuntimeError)


def test_a_reference_of_another_session_is_refused(core: CoreInterface) -> None:
    theirs = LocalCore("space", {}).put(1)
    for ask in (
        lambda: core.get([theirs], None),
        lambda: core.wait([theirs], 1, None, True),
        lambda: core.cancel(theirs, False, False),
    ):
        with pytest.raises(RaySystemError, match="session that is over"):
            ask()


# ---- tasks


def test_a_task_gets_values_for_references(core: CoreInterface) -> None:
    (first,) = submit(core, add, 1, 2)
    (second,) = submit(core, add, first, core.put(4))
    assert value_of(core, second) == 7


def test_a_task_has_as_many_returns_as_it_says(core: CoreInterface) -> None:
    refs = submit(core, divmod, 7, 2, num_returns=2)
    assert core.get(refs, WAIT_S) == [3, 1]
    assert submit(core, add, 1, 2, num_returns=0) == []


@pytest.mark.parametrize("num_returns", [0, 1, 3, STREAMING_RETURNS, DYNAMIC_RETURNS])
def test_a_template_says_how_many_returns_its_calls_have(core: CoreInterface, num_returns: int) -> None:
    code = core.export(add, "function")
    assert (
        core.task_template(code, TaskOptions(name="add", num_returns=num_returns)).num_returns == num_returns
    )
    assert core.method_template("add", "Counter", num_returns=num_returns).num_returns == num_returns


def test_the_error_of_a_task_is_raised_and_goes_on_to_those_that_need_it(core: CoreInterface) -> None:
    (failed,) = submit(core, fail, "k")
    (after,) = submit(core, add, failed, 1)
    for ref in (failed, after):
        with pytest.raises(KeyError) as caught:
            value_of(core, ref)
        assert isinstance(caught.value, RayTaskError)


def test_what_an_argument_cannot_be_sent_is_told_at_the_call(core: CoreInterface) -> None:
    with pytest.raises(TypeError, match=r"argument number 1 of add\(\)"):
        submit(core, add, 1, threading.Lock())


def test_a_generator_hands_out_its_items(core: CoreInterface) -> None:
    (items,) = submit(core, count, 3, num_returns=STREAMING_RETURNS)
    assert type(items) is ObjectRefGenerator
    assert core.get(list(items), WAIT_S) == [0, 1, 2]
    assert items.is_finished() and value_of(core, items.completed()) is None


def test_the_error_of_a_generator_is_its_last_item(core: CoreInterface) -> None:
    (items,) = submit(core, count, 1, True, num_returns=STREAMING_RETURNS)
    first, last = items
    assert value_of(core, first) == 0
    with pytest.raises(KeyError, match="midway"):
        value_of(core, last)


def test_a_dynamic_generator_is_one_value(core: CoreInterface) -> None:
    (ref,) = submit(core, count, 3, num_returns=DYNAMIC_RETURNS)
    items = value_of(core, ref)
    assert type(items) is DynamicObjectRefGenerator
    assert core.get(list(items), WAIT_S) == [0, 1, 2]


def test_what_is_over_is_cancelled_without_a_word(core: CoreInterface) -> None:
    (ref,) = submit(core, add, 1, 2)
    assert value_of(core, ref) == 3
    for target in (ref, core.put(1)):
        core.cancel(target, False, True)
        core.cancel(target, True, False)
    assert value_of(core, ref) == 3


def test_a_task_asks_whether_it_is_cancelled(core: CoreInterface) -> None:
    def ask() -> bool:
        return current.require().is_task_cancelled()

    (ref,) = submit(core, ask)
    assert value_of(core, ref) is False
    with pytest.raises(RuntimeError, match="this process is a driver"):
        core.is_task_cancelled()


def test_a_function_runs_here_and_on_every_worker(core: CoreInterface) -> None:
    name = "MARKED_BY_CORE_INTERFACE_TEST"

    def mark(worker_info: dict[str, Any]) -> None:
        os.environ[name] = worker_info["worker"].worker_id.hex()

    def marked() -> tuple[str, str]:
        return os.environ[name], current.require().worker_id.hex()

    try:
        core.run_function_on_all_workers(mark)
        assert os.environ[name] == core.worker_id.hex()
        (ref,) = submit(core, marked)
        mark_there, worker_id = value_of(core, ref)
        assert mark_there == worker_id
    finally:
        os.environ.pop(name, None)


def test_spans_and_events_are_taken(core: CoreInterface) -> None:
    core.add_span("span", '{"a": 1}', time.perf_counter())
    core.send_events()
    assert isinstance(list(core.global_state.task_events()), list)


# ---- actors


def test_an_actor_keeps_its_state(core: CoreInterface) -> None:
    actor = Actor(core, Counter, 10)
    assert [actor.call("add", 1), actor.call("add", 2)] == [11, 13]
    assert type(actor.state.actor_id) is bytes
    assert isinstance(actor.state.creation_ref, ObjectRef)
    state = core.global_state
    assert state.actor(actor.state.actor_id).class_name == "Counter"
    assert actor.state.actor_id in [each.actor_id for each in state.actors()]


def test_the_methods_of_an_actor_can_be_generators(core: CoreInterface) -> None:
    (items,) = Actor(core, Counter).submit("items", 3, num_returns=STREAMING_RETURNS)
    assert core.get(list(items), WAIT_S) == [0, 1, 2]


def test_another_handle_speaks_to_the_same_actor(core: CoreInterface) -> None:
    actor = Actor(core, Counter, 1)
    actor.call("add", 1)
    other = core.hold_actor(actor.state.actor_id, actor.state.creation_ref, CallRules())
    assert other.actor_id == actor.state.actor_id
    (ref,) = core.submit_actor_task(other, core.method_template("add", "Counter"), [None, 1])
    assert value_of(core, ref) == 3


def test_an_actor_is_found_by_its_name(core: CoreInterface) -> None:
    actor = Actor(core, Counter, name="one")
    actor.call("add", 1)
    info = core.get_named_actor("one", core.namespace)
    assert (info.actor_id, info.name, info.class_name) == (actor.state.actor_id, "one", "Counter")
    state = core.global_state
    assert "one" in [each.name for each in state.named_actors(False, core.namespace)]
    assert "one" not in [each.name for each in state.named_actors(False, "other")]
    assert "one" in [each.name for each in state.named_actors(True, "other")]
    with pytest.raises(ValueError, match="one"):
        core.get_named_actor("one", "other")
    with pytest.raises(ActorAlreadyExistsError):
        Actor(core, Counter, name="one")
    same = Actor(core, Counter, name="one", get_if_exists=True)
    assert same.state.actor_id == actor.state.actor_id and same.call("add", 1) == 2


def test_a_name_goes_with_its_actor(core: CoreInterface) -> None:
    actor = Actor(core, Counter, name="two")
    actor.call("add", 1)
    core.kill_actor(actor.state.actor_id, True)

    def is_free() -> bool:
        with contextlib.suppress(ValueError):
            core.get_named_actor("two", core.namespace)
            return False
        return True

    wait_until(is_free, "a free name", WAIT_S)


def test_calls_of_an_actor_that_was_killed_say_so(core: CoreInterface) -> None:
    actor = Actor(core, Counter)
    actor.call("add", 1)
    core.kill_actor(actor.state.actor_id, True)
    core.kill_actor(actor.state.actor_id, True)
    with pytest.raises(ActorDiedError, match=r"kill"):
        actor.call("add", 1)


def test_an_actor_that_may_begins_anew_after_a_kill(core: CoreInterface) -> None:
    actor = Actor(core, Counter, max_restarts=1, rules=CallRules(waits_for_restart=True), max_task_retries=-1)
    actor.call("add", 1)
    core.kill_actor(actor.state.actor_id, False)
    (ref,) = actor.submit("add", 5, max_task_retries=-1)
    assert value_of(core, ref) in (5, 6)
    wait_until(lambda: core.global_state.actor(actor.state.actor_id).num_restarts == 1, "a restart", WAIT_S)


def test_an_actor_ends_with_its_last_handle(core: CoreInterface) -> None:
    actor = Actor(core, Counter, name="three")
    actor.call("add", 1)
    actor_id = actor.state.actor_id
    del actor
    core.reference_counts()
    wait_until(lambda: core.global_state.actor(actor_id).state == common_pb2.DEAD, "its end")


def test_an_actor_leaves(core: CoreInterface) -> None:
    actor = Actor(core, Counter)
    with pytest.raises(ActorDiedError, match="exit_actor"):
        actor.call("leave")
    with pytest.raises(ActorDiedError, match="exit_actor"):
        actor.call("add", 1)
    with pytest.raises(TypeError, match="outside of an actor"):
        core.exit_actor()


def test_nobody_leaves_outside_of_an_actor(core: CoreInterface) -> None:
    def leave() -> None:
        current.require().exit_actor()

    (ref,) = submit(core, leave)
    with pytest.raises(TypeError, match="outside of an actor"):
        value_of(core, ref)


def test_an_actors_method_asks_whether_it_is_cancelled(core: CoreInterface) -> None:
    assert Actor(core, Counter).call("is_cancelled") is False
    with pytest.raises(RuntimeError, match="not for async actors"):
        Actor(core, AsyncActor, is_asyncio=True, max_concurrency=2).call("is_cancelled")


# ---- the cluster's tables


def test_keys_and_values(core: CoreInterface) -> None:
    state = core.global_state
    space = b"core interface test"
    assert state.kv_get(space, b"a") is None and not state.kv_exists(space, b"a")
    assert state.kv_put(space, b"a/2", b"two", True) is True
    assert state.kv_put(space, b"a/1", b"one", False) is True
    assert state.kv_put(space, b"b", b"three", False) is True
    assert state.kv_put(space, b"b", b"not taken", False) is False
    assert state.kv_put(space, b"a/1", b"ONE", True) is False
    assert (state.kv_get(space, b"a/1"), state.kv_get(space, b"b")) == (b"ONE", b"three")
    assert state.kv_exists(space, b"b") is True and state.kv_exists(b"another", b"b") is False
    assert state.kv_keys(space, b"a/") == [b"a/1", b"a/2"]
    assert state.kv_keys(space, b"") == [b"a/1", b"a/2", b"b"]
    assert state.kv_delete(space, b"a/", False) == 0
    assert state.kv_delete(space, b"a/", True) == 2
    assert state.kv_delete(space, b"b", False) == 1
    assert state.kv_keys(space, b"") == [] and state.kv_delete(space, b"", True) == 0


def test_rows_of_the_tables_name_this_process(core: CoreInterface) -> None:
    state = core.global_state
    assert core.node_id in [node.node_id for node in state.nodes()]
    assert core.job_id in [job.job_id for job in state.jobs()]
    for collect in (False, True):
        (node,) = [each for each in state.resources(collect) if each.node_id == core.node_id]
        assert node.total.amounts["CPU"] > 0
    assert state.cluster_info().version


# ---- the end


def test_steps_run_in_the_order_in_which_they_were_named_and_once(fresh: CoreInterface) -> None:
    ran: list[int] = []

    def fails() -> None:
        ran.append(2)
        raise KeyError("a step")

    ref = fresh.put(4)
    # They run while the core is still there.
    for step in (
        lambda: ran.append(1),
        fails,
        lambda: ran.append(3),
        lambda: ran.extend(fresh.get([ref], None)),
    ):
        fresh.at_shutdown(step)
    assert ran == []
    fresh.shutdown()
    fresh.shutdown()
    assert ran == [1, 2, 3, 4]


def test_a_ctrl_c_while_it_leaves_is_raised_at_the_end(fresh: CoreInterface) -> None:
    ran: list[int] = []

    fresh.at_shutdown(interrupt)
    fresh.at_shutdown(lambda: ran.append(1))
    with pytest.raises(KeyboardInterrupt):
        fresh.shutdown()
    assert ran == [1]


def test_references_of_a_session_that_is_over_are_not_sent(fresh: CoreInterface) -> None:
    ref = fresh.put(1)
    fresh.shutdown()
    with pytest.raises(RaySystemError, match="session that is over"):
        pickle.dumps(ref)


def test_a_fork_abandons_everything_and_the_parent_goes_on(fresh: CoreInterface) -> None:
    ref = fresh.put("value")
    child = os.fork()
    if child == 0:
        # Abandoned by the handler of the fork, and again: nothing is said, nothing waits.
        status = 1
        with contextlib.suppress(BaseException):
            fresh.abandon()
            status = 0 if current.core is None else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert value_of(fresh, ref) == "value" and fresh.reference_counts() == 1
    (made,) = submit(fresh, add, 1, 2)
    assert value_of(fresh, made) == 3

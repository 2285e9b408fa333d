"""Programs that wait, and what `explain` says of them: one table. Each has a session of its own, which ends
with whatever waits there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_mono as ray
from ray_mono.util import explain, placement_group, remove_placement_group
from ray_mono.util.placement_group import PlacementGroup
from ray_mono.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)
from tests.integration.bounded import get
from tests.integration.explained import KEPT, MOVES, OPEN, STUCK, Outlook, expect_program_explained
from tests.waiting import wait_until

NUM_CPUS = 4


@pytest.fixture(autouse=True)
def session(shared_base: Path, by_value: None) -> Iterator[None]:
    ray.init(address="local", num_cpus=NUM_CPUS, resources={"A": 1, "B": 1}, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
def never(*args: Any) -> int:
    signal.pause()
    return 1


@ray.remote(num_cpus=0)
def outer(**options: Any) -> Any:
    return ray.get(inner.options(**options).remote())


@ray.remote(num_cpus=0)
def inner() -> int:
    return 1


@ray.remote(num_cpus=0)
def ask(refs: list[Any]) -> Any:
    return ray.get(refs)


@ray.remote(num_cpus=0)
def ask_for_one(refs: list[Any]) -> Any:
    return ray.wait(refs)


@ray.remote(num_cpus=0)
def wait_for(group: PlacementGroup) -> bool:
    return group.wait(60)


@ray.remote(num_cpus=0)
def told(refs: list[Any]) -> str:
    return explain(refs[0]).code


@ray.remote(num_cpus=0)
def items() -> Iterator[int]:
    yield 1
    signal.pause()


@ray.remote(num_cpus=0)
class Thing:
    def __init__(self, *args: Any) -> None:
        self.other: Any = None

    def know(self, other: Any) -> None:
        self.other = other

    def answer(self) -> Any:
        return ray.get(self.other.answer.remote())

    def work(self) -> None:
        signal.pause()

    def rest(self) -> None:
        pass

    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class Slow:
    def __init__(self, refs: list[Any] | None = None) -> None:
        if refs is None:
            signal.pause()
        ray.get(refs)

    def rest(self) -> None:
        pass


@ray.remote(num_cpus=0)
class Async:
    async def ask(self, refs: list[Any]) -> Any:
        return await refs[0]


Program = Callable[[], Any]


def with_a(**options: Any) -> Any:
    return never.options(resources={"A": 1}, **options).remote()


def of_gpus() -> Any:
    return never.options(num_gpus=1).remote()


def held_by_an_actor() -> Any:
    holder = Thing.options(resources={"A": 1}, name="holder", lifetime="detached").remote()
    get(holder.rest.remote())
    return with_a()


def in_a_circle(number: int) -> Any:
    things = [Thing.options(name=f"thing {each}", lifetime="detached").remote() for each in range(number)]
    get([thing.know.remote(things[place - 1]) for place, thing in enumerate(things)])
    return things[0].answer.remote()


def behind_another() -> Any:
    thing = Thing.options(name="busy", lifetime="detached").remote()
    thing.work.remote()
    return thing.rest.remote()


def call_of(actor: Any) -> Any:
    """Keeps it alive as well."""
    KEPT.append(actor)
    return actor.rest.remote()


def in_group(group: PlacementGroup, **options: Any) -> Any:
    KEPT.append(group)
    return never.options(
        scheduling_strategy=PlacementGroupSchedulingStrategy(group), num_cpus=1, **options
    ).remote()


def in_a_full_bundle() -> Any:
    group = placement_group([{"CPU": 1}])
    in_group(group)
    return in_group(group)


def a_removed_group() -> PlacementGroup:
    group = placement_group([{"CPU": 1}])
    assert group.wait(30)
    remove_placement_group(group)
    return group


def a_dead_actor() -> Any:
    thing = Thing.remote()
    get(thing.rest.remote())
    ray.kill(thing)
    return thing


def a_group_beside_an_actor() -> PlacementGroup:
    held_by_an_actor()
    return placement_group([{"A": 1}])


def on_a_node_that_is_not_there() -> Any:
    strategy = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)
    return never.options(scheduling_strategy=strategy).remote()


def next_item() -> Any:
    generator = items.remote()
    KEPT.append(generator)
    get(next(generator))
    return generator


def all_threads_busy() -> Any:
    thing = Thing.options(max_concurrency=2).remote()
    KEPT.append(thing)
    for _ in range(2):
        thing.work.remote()
    return thing.rest.remote()


def a_restart_that_hangs() -> Any:
    thing = Restarts.options(max_restarts=-1).remote()
    KEPT.append(thing)
    os.kill(get(thing.pid.remote()), signal.SIGKILL)
    return thing


@ray.remote(num_cpus=0)
class Restarts:
    def __init__(self) -> None:
        if ray.get_runtime_context().was_current_actor_reconstructed:
            signal.pause()

    def pid(self) -> int:
        return os.getpid()


TOLD: dict[str, tuple[Program, str, Outlook, tuple[str, ...]]] = {
    "a task that runs": (lambda: never.remote(), "RUNNING", MOVES, ("never() runs on worker",)),
    "a value that is there": (lambda: ray.put(1), "READY", MOVES, ("is there",)),
    "a resource that a task has": (
        lambda: (with_a(), with_a())[1],
        "RESOURCES",
        MOVES,
        ("never() needs {A: 1}; node ", " has {A: 0, ", "never() runs on"),
    ),
    "a resource that an actor has": (
        held_by_an_actor,
        "RESOURCES",
        OPEN,
        ("actor Thing, which is detached, holds what it has", "end that actor"),
    ),
    "an actor that needs a value": (lambda: Thing.remote(of_gpus()), "INFEASIBLE", STUCK, ("1 argument",)),
    "what no node has": (of_gpus, "INFEASIBLE", STUCK, ("needs {GPU: 1}", "start a node with {GPU: 1}")),
    "more than any node has": (
        lambda: never.options(num_cpus=100).remote(),
        "INFEASIBLE",
        STUCK,
        ("its only node has {A: 1, B: 1, CPU: 4}",),
    ),
    "a label that no node has": (
        lambda: never.options(label_selector={"zone": "mars"}).remote(),
        "INFEASIBLE",
        STUCK,
        ("zone = mars",),
    ),
    "an argument": (lambda: never.remote(never.remote()), "RUNNING", MOVES, ("waits for 1 argument",)),
    "an argument of an argument": (
        lambda: never.remote(1, never.remote(of_gpus())),
        "INFEASIBLE",
        STUCK,
        ("waits for 1 argument",),
    ),
    "one of several arguments": (
        lambda: never.remote(inner.remote(), of_gpus(), never.remote()),
        "INFEASIBLE",
        STUCK,
        ("waits for 2 arguments",),
    ),
    "a nested task that needs what the outer one has": (
        lambda: outer.options(resources={"A": 1}).remote(resources={"A": 1}),
        "DEADLOCK",
        STUCK,
        ("inner() and outer() wait for each other",),
    ),
    "a nested task that no node can run": (
        lambda: outer.remote(num_gpus=1),
        "INFEASIBLE",
        STUCK,
        ("outer() on worker", "waits in its code for 1 object"),
    ),
    "an actor that waits for itself": (
        lambda: in_a_circle(1),
        "DEADLOCK",
        STUCK,
        ("a deadlock, in which calls of Thing.answer() of actor",),
    ),
    "two actors that wait for each other": (lambda: in_a_circle(2), "DEADLOCK", STUCK, ("for each other",)),
    "three actors in a circle": (lambda: in_a_circle(3), "DEADLOCK", STUCK, (" and ", "for each other")),
    "a call behind another": (behind_another, "RUNNING", MOVES, ("is behind Thing.work() of actor",)),
    "a call where all threads are busy": (all_threads_busy, "RUNNING", MOVES, ("is behind Thing.work()",)),
    "a call of an actor that no node can hold": (
        lambda: call_of(Thing.options(num_gpus=1).remote()),
        "INFEASIBLE",
        STUCK,
        ("Thing.rest() of actor", "Actor Thing needs {GPU: 1}"),
    ),
    "an actor that no node can hold": (
        lambda: Thing.options(num_gpus=1).remote(),
        "INFEASIBLE",
        STUCK,
        ("Actor Thing needs {GPU: 1}",),
    ),
    "an actor beside a task": (
        lambda: (with_a(), Thing.options(resources={"A": 1}).remote())[1],
        "RESOURCES",
        MOVES,
        ("actor Thing", "needs {A: 1}", "never() runs on"),
    ),
    "a constructor that runs": (
        lambda: call_of(Slow.remote()),
        "RUNNING",
        MOVES,
        ("is being constructed", "Slow.__init__() of actor"),
    ),
    "a constructor that waits": (
        lambda: call_of(Slow.remote([of_gpus()])),
        "INFEASIBLE",
        STUCK,
        ("Slow.__init__() of actor", "waits in its code for 1 object"),
    ),
    "an argument of a constructor": (
        lambda: call_of(Thing.remote(of_gpus())),
        "INFEASIBLE",
        STUCK,
        ("waits for its actor", "waits for 1 argument"),
    ),
    "an actor that hangs as it restarts": (
        a_restart_that_hangs,
        "RUNNING",
        MOVES,
        ("is being constructed", "Restarts.__init__()"),
    ),
    "an actor that is dead": (a_dead_actor, "ACTOR_DEAD", STUCK, ("is dead: killed by kill()",)),
    "an actor that lives": (lambda: Thing.remote(), "READY", MOVES, ("is alive; it has no calls",)),
    "a get of several": (
        lambda: ask.remote([never.remote(), of_gpus()]),
        "INFEASIBLE",
        STUCK,
        ("2 objects",),
    ),
    "a wait": (lambda: ask_for_one.remote([of_gpus()]), "INFEASIBLE", STUCK, ("waits in its code",)),
    "an await": (
        lambda: (KEPT.append(actor := Async.remote()), actor.ask.remote([of_gpus()]))[1],
        "INFEASIBLE",
        STUCK,
        ("Async.ask() of actor",),
    ),
    "the next item of a generator": (next_item, "RUNNING", MOVES, ("items() runs on",)),
    "a placement group larger than the cluster": (
        lambda: placement_group([{"CPU": 3}, {"CPU": 3}]),
        "INFEASIBLE",
        STUCK,
        ("could not hold if nothing else ran there", "make its bundles smaller"),
    ),
    "a placement group beside an actor": (
        a_group_beside_an_actor,
        "RESOURCES",
        OPEN,
        ("which is in use", "actor Thing, which is detached, holds"),
    ),
    "a placement group that is removed": (
        a_removed_group,
        "PLACEMENT_GROUP_REMOVED",
        STUCK,
        ("was removed: by remove_placement_group()",),
    ),
    "ready() of a placement group without a place": (
        lambda: placement_group([{"CPU": 100}]).ready(),
        "INFEASIBLE",
        STUCK,
        ("waits for placement group ", "needs {CPU: 100} by PACK", "the only node of the cluster"),
    ),
    "a task that waits for a placement group": (
        lambda: wait_for.remote(placement_group([{"CPU": 100}])),
        "INFEASIBLE",
        STUCK,
        ("wait_for() on worker ", "waits in its code for placement group ", "needs {CPU: 100} by PACK"),
    ),
    "a task whose placement group has no place": (
        lambda: in_group(placement_group([{"CPU": 100}])),
        "INFEASIBLE",
        STUCK,
        ("which is not placed yet", "by PACK"),
    ),
    "a task whose bundle is in use": (
        in_a_full_bundle,
        "RESOURCES",
        MOVES,
        ("in placement group", "which is in use there", "never() runs on"),
    ),
    "a node that is not there": (
        on_a_node_that_is_not_there,
        "NO_SUCH_NODE",
        STUCK,
        ("abababab", "is not in this cluster"),
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_waits_is_explained(name: str) -> None:
    expect_program_explained(*TOLD[name])
    KEPT.clear()


def test_a_borrower_is_told_what_the_owner_knows() -> None:
    assert get(told.remote([of_gpus()])) == "INFEASIBLE"


def test_a_process_that_stands_still_is_named() -> None:
    thing = Thing.remote()
    pid = get(thing.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        explanation = explain(thing.rest.remote())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert explanation.code == "STOPPED" and explanation.outlook is STUCK
    told = "cannot be asked: a signal or a debugger has stopped it. To unblock it: let it go on (kill -CONT"
    assert f"{told} {pid}), or kill it." in str(explanation)


def test_what_a_shortage_lacks_is_told_in_numbers() -> None:
    explanation = explain(of_gpus())
    (node,) = explanation.links[-1].shortages
    assert (node.missing, node.available, node.total) == ({"GPU": 1.0}, {}, {})
    assert node.node_id == ray.get_runtime_context().get_node_id()


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(TypeError, match="must be an ObjectRef, .* got 'what'"):
        explain("what")


def test_all_that_waits_is_listed_by_why(tmp_path: Path) -> None:
    KEPT.extend([held_by_an_actor(), with_a(), *(of_gpus() for _ in range(3)), never.remote(of_gpus())])
    KEPT.extend([Thing.options(num_gpus=1).remote(), placement_group([{"CPU": 100}]), never.remote()])

    def found() -> dict[str, list[int]]:
        groups = ray.explain().by_code
        return {code: [group.count for group in alike] for code, alike in groups.items()}

    expected = {"INFEASIBLE": [4, 1, 1, 1], "RESOURCES": [2]}
    wait_until(lambda: found() == expected, str(expected))
    told = str(ray.explain())
    assert told.startswith("INFEASIBLE: 7\n  4 × never() needs {GPU: 1}")
    assert "RESOURCES: 2\n  2 × never() needs {A: 1}" in told
    assert at_a_shell().stdout == f"{told}\n"
    assert set(json.loads(at_a_shell("--json").stdout)["waiting"]) == set(expected)
    KEPT.clear()


def test_where_nothing_waits_that_is_said() -> None:
    assert str(ray.explain()) == "Nothing waits." and not ray.explain().groups


# ---- at a shell


def at_a_shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_mono.scripts", "explain", *arguments]
    address = ["--address", ray.get_runtime_context().gcs_address]
    return subprocess.run([*command, *address], capture_output=True, text=True, timeout=60)


@ray.remote(num_cpus=0)
def make_inside() -> str:
    KEPT.append(of_gpus())
    return KEPT[-1].hex()


def test_an_id_is_explained_whoever_owns_it() -> None:
    of_driver, of_worker = of_gpus(), get(make_inside.remote())
    for id_ in (of_driver.hex(), of_driver.task_id().hex(), of_worker):
        told = at_a_shell(id_)
        assert told.returncode == 0 and "needs {GPU: 1}" in told.stdout, told.stderr
    assert all("needs {GPU: 1}" in at_a_shell(told).stdout for told in (repr(of_driver), of_worker[:8]))
    told = at_a_shell(of_worker, "--json")
    assert json.loads(told.stdout)["code"] == "INFEASIBLE"


def test_an_id_that_nobody_knows_is_said_to_be_unknown() -> None:
    for kind, end, size in (("object", "freed", 28), ("task", "over", 24)):
        told = at_a_shell("ab" * size)
        assert told.returncode == 1 and f"knows {kind} {'ab' * size}: it is {end}, or of a" in told.stdout
        assert f"(its length is that of ids of {kind}s)" in told.stdout
    for kind, id_ in {
        "node": ray.get_runtime_context().get_node_id(),
        "worker process": ray.get_runtime_context().get_worker_id(),
    }.items():
        told = at_a_shell(id_)
        assert told.returncode == 1 and f"{id_} is the id of a {kind}, and not of an object" in told.stdout
    told = at_a_shell("abc")
    assert told.returncode == 2 and "ID must be an id in hex" in told.stderr and "'abc'" in told.stderr
    assert "abababab: none does" in at_a_shell("ab" * 5).stderr


def test_who_interrupts_a_get_is_told_what_it_waited_for(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, threading, ray_mono as ray\n"
        "ray.init(num_cpus=1)\n"
        "ref = ray.remote(num_gpus=1)(lambda: 1).remote()\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "ray.get(ref)\n"
    )
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert "Interrupted while it waited: object" in ended.stderr and "needs {CPU: 1, GPU: 1}" in ended.stderr
    assert "KeyboardInterrupt" in ended.stderr and ended.returncode != 0

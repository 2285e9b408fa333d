"""The scenes with actors and with ends: of workers, actors and tasks. See scenes.py."""

from __future__ import annotations

import os
from typing import Any

import ray_mono as ray
from tests.stress import user_code
from tests.stress.program import Caller, check, get
from tests.stress.scenes import scene


@scene
def calls_one_by_one(caller: Caller) -> None:
    actor = caller.actor()
    for _ in range(caller.rng.randrange(5, 100)):
        ref, number = caller.call(actor)
        caller.get_all([ref], [(number, 0)], f"a call to actor {actor.name}")


@scene
def calls_in_a_burst(caller: Caller) -> None:
    made = []
    for actor in [caller.actor() for _ in range(caller.rng.randrange(1, 6))]:
        made += [caller.call(actor) for _ in range(caller.rng.randrange(20, 300))]
    caller.rng.shuffle(made)
    caller.get_all(
        [ref for ref, _ in made], [(number, 0) for _, number in made], "a burst of calls to actors"
    )


@scene
def calls_with_arguments(caller: Caller) -> None:
    made = []
    for index in range(caller.rng.randrange(3, 20)):
        value = user_code.pattern(index, caller.size_bytes())
        given: Any = value if index % 3 else ray.put(value)
        if index % 5 == 4:
            # Not there yet: it holds back the calls behind it.
            given = user_code.make.remote(index, len(value) * 8)
        made.append((*caller.call(caller.actor(), payload=given), user_code.checksum(value)))
    caller.get_all(
        [ref for ref, _, _ in made], [(number, due) for _, number, due in made], "calls with arguments"
    )


@scene
def calls_by_name(caller: Caller) -> None:
    named = [
        actor
        for index, actor in enumerate(caller.program.actors)
        if "name" in user_code.KINDS[index % len(user_code.KINDS)][1]
    ]
    if not named:
        return
    actor = caller.rng.choice(named)
    get(actor.handle.told.remote(), f"actor {actor.name}, which must live to be found")
    made = [caller.call(actor, handle=ray.get_actor(actor.name)) for _ in range(caller.rng.randrange(1, 20))]
    caller.get_all(
        [ref for ref, _ in made], [(number, 0) for _, number in made], f"calls to {actor.name} by name"
    )


@scene
def tasks_that_call_an_actor(caller: Caller) -> None:
    refs, counts = [], []
    for _ in range(caller.rng.randrange(1, 5)):
        actor, count = caller.actor(), caller.rng.randrange(1, 30)
        caller.program.expect(actor, count)
        refs.append(user_code.call_for.remote(actor.handle, caller.program.new_name(), count))
        counts.append(count)
    caller.get_all(refs, counts, "tasks that call actors")


@scene
def references_passed_between_actors(caller: Caller) -> None:
    source, target = caller.actor(), caller.actor()
    key = caller.program.new_name()
    value = user_code.pattern(11, caller.size_bytes())
    box = [ray.put(value) if caller.rng.random() < 0.5 else user_code.make.remote(11, len(value) * 8)]
    get(source.handle.keep.remote(key, box), "an actor that takes a reference")
    box.clear()
    due = user_code.checksum(value)
    if source is target:
        caller.get_all([source.handle.read.remote(key)], [due], "an actor that reads what it keeps")
    else:
        caller.get_all(
            [user_code.pass_on.remote(source.handle, target.handle, key)], [due], "a task between two actors"
        )
        get(source.handle.drop.remote(key), "an actor that drops a reference")
        # Its first borrower let go of it.
        caller.get_all([target.handle.read.remote(key)], [due], "an actor that reads what another one lent")
    get(target.handle.drop.remote(key), "an actor that drops a reference")


# ---------------------------------------------------------------- ends


@scene
def a_worker_that_is_killed(caller: Caller) -> None:
    with caller.program.workers_lock:
        before = [user_code.add_one.remote(number) for number in range(20)]
        dying = [
            user_code.die_once.remote(caller.marker(), number) for number in range(caller.rng.randrange(1, 3))
        ]
        after = [user_code.add_one.remote(number) for number in range(20)]
        caller.get_all(dying, range(len(dying)), "tasks whose worker was killed once")
        caller.get_all(before + after, [*range(1, 21)] * 2, "tasks around a worker that was killed")


@scene
def an_actor_that_is_killed(caller: Caller) -> None:
    mortal = ray.remote(user_code.Mortal).options(num_cpus=0, max_restarts=1, max_task_retries=2).remote()
    count = caller.rng.randrange(1, 30)
    refs = [mortal.add_one.remote(number) for number in range(count)]
    refs.append(mortal.die_once.remote(caller.marker(), 7))
    refs += [mortal.add_one.remote(number) for number in range(count)]
    caller.get_all(
        refs, [*range(1, count + 1), 7, *range(1, count + 1)], "calls to an actor that was killed once"
    )


@scene
def actors_that_come_and_go(caller: Caller) -> None:
    way = caller.rng.choice(["handle", "kill", "terminate"])
    # What is behind __ray_terminate__ does not run where calls run one after another.
    actor = user_code.start_actor(0 if way == "terminate" else caller.rng.randrange(3), "")
    count = caller.rng.randrange(1, 30)
    name = caller.program.new_name()
    refs = [actor.add.remote(name, number) for number in range(count)]
    if way == "handle":
        del actor
        caller.get_all(
            refs, [(number, 0) for number in range(count)], "calls to an actor whose handle is gone"
        )
        return
    caller.get_all(refs, [(number, 0) for number in range(count)], "calls to a new actor")
    if way == "kill":
        ray.kill(actor)
    else:
        actor.__ray_terminate__.remote()
    try:
        get(actor.told.remote(), "a call to an actor that ended")
        check(False, f"an actor answered after its end by {way}")
    except ray.exceptions.RayActorError:
        pass


@scene
def a_shared_actor(caller: Caller) -> None:
    """All drivers race for its name, and it outlives them."""
    hub = (
        ray.remote(user_code.Async)
        .options(name="hub", namespace="stress", lifetime="detached", get_if_exists=True, num_cpus=0)
        .remote()
    )
    name, count = caller.program.new_name(), caller.rng.randrange(1, 50)
    refs = [hub.add.remote(name, number, None, count) for number in range(count)]
    caller.get_all(refs, [(number, 0) for number in range(count)], "calls to the shared actor")
    key = f"box of {caller.program.seed} {os.getpid()} {caller.name}"
    get(
        hub.keep.remote(key, [ray.put(user_code.pattern(1, 200_000))]),
        "the shared actor, which takes a reference",
    )
    get(hub.drop.remote(key), "the shared actor, which drops a reference")


@scene
def tasks_that_are_cancelled(caller: Caller) -> None:
    """At a random moment of their lives. Each has its value or the error, and nothing else is struck."""
    rng = caller.rng
    actor = user_code.start_actor(rng.randrange(3), "")
    refs = []
    for number in range(rng.randrange(5, 40)):
        kind = rng.random()
        if kind < 0.5:
            refs.append(user_code.hold.remote(rng.choice([0.0, 0.001, 0.02]), number))
        elif kind < 0.6:
            refs.append(user_code.count_leaves.remote(1, 3))
        else:
            refs.append(actor.add.remote("anybody", number))
    cancelled = set(rng.sample(range(len(refs)), rng.randrange(1, len(refs))))
    for index in sorted(cancelled):
        ray.cancel(refs[index])
        if rng.random() < 0.3:
            ray.wait(refs, num_returns=rng.randrange(1, len(refs) + 1), timeout=0.01)
    for index, ref in enumerate(refs):
        try:
            get(ref, "a task that may have been cancelled")
        except ray.exceptions.TaskCancelledError:
            check(index in cancelled, "a task was cancelled that nobody cancelled")
    caller.program.count(len(refs))
    caller.get_all(
        [user_code.add_one.remote(number) for number in range(20)],
        range(1, 21),
        "tasks after others were cancelled",
    )

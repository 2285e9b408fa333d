"""What a process keeps of the actors that it calls."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_mono.common.exceptions import ActorDiedError, TaskCancelledError
from ray_mono.core_worker import serialization
from ray_mono.core_worker.actor_submitter import ActorSubmitter
from tests.core_worker.called_actor import Call, CalledActor


def test_an_actor_that_only_its_name_led_to_is_forgotten_with_its_handle() -> None:
    core: Any = SimpleNamespace()
    submitter = ActorSubmitter(core)
    handle = submitter.actor(b"an actor")
    assert submitter.actor(b"an actor") is handle
    del handle
    assert not len(submitter.actors)


def running_actor() -> CalledActor:
    """Alive, and its caller knows where."""
    world = CalledActor()
    world.submitter.watch(world.actor)
    world.gcs.start_actor()
    world.gcs.answer()
    return world


def outcome(world: CalledActor, call: Call) -> Any:
    entry = world.memory_store.get(call.task.return_ids[0])
    assert entry is not None and entry.ready
    return (
        entry.data
        if entry.metadata == serialization.PLAIN
        else serialization.deserialize(entry.metadata, entry.data)
    )


def lose_actor(world: CalledActor, will_restart: bool) -> None:
    """The caller hears of it from the GCS, before it has read what the process had answered."""
    world.submitter.watch(world.actor)
    world.die(will_restart)
    world.gcs.answer()


def test_an_answer_that_the_news_of_the_actors_death_overtook_changes_nothing() -> None:
    world = running_actor()
    call = world.submit(max_retries=0, has_argument=False)
    (line,) = world.lines
    world.run(line)
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, call), ActorDiedError)
    line.deliver()
    assert isinstance(outcome(world, call), ActorDiedError)


def test_an_answer_that_the_news_of_a_restart_overtook_does_not_end_a_call_that_is_sent_again() -> None:
    world = running_actor()
    call = world.submit(max_retries=1, has_argument=False)
    (line,) = world.lines
    world.run(line)
    lose_actor(world, will_restart=True)
    line.deliver()
    world.gcs.start_actor()
    world.gcs.answer()
    world.run(world.lines[-1])
    world.lines[-1].deliver()
    assert outcome(world, call) == b"1, run 2"
    assert not world.tasks.pending and not world.actor.queue


def test_a_cancelled_call_of_an_actor_that_dies_was_cancelled() -> None:
    world = running_actor()
    call = world.submit(max_retries=1, has_argument=False)
    world.cancel(call)
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, call), TaskCancelledError)


def unordered_actor() -> tuple[CalledActor, Call]:
    """One whose calls may overtake each other, and a call that waits for its argument."""
    world = running_actor()
    world.actor.is_unordered = True
    return world, world.submit(max_retries=0, has_argument=True)


def test_a_call_that_waits_for_its_argument_holds_nothing_back_where_order_does_not_matter() -> None:
    world, waiting = unordered_actor()
    overtakes = world.submit(max_retries=0, has_argument=False)
    (line,) = world.lines
    world.run(line)
    line.deliver()
    assert outcome(world, overtakes) == b"2, run 1" and list(world.actor.unresolved.values()) == [
        waiting.task
    ]


def test_a_call_that_waits_outside_of_the_queue_fails_with_its_actor() -> None:
    world, waiting = unordered_actor()
    lose_actor(world, will_restart=False)
    assert isinstance(outcome(world, waiting), ActorDiedError)
    assert not world.actor.unresolved and not world.tasks.pending


def test_a_call_that_waits_outside_of_the_queue_can_be_cancelled() -> None:
    world, waiting = unordered_actor()
    world.cancel(waiting)
    assert isinstance(outcome(world, waiting), TaskCancelledError)
    assert not world.actor.unresolved and not world.tasks.pending

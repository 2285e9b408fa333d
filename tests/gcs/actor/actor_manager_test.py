"""The actor manager, one event at a time, with its invariants recounted after each."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ray_mono.gcs.actor.actor_effects import (
    ActorNameTaken,
    GoOnCreating,
    Place,
    RowChanged,
    RowForgotten,
    StopPlacing,
)
from ray_mono.gcs.actor.actor_state import (
    TRANSITIONS,
    Actor,
    ActorEvent,
    ActorLife,
    Death,
    DeathKind,
    IllegalActorTransition,
    next_state,
)
from tests.gcs.actor.actor_scene import (
    CRASH,
    JOB,
    NEXT_WORKER,
    NODE,
    OTHER_NODE,
    OWNER,
    OWNER_NODE,
    WORKER,
    Scene,
    actor_id,
    kinds,
    registration,
)

# ---- the table


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ActorLife, ActorEvent)))
def test_every_pair_of_state_and_event_is_a_transition_or_raises(state: ActorLife, event: ActorEvent) -> None:
    actor = Actor(registration(), state, version=3, start_time_s=1.0, story=("registered", state.name))
    if (state, event) in TRANSITIONS:
        assert next_state(actor, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(
            IllegalActorTransition, match=f"{state.name}.*{event.name}.*registered → {state.name}"
        ):
            next_state(actor, event)


def test_the_table_lets_nobody_rise_from_the_dead_and_every_other_state_end() -> None:
    for state in ActorLife:
        events = {event for from_state, event in TRANSITIONS if from_state is state}
        assert (ActorEvent.ENDED in events) == (state is not ActorLife.DEAD)
    assert not [event for state, event in TRANSITIONS if state is ActorLife.DEAD]


def test_an_illegal_transition_changes_nothing() -> None:
    scene = Scene()
    before = scene.alive()
    with pytest.raises(IllegalActorTransition):
        scene.do("created", before.actor_id, WORKER)
    scene.manager.check_invariants()
    assert scene.actor() is before


# ---- registration and placement


def test_a_registered_actor_is_stored_and_then_placed() -> None:
    scene = Scene()
    effects = scene.do("register", registration(), now_s=7.0)
    assert effects == [RowChanged(scene.actor()), Place(actor_id(1), incarnation=0, previous_deaths=0)]
    assert scene.actor().state is ActorLife.PENDING_CREATION
    assert (scene.actor().version, scene.actor().start_time_s) == (1, 7.0)


def test_registering_an_actor_again_changes_nothing() -> None:
    scene = Scene()
    before = scene.pending()
    assert scene.do("register", registration(), now_s=9.0) == []
    assert scene.actor() is before


def test_an_actor_that_awaits_its_arguments_has_its_name_and_is_placed_once_when_they_are_there() -> None:
    scene = Scene()
    assert scene.unready(name="a") == scene.manager.named("space", "a")
    assert (scene.actor().state, scene.actor().version) == (ActorLife.DEPENDENCIES_UNREADY, 1)
    with pytest.raises(ActorNameTaken):
        scene.do("register", registration(2, name="a"), now_s=2.0)
    assert scene.do("register", registration(name="a"), now_s=2.0, awaits_arguments=True) == []
    assert scene.do("leased", actor_id(1), 0, NODE, WORKER, now_s=1.0) == []
    effects = scene.do("arguments_came", actor_id(1))
    assert effects == [RowChanged(scene.actor()), Place(actor_id(1), incarnation=0, previous_deaths=0)]
    assert (scene.actor().state, scene.actor().version) == (ActorLife.PENDING_CREATION, 2)
    assert scene.do("arguments_came", actor_id(1)) == []


@pytest.mark.parametrize(
    ("event", "args"),
    [
        ("argument_failed", (actor_id(1), Death(DeathKind.CREATION_FAILED, "an argument failed"), 2.0)),
        ("kill", (actor_id(1), True, True, 2.0)),
        ("out_of_scope", (actor_id(1), 2.0)),
        ("worker_died", (OWNER, CRASH, 2.0)),
        ("node_died", (OWNER_NODE, Death(DeathKind.NODE_DIED, "its node died"), 2.0)),
        ("job_finished", (JOB, 2.0)),
    ],
)
def test_the_end_of_an_actor_that_awaits_its_arguments_is_for_good(
    event: str, args: tuple[object, ...]
) -> None:
    scene = Scene()
    scene.unready(name="a", max_restarts=-1)
    assert kinds(scene.do(event, *args)) == [RowChanged]
    assert scene.actor().state is ActorLife.DEAD and scene.manager.named("space", "a") is None
    assert scene.do("arguments_came", actor_id(1)) == []
    assert scene.do(event, *args) == []


def test_a_kill_that_allows_a_restart_leaves_an_actor_that_awaits_its_arguments_alone() -> None:
    scene = Scene()
    scene.unready(name="a", max_restarts=1)
    assert scene.do("kill", actor_id(1), True, False, 2.0) == []
    assert kinds(scene.do("arguments_came", actor_id(1))) == [RowChanged, Place]


def test_a_detached_actor_dies_with_its_owner_only_while_it_awaits_its_arguments() -> None:
    scene = Scene()
    scene.unready(number=1, is_detached=True)
    scene.unready(number=2, is_detached=True)
    scene.do("arguments_came", actor_id(2))
    assert kinds(scene.do("worker_died", OWNER, CRASH, 2.0)) == [RowChanged]
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.OWNER_DIED
    assert scene.actor(2).state is ActorLife.PENDING_CREATION


def test_a_head_that_takes_over_an_actor_that_awaits_its_arguments_does_not_place_it() -> None:
    before = Scene()
    rows = [before.unready(number=1, name="a", is_detached=True), before.pending(number=2)]
    scene = Scene()
    assert scene.do("restore", rows, lambda actor: False) == [Place(actor_id(2), 0, 0)]
    assert scene.manager.named("space", "a") is not None
    assert kinds(scene.do("arguments_came", actor_id(1))) == [RowChanged, Place]


def test_a_lease_is_stored_without_being_announced() -> None:
    scene = Scene()
    scene.pending()
    [effect] = scene.do("leased", actor_id(1), 0, NODE, WORKER, now_s=1.0)
    assert effect == RowChanged(scene.actor(), announced=False)
    assert (scene.actor().node_id, scene.actor().worker_id, scene.actor().version) == (NODE, WORKER, 1)


def test_the_lease_of_an_earlier_incarnation_is_not_wanted() -> None:
    scene = Scene()
    scene.creating(max_restarts=1)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert scene.do("leased", actor_id(1), 0, NODE, NEXT_WORKER, now_s=1.0) == []
    assert scene.do("leased", actor_id(1), 1, NODE, NEXT_WORKER, now_s=1.0) != []


def test_an_actor_that_is_told_with_a_later_incarnation_is_not_placed_for_the_earlier_one() -> None:
    scene = Scene()
    earlier = scene.pending(max_restarts=-1)
    later = replace(earlier, state=ActorLife.RESTARTING, num_restarts=2)
    assert kinds(scene.do("adopt", later, 1.0)) == [RowChanged, StopPlacing]
    assert scene.actor().num_restarts == 2
    lives = replace(later, state=ActorLife.ALIVE, node_id=NODE, worker_id=WORKER)
    assert kinds(scene.do("adopt", lives, 1.0)) == [RowChanged, StopPlacing]
    assert scene.do("adopt", earlier, 1.0) == []


def test_a_created_actor_is_alive() -> None:
    scene = Scene()
    scene.creating()
    assert scene.do("created", actor_id(1), WORKER) == [RowChanged(scene.actor())]
    assert scene.actor().state is ActorLife.ALIVE


def test_a_worker_that_gives_the_creation_back_costs_no_restart() -> None:
    scene = Scene()
    scene.creating()
    assert scene.do("given_back", actor_id(1), WORKER) == [RowChanged(scene.actor(), announced=False)]
    assert (scene.actor().worker_id, scene.actor().num_restarts) == (None, 0)
    assert scene.do("created", actor_id(1), WORKER) == []


def test_a_constructor_that_raises_is_the_end() -> None:
    scene = Scene()
    scene.creating(max_restarts=-1, name="once")
    death = Death(DeathKind.CREATION_FAILED, "its constructor raised", error=b"pickle")
    effects = scene.do("creation_failed", actor_id(1), death, now_s=5.0)
    # Its worker ends by itself.
    assert kinds(effects) == [RowChanged, StopPlacing]
    assert (scene.actor().state, scene.actor().death, scene.actor().end_time_s) == (
        ActorLife.DEAD,
        death,
        5.0,
    )
    assert scene.manager.named("space", "once") is None


def test_a_reason_to_wait_is_announced_once_and_goes_with_the_lease() -> None:
    scene = Scene()
    scene.pending()
    assert scene.do("waits_because", actor_id(1), "no node has A") == [RowChanged(scene.actor())]
    assert scene.do("waits_because", actor_id(1), "no node has A") == []
    assert (scene.actor().pending_reason, scene.actor().version) == ("no node has A", 2)
    assert scene.do("leased", actor_id(1), 0, NODE, WORKER, now_s=1.0) == [RowChanged(scene.actor())]
    assert (scene.actor().pending_reason, scene.actor().version) == ("", 3)


# ---- names


def test_of_two_actors_that_race_for_a_name_the_first_gets_it() -> None:
    scene = Scene()
    first = scene.pending(number=1, name="one")
    with pytest.raises(ActorNameTaken, match="'one' exists in namespace 'space'.*get_if_exists") as taken:
        scene.do("register", registration(2, name="one"), now_s=2.0)
    assert taken.value.existing is first
    assert scene.manager.get(actor_id(2)) is None
    scene.manager.check_invariants()


def test_a_name_is_free_again_when_its_actor_is_dead_and_kept_while_it_restarts() -> None:
    scene = Scene()
    scene.alive(name="one", max_restarts=1)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert scene.manager.named("space", "one") == scene.actor()
    scene.do("kill", actor_id(1), force=True, no_restart=True, now_s=3.0)
    assert scene.manager.named("space", "one") is None
    scene.pending(number=2, name="one")
    assert scene.manager.names() == [("space", "one")]


# ---- limits and restarts of the GCS


def test_the_rows_that_died_first_are_forgotten_first() -> None:
    scene = Scene(dead_actors_max=2)
    for number in (1, 2, 3):
        scene.pending(number=number)
    forgotten = []
    for number in (2, 1, 3):
        effects = scene.do("kill", actor_id(number), force=True, no_restart=True, now_s=2.0)
        forgotten += [effect.actor_id for effect in effects if isinstance(effect, RowForgotten)]
    assert forgotten == [actor_id(2)]
    assert scene.manager.get(actor_id(2)) is None


def test_a_restored_manager_goes_on_where_the_last_one_ended() -> None:
    before = Scene()
    before.alive(number=1, name="kept", max_restarts=1)
    before.pending(number=2)
    before.do("leased", actor_id(2), 0, OTHER_NODE, NEXT_WORKER, now_s=1.0)
    before.pending(number=3, name="waits")
    before.pending(number=4)
    before.do("kill", actor_id(4), force=True, no_restart=True, now_s=2.0)
    after = Scene()
    effects = after.do("restore", before.manager.all(), lambda actor: False)
    assert after.manager.names() == [("space", "kept"), ("space", "waits")]
    assert after.actor(1).state is ActorLife.ALIVE
    # The creation that was under way goes on.
    assert effects == [GoOnCreating(actor_id(2), 0), Place(actor_id(3), 0, 0)]
    assert (after.actor(2).worker_id, after.actor(2).num_restarts) == (NEXT_WORKER, 0)
    after.do("worker_died", WORKER, CRASH, now_s=9.0)
    assert after.actor(1).state is ActorLife.RESTARTING

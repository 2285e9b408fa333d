"""The actor manager, one event at a time, with its invariants recounted after each."""

from __future__ import annotations

import itertools

import pytest

from ray_mono.common.ids import ActorID, JobID, NodeID, WorkerID
from ray_mono.gcs.actor_manager import (
    ActorManager,
    ActorNameTaken,
    Effect,
    EndWorker,
    Place,
    RowChanged,
    RowForgotten,
    StopPlacing,
)
from ray_mono.gcs.actor_state import (
    TRANSITIONS,
    Actor,
    ActorEvent,
    ActorRegistration,
    ActorState,
    Death,
    DeathKind,
    IllegalActorTransition,
    next_state,
)

JOB = JobID.from_int(1)
OWNER, OTHER_OWNER = WorkerID(b"o" * 28), WorkerID(b"p" * 28)
OWNER_NODE, NODE, OTHER_NODE = NodeID(b"0" * 28), NodeID(b"1" * 28), NodeID(b"2" * 28)
WORKER, NEXT_WORKER = WorkerID(b"w" * 28), WorkerID(b"x" * 28)
CRASH = Death(DeathKind.WORKER_DIED, "it was killed", signal=9)


def actor_id(number: int) -> ActorID:
    return ActorID(number.to_bytes(12, "big") + JOB.binary())


def registration(
    number: int = 1,
    name: str = "",
    max_restarts: int = 0,
    is_detached: bool = False,
    owner: WorkerID = OWNER,
    job_id: JobID = JOB,
) -> ActorRegistration:
    return ActorRegistration(
        actor_id(number), job_id, owner, OWNER_NODE, "Counter", name, "space", is_detached, max_restarts
    )


class Scene:
    """A manager whose invariants hold after every event."""

    def __init__(self, dead_actors_max: int = 100) -> None:
        self.manager = ActorManager(dead_actors_max)
        self.now_s = 0.0

    def do(self, event: str, *args: object, **kwargs: object) -> list[Effect]:
        effects: list[Effect] = getattr(self.manager, event)(*args, **kwargs)
        self.manager.check_invariants()
        return effects

    def actor(self, number: int = 1) -> Actor:
        actor = self.manager.get(actor_id(number))
        assert actor is not None
        return actor

    def pending(self, **kwargs: object) -> Actor:
        self.do("register", registration(**kwargs), now_s=1.0)  # type: ignore[arg-type]
        return self.actor(int(str(kwargs.get("number", 1))))

    def creating(self, **kwargs: object) -> Actor:
        actor = self.pending(**kwargs)
        self.do("leased", actor.actor_id, 0, NODE, WORKER)
        return self.actor(int(str(kwargs.get("number", 1))))

    def alive(self, **kwargs: object) -> Actor:
        actor = self.creating(**kwargs)
        self.do("created", actor.actor_id, WORKER)
        return self.actor(int(str(kwargs.get("number", 1))))


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


# ---- the table


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ActorState, ActorEvent)))
def test_every_pair_of_state_and_event_is_a_transition_or_raises(
    state: ActorState, event: ActorEvent
) -> None:
    actor = Actor(registration(), state, version=3, start_time_s=1.0, story=("registered", state.name))
    if (state, event) in TRANSITIONS:
        assert next_state(actor, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(
            IllegalActorTransition, match=f"{state.name}.*{event.name}.*registered → {state.name}"
        ):
            next_state(actor, event)


def test_the_table_lets_nobody_rise_from_the_dead_and_every_other_state_end() -> None:
    for state in ActorState:
        events = {event for from_state, event in TRANSITIONS if from_state is state}
        assert (ActorEvent.ENDED in events) == (state is not ActorState.DEAD)
    assert not [event for state, event in TRANSITIONS if state is ActorState.DEAD]


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
    assert scene.actor().state is ActorState.PENDING_CREATION
    assert (scene.actor().version, scene.actor().start_time_s) == (1, 7.0)


def test_registering_an_actor_again_changes_nothing() -> None:
    scene = Scene()
    before = scene.pending()
    assert scene.do("register", registration(), now_s=9.0) == []
    assert scene.actor() is before


def test_a_lease_is_stored_without_being_announced() -> None:
    scene = Scene()
    scene.pending()
    [effect] = scene.do("leased", actor_id(1), 0, NODE, WORKER)
    assert effect == RowChanged(scene.actor(), announced=False)
    assert (scene.actor().node_id, scene.actor().worker_id, scene.actor().version) == (NODE, WORKER, 1)


def test_the_lease_of_an_earlier_incarnation_is_not_wanted() -> None:
    scene = Scene()
    scene.creating(max_restarts=1)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert scene.do("leased", actor_id(1), 0, NODE, NEXT_WORKER) == []
    assert scene.do("leased", actor_id(1), 1, NODE, NEXT_WORKER) != []


def test_a_created_actor_is_alive() -> None:
    scene = Scene()
    scene.creating()
    assert scene.do("created", actor_id(1), WORKER) == [RowChanged(scene.actor())]
    assert scene.actor().state is ActorState.ALIVE


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
    assert kinds(effects) == [RowChanged, StopPlacing, EndWorker]
    assert (scene.actor().state, scene.actor().death, scene.actor().end_time_s) == (
        ActorState.DEAD,
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
    assert scene.do("leased", actor_id(1), 0, NODE, WORKER) == [RowChanged(scene.actor())]
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


# ---- deaths and restarts


def test_a_worker_that_dies_takes_an_actor_without_restarts_with_it() -> None:
    scene = Scene()
    scene.alive()
    assert scene.do("worker_died", WORKER, CRASH, now_s=2.0) == [RowChanged(scene.actor())]
    assert (scene.actor().state, scene.actor().death) == (ActorState.DEAD, CRASH)


@pytest.mark.parametrize("was_alive", [True, False])
def test_an_actor_is_restarted_while_its_restarts_last(was_alive: bool) -> None:
    scene = Scene()
    scene.alive(max_restarts=2) if was_alive else scene.creating(max_restarts=2)
    for restart in (1, 2):
        effects = scene.do("worker_died", WORKER, CRASH, now_s=2.0)
        deaths = 0 if was_alive else restart
        assert effects == [
            RowChanged(scene.actor()),
            StopPlacing(actor_id(1)),
            Place(actor_id(1), restart, deaths),
        ]
        assert (scene.actor().state, scene.actor().num_restarts) == (ActorState.RESTARTING, restart)
        scene.do("leased", actor_id(1), restart, NODE, WORKER)
        if was_alive:
            scene.do("created", actor_id(1), WORKER)
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    assert scene.actor().state is ActorState.DEAD


def test_restarts_without_end_never_end() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    for restart in range(1, 50):
        scene.do("worker_died", WORKER, CRASH, now_s=2.0)
        scene.do("leased", actor_id(1), restart, NODE, WORKER)
        scene.do("created", actor_id(1), WORKER)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorState.ALIVE, 49)
    assert len(scene.actor().story) <= 12


def test_a_death_told_twice_counts_once() -> None:
    scene = Scene()
    scene.alive(max_restarts=5)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert scene.do("worker_died", WORKER, CRASH, now_s=2.1) == []
    assert scene.actor().num_restarts == 1


def test_an_actor_that_exits_on_purpose_is_not_restarted() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    exited = Death(DeathKind.EXITED, "exit_actor() was called")
    scene.do("worker_died", WORKER, exited, now_s=2.0)
    assert (scene.actor().state, scene.actor().death) == (ActorState.DEAD, exited)


def test_the_death_of_a_node_restarts_its_actors_and_ends_those_owned_there() -> None:
    scene = Scene()
    scene.alive(number=1, max_restarts=1)
    gone = Death(DeathKind.NODE_DIED, "silence")
    effects = scene.do("node_died", NODE, gone, now_s=2.0)
    assert kinds(effects) == [RowChanged, StopPlacing, Place]
    scene.do("node_died", OWNER_NODE, gone, now_s=3.0)
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.OWNER_DIED


def test_actors_die_with_their_owner_but_for_the_detached() -> None:
    scene = Scene()
    scene.alive(number=1, max_restarts=-1)
    scene.pending(number=2, is_detached=True, name="kept")
    scene.pending(number=3, owner=OTHER_OWNER)
    effects = scene.do("worker_died", OWNER, CRASH, now_s=2.0)
    assert [actor.state for actor in scene.manager.all()] == [
        ActorState.DEAD,
        ActorState.PENDING_CREATION,
        ActorState.PENDING_CREATION,
    ]
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.OWNER_DIED and "it was killed" in death.message
    assert effects == [
        RowChanged(scene.actor(1)),
        EndWorker(actor_id(1), NODE, WORKER, force=True, death=death),
    ]


def test_an_actor_that_owns_actors_takes_them_with_it_even_when_it_is_restarted_itself() -> None:
    scene = Scene()
    scene.alive(number=1, max_restarts=-1)
    scene.pending(number=2, owner=WORKER)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert (scene.actor(1).state, scene.actor(2).state) == (ActorState.RESTARTING, ActorState.DEAD)


def test_a_finished_job_ends_its_actors_but_for_the_detached() -> None:
    scene = Scene()
    scene.alive(number=1)
    scene.pending(number=2, is_detached=True)
    scene.pending(number=3, job_id=JobID.from_int(2))
    effects = scene.do("job_finished", JOB, now_s=2.0)
    assert kinds(effects) == [RowChanged, EndWorker]
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.JOB_FINISHED
    assert {scene.actor(2).state, scene.actor(3).state} == {ActorState.PENDING_CREATION}


# ---- kill, and out of scope


def test_kill_ends_an_actor_at_once_and_its_worker_afterwards() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    effects = scene.do("kill", actor_id(1), force=True, no_restart=True, now_s=2.0)
    death = scene.actor().death
    assert death is not None and death.kind is DeathKind.KILLED
    assert effects == [
        RowChanged(scene.actor()),
        EndWorker(actor_id(1), NODE, WORKER, force=True, death=death),
    ]
    assert scene.do("worker_died", WORKER, CRASH, now_s=3.0) == []
    assert scene.do("kill", actor_id(1), force=True, no_restart=True, now_s=4.0) == []


def test_kill_that_allows_a_restart_only_kills_the_worker() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    [effect] = scene.do("kill", actor_id(1), force=True, no_restart=False, now_s=2.0)
    assert isinstance(effect, EndWorker) and effect.force
    scene.do("worker_died", WORKER, Death(DeathKind.KILLED, "killed by kill()"), now_s=3.0)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorState.RESTARTING, 1)


def test_kill_without_force_lets_the_worker_finish() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    [effect] = scene.do("kill", actor_id(1), force=False, no_restart=True, now_s=2.0)
    assert isinstance(effect, EndWorker) and not effect.force
    assert scene.actor().state is ActorState.ALIVE
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    death = scene.actor().death
    assert death is not None and death.kind is DeathKind.KILLED


def test_a_pending_actor_that_is_killed_stops_being_placed() -> None:
    scene = Scene()
    scene.pending()
    effects = scene.do("kill", actor_id(1), force=False, no_restart=True, now_s=2.0)
    assert effects == [RowChanged(scene.actor()), StopPlacing(actor_id(1))]
    assert scene.actor().state is ActorState.DEAD


def test_an_actor_without_handles_finishes_its_calls_and_is_not_restarted() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    [effect] = scene.do("out_of_scope", actor_id(1), now_s=2.0)
    assert isinstance(effect, EndWorker) and not effect.force
    assert scene.do("out_of_scope", actor_id(1), now_s=2.5) == []
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    death = scene.actor().death
    assert death is not None and death.kind is DeathKind.OUT_OF_SCOPE


def test_a_pending_actor_without_handles_is_dead_and_a_detached_one_does_not_mind() -> None:
    scene = Scene()
    scene.pending(number=1)
    scene.pending(number=2, is_detached=True)
    scene.do("out_of_scope", actor_id(1), now_s=2.0)
    assert scene.do("out_of_scope", actor_id(2), now_s=2.0) == []
    assert (scene.actor(1).state, scene.actor(2).state) == (ActorState.DEAD, ActorState.PENDING_CREATION)


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
    before.do("leased", actor_id(2), 0, OTHER_NODE, NEXT_WORKER)
    before.pending(number=3, name="waits")
    before.pending(number=4)
    before.do("kill", actor_id(4), force=True, no_restart=True, now_s=2.0)
    after = Scene()
    effects = after.do("restore", before.manager.all())
    assert after.manager.names() == [("space", "kept"), ("space", "waits")]
    assert after.actor(1).state is ActorState.ALIVE
    # The creation that was under way is ended, and begun anew.
    assert after.actor(2).worker_id is None
    assert kinds(effects) == [RowChanged, EndWorker, Place, Place]
    assert [effect.actor_id for effect in effects if isinstance(effect, Place)] == [actor_id(2), actor_id(3)]
    after.do("worker_died", WORKER, CRASH, now_s=9.0)
    assert after.actor(1).state is ActorState.RESTARTING

"""The ends of actors, as the actor manager decides them: deaths and restarts, kill, and out of scope."""

from __future__ import annotations

import pytest

from ray_mono.common.ids import JobID
from ray_mono.gcs.actor.actor_effects import (
    EndActorWorker,
    Place,
    RowChanged,
    StopPlacing,
)
from ray_mono.gcs.actor.actor_state import (
    ActorLife,
    Death,
    DeathKind,
)
from ray_mono.protobuf import common_pb2
from tests.gcs.actor.actor_scene import (
    CRASH,
    JOB,
    NODE,
    OTHER_OWNER,
    OWNER,
    OWNER_NODE,
    WORKER,
    Scene,
    actor_id,
    kinds,
)

# ---- deaths and restarts


def test_a_worker_that_dies_takes_an_actor_without_restarts_with_it() -> None:
    scene = Scene()
    scene.alive()
    assert scene.do("worker_died", WORKER, CRASH, now_s=2.0) == [RowChanged(scene.actor())]
    assert (scene.actor().state, scene.actor().death) == (ActorLife.DEAD, CRASH)


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
        assert (scene.actor().state, scene.actor().num_restarts) == (ActorLife.RESTARTING, restart)
        scene.do("leased", actor_id(1), restart, NODE, WORKER, now_s=1.0)
        if was_alive:
            scene.do("created", actor_id(1), WORKER)
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    assert scene.actor().state is ActorLife.DEAD


def test_a_death_for_want_of_memory_costs_a_restart_as_any_other() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    death = Death(DeathKind.OUT_OF_MEMORY, "its node runs short of memory", signal=9)
    scene.do("worker_died", WORKER, death, now_s=2.0)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorLife.RESTARTING, 1)
    scene.do("leased", actor_id(1), 1, NODE, WORKER, now_s=1.0)
    scene.do("created", actor_id(1), WORKER)
    scene.do("worker_died", WORKER, death, now_s=3.0)
    assert (scene.actor().state, scene.actor().death) == (ActorLife.DEAD, death)


PREEMPTED = Death(DeathKind.NODE_DIED, "its node is drained", is_preempted=True)


def test_an_actor_with_restarts_starts_again_whenever_its_node_is_taken_away() -> None:
    """Which costs none of them."""
    scene = Scene()
    scene.alive(max_restarts=1)
    for restart in (1, 2):
        scene.do("node_died", NODE, PREEMPTED, now_s=2.0)
        assert scene.actor().num_restarts == scene.actor().num_restarts_preempted == restart
        scene.do("leased", actor_id(1), restart, NODE, WORKER, now_s=1.0)
        scene.do("created", actor_id(1), WORKER)
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorLife.RESTARTING, 3)
    scene.do("leased", actor_id(1), 3, NODE, WORKER, now_s=1.0)
    scene.do("node_died", NODE, PREEMPTED, now_s=4.0)
    assert scene.actor().state is ActorLife.RESTARTING
    scene.do("leased", actor_id(1), 4, NODE, WORKER, now_s=1.0)
    scene.do("worker_died", WORKER, CRASH, now_s=5.0)
    assert scene.actor().state is ActorLife.DEAD


def test_an_actor_without_restarts_dies_with_a_node_that_is_taken_away() -> None:
    scene = Scene()
    scene.alive(max_restarts=0)
    scene.do("node_died", NODE, PREEMPTED, now_s=2.0)
    assert scene.actor().death == PREEMPTED


def test_an_actor_that_is_moved_starts_again_when_its_worker_has_ended_whatever_is_told_of_that() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    assert [actor.actor_id for actor in scene.manager.movable(NODE)] == [actor_id(1)]
    effects = scene.do("move", actor_id(1), PREEMPTED)
    assert kinds(effects) == [RowChanged, EndActorWorker]
    assert [actor.leaves for actor in scene.manager.movable(NODE)] == [True]
    assert scene.actor().state is ActorLife.ALIVE
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert (scene.actor().state, scene.actor().num_restarts_preempted) == (ActorLife.RESTARTING, 1)


def test_it_starts_elsewhere_while_its_worker_stays_for_what_it_owns() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    assert scene.do("left", WORKER, now_s=2.0) == []
    scene.do("move", actor_id(1), PREEMPTED)
    effects = scene.do("left", WORKER, now_s=2.0)
    assert effects == [RowChanged(scene.actor()), StopPlacing(actor_id(1)), Place(actor_id(1), 1, 0)]
    assert scene.actor().is_moving and scene.actor().num_restarts_preempted == 1
    assert scene.do("worker_died", WORKER, CRASH, now_s=3.0) == []
    scene.do("leased", actor_id(1), 1, NODE, WORKER, now_s=1.0)
    scene.do("created", actor_id(1), WORKER)
    assert not scene.actor().is_moving


def test_what_it_is_asked_while_it_moves_is_only_asked_once_and_a_kill_is_at_once() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    (_, asked) = scene.do("move", actor_id(1), PREEMPTED)
    assert (asked.force, asked.moves) == (False, True)
    assert scene.do("move", actor_id(1), PREEMPTED) == []
    (_, killed) = scene.do("kill", actor_id(1), True, False, now_s=2.0)
    assert (killed.force, killed.moves) == (True, False)
    assert scene.do("left", WORKER, now_s=2.0) == []
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert (scene.actor().num_restarts, scene.actor().num_restarts_preempted) == (1, 0)


def test_an_actor_that_nobody_has_a_handle_of_when_it_has_left_is_dead() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    scene.do("move", actor_id(1), PREEMPTED)
    scene.do("out_of_scope", actor_id(1), now_s=2.0)
    scene.do("left", WORKER, now_s=3.0)
    assert scene.actor().state is ActorLife.DEAD


def test_an_actor_without_restarts_or_that_ends_is_not_moved() -> None:
    scene = Scene()
    scene.alive(max_restarts=0)
    assert not scene.manager.movable(NODE)
    scene = Scene()
    scene.alive(max_restarts=1)
    scene.do("out_of_scope", actor_id(1), now_s=2.0)
    assert not scene.manager.movable(NODE)


def test_every_cause_of_a_death_that_travels_is_known() -> None:
    assert {kind.name: kind.value for kind in DeathKind} == dict(common_pb2.DeathCause.Kind.items())


def test_restarts_without_end_never_end() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    for restart in range(1, 50):
        scene.do("worker_died", WORKER, CRASH, now_s=2.0)
        scene.do("leased", actor_id(1), restart, NODE, WORKER, now_s=1.0)
        scene.do("created", actor_id(1), WORKER)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorLife.ALIVE, 49)
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
    assert (scene.actor().state, scene.actor().death) == (ActorLife.DEAD, exited)


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
        ActorLife.DEAD,
        ActorLife.PENDING_CREATION,
        ActorLife.PENDING_CREATION,
    ]
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.OWNER_DIED and "it was killed" in death.message
    assert effects == [
        RowChanged(scene.actor(1)),
        EndActorWorker(actor_id(1), NODE, WORKER, force=True, death=death),
    ]


def test_an_actor_that_owns_actors_takes_them_with_it_even_when_it_is_restarted_itself() -> None:
    scene = Scene()
    scene.alive(number=1, max_restarts=-1)
    scene.pending(number=2, owner=WORKER)
    scene.do("worker_died", WORKER, CRASH, now_s=2.0)
    assert (scene.actor(1).state, scene.actor(2).state) == (ActorLife.RESTARTING, ActorLife.DEAD)


def test_a_finished_job_ends_its_actors_but_for_the_detached() -> None:
    scene = Scene()
    scene.alive(number=1)
    scene.pending(number=2, is_detached=True)
    scene.pending(number=3, job_id=JobID.from_int(2))
    effects = scene.do("job_finished", JOB, now_s=2.0)
    assert kinds(effects) == [RowChanged, EndActorWorker]
    death = scene.actor(1).death
    assert death is not None and death.kind is DeathKind.JOB_FINISHED
    assert {scene.actor(2).state, scene.actor(3).state} == {ActorLife.PENDING_CREATION}


# ---- kill, and out of scope


def test_kill_ends_an_actor_at_once_and_its_worker_afterwards() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    effects = scene.do("kill", actor_id(1), force=True, no_restart=True, now_s=2.0)
    death = scene.actor().death
    assert death is not None and death.kind is DeathKind.KILLED
    assert effects == [
        RowChanged(scene.actor()),
        EndActorWorker(actor_id(1), NODE, WORKER, force=True, death=death),
    ]
    assert scene.do("worker_died", WORKER, CRASH, now_s=3.0) == []
    assert scene.do("kill", actor_id(1), force=True, no_restart=True, now_s=4.0) == []


def test_kill_that_allows_a_restart_only_kills_the_worker() -> None:
    scene = Scene()
    scene.alive(max_restarts=1)
    row, effect = scene.do("kill", actor_id(1), force=True, no_restart=False, now_s=2.0)
    # So that the next GCS knows of it.
    assert row == RowChanged(scene.actor(), announced=False) and scene.actor().killing is not None
    assert isinstance(effect, EndActorWorker) and effect.force
    assert scene.do("kill", actor_id(1), force=True, no_restart=False, now_s=2.5) == []
    scene.do("worker_died", WORKER, Death(DeathKind.KILLED, "killed by kill()"), now_s=3.0)
    assert (scene.actor().state, scene.actor().num_restarts) == (ActorLife.RESTARTING, 1)
    assert scene.actor().killing is None


def test_kill_without_force_lets_the_worker_finish() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    row, effect = scene.do("kill", actor_id(1), force=False, no_restart=True, now_s=2.0)
    assert row == RowChanged(scene.actor(), announced=False)
    assert isinstance(effect, EndActorWorker) and not effect.force
    assert scene.actor().state is ActorLife.ALIVE
    scene.do("worker_died", WORKER, CRASH, now_s=3.0)
    death = scene.actor().death
    assert death is not None and death.kind is DeathKind.KILLED


def test_a_pending_actor_that_is_killed_stops_being_placed() -> None:
    scene = Scene()
    scene.pending()
    effects = scene.do("kill", actor_id(1), force=False, no_restart=True, now_s=2.0)
    assert effects == [RowChanged(scene.actor()), StopPlacing(actor_id(1))]
    assert scene.actor().state is ActorLife.DEAD


def test_an_actor_without_handles_finishes_its_calls_and_is_not_restarted() -> None:
    scene = Scene()
    scene.alive(max_restarts=-1)
    _, effect = scene.do("out_of_scope", actor_id(1), now_s=2.0)
    assert isinstance(effect, EndActorWorker) and not effect.force
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
    assert (scene.actor(1).state, scene.actor(2).state) == (
        ActorLife.DEAD,
        ActorLife.PENDING_CREATION,
    )

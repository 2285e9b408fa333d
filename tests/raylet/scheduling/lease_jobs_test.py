"""Whose a worker is: of one job, and what of a job ends with its driver, or only with its last actor."""

from __future__ import annotations

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.raylet.effects import RejectionKind
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, Scene, units


def test_a_worker_of_one_job_is_not_reused_for_another() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a", job=JOB_A)
    scene.give_back("a")
    scene.ask("b", job=JOB_B)
    scene.give_back("b")
    scene.ask("c", job=JOB_A)
    assert scene.granted["a"].worker_id == scene.granted["c"].worker_id
    assert scene.granted["a"].worker_id != scene.granted["b"].worker_id


def test_a_finished_job_loses_its_leases_queue_and_idle_workers_but_not_its_actors() -> None:
    scene = Scene(units(CPU=3))
    scene.ask("idle")
    scene.ask("actor", resources=ResourceSet(), for_actor=True)
    scene.ask("task")
    scene.give_back("idle")
    scene.ask("queued", resources=units(CPU=3))
    scene.do(lambda now_s: scene.manager.job_finished(JOB_A, now_s))
    ended = {effect.worker_id for effect in scene.ended}
    assert ended == {scene.granted["idle"].worker_id, scene.granted["task"].worker_id}
    assert scene.rejected == {"queued": RejectionKind.JOB_FINISHED}
    scene.ask("late")
    assert scene.rejected["late"] is RejectionKind.JOB_FINISHED
    assert "actor" in scene.running


def test_what_detached_actors_run_goes_on_until_their_job_is_over() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("of the driver")
    scene.give_back("of the driver")
    scene.ask("task", outlives_job=True)
    scene.ask("idle", outlives_job=True)
    scene.give_back("idle")
    scene.do(lambda now_s: scene.manager.job_finished(JOB_A, now_s))
    assert [effect.worker_id for effect in scene.ended] == [scene.granted["of the driver"].worker_id]
    scene.ask("late", outlives_job=True)
    assert scene.granted["late"].worker_id == scene.granted["idle"].worker_id
    for name in ("task", "late"):
        assert name in scene.running
        scene.give_back(name)
    assert len(scene.ended) == 1
    scene.do(lambda now_s: scene.manager.job_over(JOB_A, now_s))
    ended = {effect.worker_id for effect in scene.ended[1:]}
    assert ended == {scene.granted["task"].worker_id, scene.granted["idle"].worker_id}


def test_a_job_that_makes_many_actors_at_once_keeps_no_other_waiting_for_a_process() -> None:
    scene = Scene(units(CPU=1), startup_concurrency=1)
    scene.hold_starts = True
    for number in range(20):
        scene.ask(f"actor {number}", resources=ResourceSet(), for_actor=True, job=JOB_A)
    for job, requester in ((JOB_B, 2), (b"cccc", 3)):
        scene.ask(f"of {job.decode()}", resources=ResourceSet(), for_actor=True, job=job, requester=requester)
    begun: list[str] = []
    while len(begun) < 22:
        scene.register()
        begun += [name for name in scene.running if name not in begun]
    assert begun[:3] == ["actor 0", "of bbbb", "of cccc"]
    # Its own begin in order.
    assert begun[3:] == [f"actor {number}" for number in range(1, 20)]

"""Workers that serve one lease after another: what stays with the process, and what must not."""

from __future__ import annotations

from ray_mono.common.scheduling.resources import ResourceSet
from tests.raylet.scheduling.lease_scene import JOB_A, THERE, Scene, units

NOTHING = ResourceSet()


def test_what_looked_for_gpus_when_it_had_none_never_gets_one_nor_the_reverse() -> None:
    scene = Scene(units(CPU=1, GPU=1))
    workers = []
    for name, resources in (
        ("a", units(CPU=1)),
        ("b", units(GPU=1)),
        ("c", units(CPU=1)),
        ("d", units(CPU=1, GPU=0.5)),
    ):
        scene.ask(name, resources=resources)
        workers.append(scene.granted[name].worker_id)
        scene.give_back(name)
    assert workers[0] == workers[2] and workers[1] == workers[3] and workers[0] != workers[1]


def test_a_notice_of_an_earlier_lease_says_nothing_about_the_present_one() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("earlier")
    worker_id = scene.granted["earlier"].worker_id
    scene.give_back("earlier")
    scene.ask("present")
    assert scene.granted["present"].worker_id == worker_id
    for is_blocked in (True, False):
        scene.do(
            lambda now_s, blocked=is_blocked: scene.manager.worker_blocked(
                worker_id, b"earlier", blocked, now_s
            )
        )
        assert scene.ledger.available == NOTHING
    scene.do(lambda now_s: scene.manager.worker_blocked(worker_id, b"present", True, now_s))
    assert scene.ledger.available == units(CPU=1)
    # It ran on before it came, and was given back: the next lease's worker does run.
    scene.do(lambda now_s: scene.manager.worker_blocked(worker_id, b"earlier", False, now_s))
    assert scene.ledger.available == units(CPU=1)


def test_a_worker_that_others_leased_ends_with_its_job_and_is_not_given_back_to_it() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a", requester_node=THERE, grant_or_reject=True)
    scene.do(lambda now_s: scene.manager.job_finished(JOB_A, now_s))
    scene.give_back("a")
    assert [effect.worker_id for effect in scene.ended] == [scene.granted["a"].worker_id]
    scene.worker_dies("a")
    assert scene.ledger.available == units(CPU=1)

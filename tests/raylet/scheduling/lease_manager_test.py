"""Leases on one node: who is granted what, in which order, and what ends them."""

from __future__ import annotations

import functools

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.scheduling.strategy import Strategy, StrategyKind
from ray_mono.raylet.effects import EndMode, RejectionKind
from tests.raylet.scheduling.lease_scene import HERE, JOB_A, JOB_B, THERE, Scene, units

NOTHING = ResourceSet()


def test_exactly_as_many_leases_as_cpus_are_granted_at_a_time() -> None:
    scene = Scene(units(CPU=2))
    for name in "abcd":
        scene.ask(name)
    assert scene.running == ["a", "b"]
    scene.give_back("a")
    assert scene.running == ["b", "c"]
    scene.give_back("b")
    scene.give_back("c")
    assert scene.running == ["d"]


def test_workers_start_side_by_side_while_their_leases_hold_the_resources() -> None:
    scene = Scene(units(CPU=2))
    scene.hold_starts = True
    for name in "abc":
        scene.ask(name)
    assert len(scene.starts) == 2
    assert scene.ledger.available == NOTHING
    assert "waits for a worker process (2 starting)" in scene.why("a")
    scene.register(2)
    assert scene.running == ["a", "b"]


def test_a_hundred_actors_start_no_more_workers_at_once_than_the_limit() -> None:
    scene = Scene(units(CPU=1), startup_concurrency=3)
    scene.hold_starts = True
    for number in range(100):
        scene.ask(f"actor {number:02}", resources=NOTHING, placement=units(CPU=1), for_actor=True)
    while scene.starts:
        assert len(scene.starts) <= 3
        scene.register()
    assert len(scene.running) == 100


def test_leases_of_one_shape_are_served_in_order_and_requesters_in_turn() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("running")
    for name in ("a1", "a2", "a3"):
        scene.ask(name, requester=1)
    for name in ("b1", "b2"):
        scene.ask(name, requester=2)
    order = []
    for _ in range(5):
        [name] = scene.running
        scene.give_back(name)
        order += scene.running
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_shapes_take_turns() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("running")
    for name in ("a1", "a2", "a3"):
        scene.ask(name)
    for name in ("h1", "h2", "h3"):
        scene.ask(name, resources=units(CPU=0.6))
    order = []
    for _ in range(4):
        [name] = scene.running
        scene.give_back(name)
        order += scene.running
    assert order == ["a1", "h1", "a2", "h2"]


def test_a_shape_that_does_not_fit_does_not_hold_up_the_others() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("running")
    scene.ask("large", resources=units(CPU=2))
    scene.ask("small")
    assert scene.running == ["running", "small"]
    assert "needs {CPU: 2}; node 62626262 has {CPU: 0} free of {CPU: 2}" in scene.why("large")


def test_an_actor_needs_its_placement_free_and_then_holds_only_its_resources() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("task")
    scene.ask("actor", resources=NOTHING, placement=units(CPU=1), for_actor=True)
    assert scene.running == ["task"]
    scene.give_back("task")
    assert scene.running == ["actor"]
    assert scene.ledger.available == units(CPU=1)


def test_blocked_parents_lend_their_cpus_and_resume_into_debt() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("parent 1")
    scene.ask("parent 2")
    scene.ask("child 1", requester=2)
    scene.ask("child 2", requester=3)
    scene.block("parent 1")
    scene.block("parent 2")
    assert scene.running == ["child 1", "child 2", "parent 1", "parent 2"]
    scene.block("parent 1", False)
    scene.ask("later")
    assert scene.ledger.available == ResourceSet({"CPU": -10_000})
    scene.give_back("child 1")
    assert "later" not in scene.running
    assert scene.ledger.available == NOTHING
    scene.give_back("child 2")
    assert "later" in scene.running


def test_nothing_is_granted_in_debt_not_even_what_needs_nothing() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("parent")
    scene.block("parent")
    scene.ask("child")
    scene.block("parent", False)
    scene.ask("free", resources=NOTHING)
    assert scene.running == ["child", "parent"]
    assert "nothing is granted" in scene.why("free")
    scene.give_back("child")
    assert scene.running == ["free", "parent"]


def test_a_lease_goes_to_another_node_only_when_it_does_not_fit_here() -> None:
    scene = Scene(units(CPU=1))
    scene.other_node(units(CPU=2))
    for name in "abcd":
        scene.ask(name)
    assert scene.running == ["a"]
    # b and c fill what the other node reported; d waits instead of following them.
    assert scene.spilled == {"b": THERE, "c": THERE}
    assert "node 63636363 has {CPU: 0} free of {CPU: 2}" in scene.why("d")
    scene.other_node(units(CPU=1), version=2, total=units(CPU=2))
    assert scene.spilled["d"] == THERE


def test_a_spilled_request_is_granted_or_rejected_at_once() -> None:
    scene = Scene(units(CPU=1))
    scene.other_node(units(CPU=9))
    scene.ask("a", grant_or_reject=True, requester_node=THERE)
    scene.ask("b", grant_or_reject=True, requester_node=THERE)
    assert scene.running == ["a"]
    assert scene.rejected == {"b": RejectionKind.NOT_HERE}
    assert "needs {CPU: 1}" in scene.messages["b"]
    assert scene.spilled == {}


def test_an_infeasible_lease_is_told_once_per_shape_and_placed_when_a_node_joins() -> None:
    scene = Scene(ResourceSet.from_units({"CPU": 2, "A": 1, "memory": 1e9, "node:127.0.0.1": 1}))
    for name in ("f", "g"):
        scene.ask(name, resources=units(A=2))
    scene.wait(1.9)
    assert scene.warnings == []
    scene.wait(60)
    [warning] = scene.warnings
    assert warning.job_id == JOB_A
    assert warning.message == (
        "f needs {A: 2}, and no node of the cluster has that much: its only node has {A: 1, CPU: 2}. "
        "It waits until a node with {A: 2} joins: start one, ask for less, or cancel it."
    )
    scene.ask("of another job", job=JOB_B, requester=2, resources=units(A=2))
    scene.wait(3)
    assert [warning.job_id for warning in scene.warnings] == [JOB_A, JOB_B]
    scene.other_node(units(A=4))
    assert sorted(scene.spilled) == ["f", "of another job"]
    scene.other_node(units(A=2), version=2, total=units(A=4))
    assert sorted(scene.spilled) == ["f", "g", "of another job"]


def test_a_lease_that_only_actors_keep_out_is_explained_after_a_while() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", resources=units(CPU=2), for_actor=True)
    scene.ask("task")
    scene.wait(29)
    assert scene.warnings == []
    scene.wait(2)
    [warning] = scene.warnings
    assert "of which living actors hold {CPU: 2} until they end" in warning.message


def test_while_only_actors_keep_a_lease_out_garbage_is_collected_that_may_hold_them() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("actor", resources=units(CPU=2), for_actor=True)
    start_s = scene.now_s
    scene.ask("another", for_actor=True)
    scene.wait(1)
    assert scene.collected_at_s == []
    scene.wait(40)
    assert [round(now_s - start_s) for now_s in scene.collected_at_s] == [2, 32]


def test_a_lease_that_merely_waits_its_turn_is_not_warned_about() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("long")
    scene.ask("next")
    scene.wait(100)
    assert scene.warnings == [] and scene.collected_at_s == []


def test_a_queued_lease_can_be_cancelled_and_a_granted_one_not() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a")
    scene.ask("b")
    scene.do(lambda now_s: scene.manager.cancel(b"b", now_s))
    scene.do(lambda now_s: scene.manager.cancel(b"a", now_s))
    assert scene.rejected == {"b": RejectionKind.CANCELLED}
    assert scene.running == ["a"]


def test_a_lease_that_waits_for_its_worker_can_be_cancelled_and_its_worker_serves_another() -> None:
    scene = Scene(units(CPU=1))
    scene.hold_starts = True
    scene.ask("a")
    scene.ask("b")
    scene.do(lambda now_s: scene.manager.cancel(b"a", now_s))
    assert len(scene.starts) == 1
    scene.register()
    assert scene.running == ["b"]


def test_the_end_of_a_requesters_connection_ends_what_it_asked_for_except_actors() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("task", requester=1)
    scene.ask("actor", requester=1, resources=NOTHING, for_actor=True)
    scene.ask("of another", requester=2)
    scene.ask("queued", requester=1)
    scene.do(lambda now_s: scene.manager.requester_gone(1, now_s))
    assert scene.rejected == {"queued": RejectionKind.CANCELLED}
    assert scene.unclaimed == [b"actor"]
    assert [(effect.worker_id, effect.mode) for effect in scene.ended] == [
        (scene.granted["task"].worker_id, EndMode.KILL)
    ]
    # It may be in the middle of a task: what it holds is held until the process is gone.
    assert scene.ledger.available == NOTHING
    scene.worker_dies("task")
    assert scene.running == ["actor", "of another"]
    assert scene.ledger.available == units(CPU=1)


def test_what_the_gcs_disowns_is_killed_once_and_held_until_it_is_gone() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("actor", for_actor=True)
    scene.ask("waits", for_actor=True)
    assert [lease.lease_id for lease in scene.manager.actor_leases()] == [b"actor"]
    for _ in range(2):
        scene.do(lambda now_s: scene.manager.disowned([b"actor", b"waits", b"unknown"], now_s))
    assert [effect.mode for effect in scene.ended] == [EndMode.KILL]
    assert scene.running == ["actor"]
    scene.worker_dies("actor")
    assert scene.running == ["waits"]


def test_the_death_of_a_worker_frees_its_lease() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a")
    scene.ask("b")
    scene.worker_dies("a")
    assert scene.running == ["b"]
    scene.give_back("a")
    assert scene.running == ["b"]


def test_a_disposed_worker_ends_and_its_resources_come_back_with_its_death() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a")
    scene.ask("b")
    scene.give_back("a", dispose=True)
    assert [effect.mode for effect in scene.ended] == [EndMode.KILL]
    assert scene.running == ["a"]
    scene.worker_dies("a")
    assert scene.running == ["b"]
    assert scene.granted["b"].worker_id != scene.granted["a"].worker_id


def test_a_worker_that_leaves_holds_nothing_and_is_not_used_again_and_ends_with_its_job() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("a")
    scene.ask("b")
    scene.give_back("a", leaving=True)
    assert scene.running == ["b"] and scene.ended == []
    left = scene.granted["a"].worker_id
    assert scene.granted["b"].worker_id != left
    scene.give_back("b")
    scene.do(lambda now_s: scene.manager.job_finished(JOB_A, now_s))
    assert left in [effect.worker_id for effect in scene.ended]
    scene.worker_dies("a")


def test_an_actor_that_stays_for_what_it_owns_holds_nothing_and_ends_with_its_job() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("actor", for_actor=True)
    scene.ask("waits", for_actor=True)
    scene.give_back("actor", leaving=True)
    assert scene.running == ["waits"] and scene.ended == []
    scene.do(lambda now_s: scene.manager.job_finished(JOB_A, now_s))
    assert scene.granted["actor"].worker_id in [effect.worker_id for effect in scene.ended]
    scene.worker_dies("actor")


def test_leases_of_a_dead_node_end_even_if_its_connections_linger() -> None:
    scene = Scene(units(CPU=1))
    scene.other_node(units(CPU=1))
    scene.ask("a", grant_or_reject=True, requester_node=THERE)
    scene.do(lambda now_s: scene.manager.node_died(THERE, now_s))
    assert [effect.worker_id for effect in scene.ended] == [scene.granted["a"].worker_id]


def test_a_repeated_request_for_a_granted_lease_gets_the_same_grant_on_its_new_connection() -> None:
    scene = Scene(units(CPU=2))
    scene.ask("a", requester=1)
    grant = scene.granted.pop("a")
    scene.ask("a", requester=2)
    assert scene.granted["a"] == grant
    scene.do(lambda now_s: scene.manager.requester_gone(1, now_s))
    assert scene.ended == []
    scene.do(lambda now_s: scene.manager.requester_gone(2, now_s))
    assert len(scene.ended) == 1


def test_hard_affinity_to_a_node_nobody_knows_fails_after_a_while_and_to_a_dead_one_at_once() -> None:
    scene = Scene(units(CPU=1))
    strategy = Strategy(StrategyKind.NODE_AFFINITY, THERE)
    scene.ask("early", strategy=strategy)
    assert scene.rejected == {}
    scene.wait(2)
    assert scene.rejected == {"early": RejectionKind.INFEASIBLE}
    assert "is not in this cluster" in scene.messages["early"]
    scene.other_node(units(CPU=1))
    scene.do(lambda now_s: scene.manager.node_died(THERE, now_s))
    scene.ask("late", strategy=strategy)
    assert "is dead" in scene.messages["late"]


def test_hard_affinity_to_a_node_that_could_never_hold_it_fails_at_once() -> None:
    scene = Scene(units(CPU=4))
    scene.other_node(units(CPU=1))
    scene.ask("large", resources=units(CPU=2), strategy=Strategy(StrategyKind.NODE_AFFINITY, THERE))
    assert scene.rejected == {"large": RejectionKind.INFEASIBLE}
    assert "which has {CPU: 1} in all" in scene.messages["large"]


def test_spread_leases_go_round_the_nodes() -> None:
    scene = Scene(units(CPU=4))
    scene.other_node(units(CPU=4))
    for name in "wxyz":
        scene.ask(name, strategy=Strategy(StrategyKind.SPREAD))
    assert (len(scene.running), len(scene.spilled)) == (2, 2)


def test_drivers_hear_of_workers_that_die_while_they_start() -> None:
    scene = Scene(units(CPU=1))
    scene.hold_starts = True
    scene.ask("a")
    for _ in range(20):
        while scene.starts:
            worker_id = scene.starts.pop().worker_id
            scene.take(scene.manager.worker_died(worker_id, "exit code 1", scene.now_s))
        scene.wait(0.5)
    [warning] = scene.warnings
    assert "Workers do not start, so tasks and actors wait: exit code 1" in warning.message
    scene.wait(6)
    scene.register()
    assert scene.running == ["a"]


def test_what_waits_is_reported_by_shape() -> None:
    scene = Scene(units(CPU=1))
    for name in "abc":
        scene.ask(name)
    scene.ask("large", resources=units(A=2))
    assert scene.manager.queued_demand() == [(units(CPU=1), 2), (units(A=2), 1)]
    assert scene.manager.num_queued == 3


def test_an_impossible_share_of_an_accelerator_is_refused_at_once() -> None:
    scene = Scene(units(CPU=1, GPU=4))
    scene.ask("a", resources=units(GPU=1.5))
    assert scene.rejected == {"a": RejectionKind.INFEASIBLE}
    scene.ask("b", resources=units(GPU=2))
    assert scene.granted["b"].instances == {"GPU": (0, 1)}
    assert HERE not in scene.spilled.values()


def test_the_gcs_itself_tells_drivers_about_actors_that_fit_nowhere() -> None:
    scene = Scene(units(CPU=1))
    scene.ask("actor", resources=units(A=1), for_actor=True)
    scene.wait(10)
    assert scene.warnings == []


def test_nothing_is_kept_of_shapes_that_do_not_wait_any_more() -> None:
    scene = Scene(units(CPU=1))
    for number in range(1, 20):
        for name in ("runs", "waits"):
            scene.ask(f"{name} {number}", resources=units(CPU=number / 20 + 0.5 * (name == "waits")))
        scene.give_back(f"runs {number}")
        if f"waits {number}" in scene.running:
            scene.give_back(f"waits {number}")
        else:
            scene.do(functools.partial(scene.manager.cancel, f"waits {number}".encode()))
    scene.wait(1)
    assert scene.manager.describe(scene.now_s)["num_shapes_remembered"] == 0

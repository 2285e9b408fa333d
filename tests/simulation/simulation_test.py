"""A whole cluster in virtual time: it does its work under faults, a seed repeats it exactly, and the checkers
find planted bugs.

RAY_MONO_SIM_SEED=N runs the seeded test with that seed alone; tests/simulation/explore.py runs many.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.gcs.actor.actor_effects import Effect
from ray_mono.gcs.actor.actor_manager import ActorManager
from ray_mono.gcs.actor.actor_state import ActorRegistration
from ray_mono.raylet.effects import Effect as RayletEffect
from ray_mono.raylet.effects import Rejected, RejectionKind
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.leases import LeaseRequest
from ray_mono.raylet.scheduling.ledger import ResourceLedger
from ray_mono.raylet.worker.binding import Binding
from ray_mono.raylet.worker.worker_pool import WorkerPool
from ray_mono.raylet.worker.worker_states import Worker
from tests.simulation.actor_programs import ActorScript
from tests.simulation.draws import draw_scenario
from tests.simulation.explore import draw
from tests.simulation.loop import SimulationError
from tests.simulation.network import NetworkKnobs
from tests.simulation.scenario import (
    Fault,
    FaultKind,
    HeadFault,
    Outcome,
    Scenario,
    run_scenario,
)
from tests.simulation.scripts import TaskScript
from tests.simulation.storage import CommitStep
from tests.simulation.world import World

SEED = os.environ.get("RAY_MONO_SIM_SEED")
SEEDS = [int(SEED)] if SEED else list(range(50))
ONE_CPU = ResourceSet.from_units({"CPU": 1})


def two_nodes(num_tasks: int, *faults: Fault) -> Scenario:
    """A GCS, two raylets with two CPUs each, and tasks of 10 ms."""
    return Scenario(
        node_units=({"CPU": 2}, {"CPU": 2}),
        num_drivers=1,
        tasks=((TaskScript(compute_s=0.01), ONE_CPU),) * num_tasks,
        faults=faults,
    )


def test_a_thousand_tasks_complete_although_a_raylet_is_killed_midway() -> None:
    killed = Fault(at_s=1.0, kind=FaultKind.KILL_RAYLET, lasts_s=30.0, choice=0)
    outcome = run_scenario(0, two_nodes(1000, killed))
    assert outcome.outcomes == {"done": 1000}
    assert outcome.retries > 0


def test_without_faults_every_task_runs_once() -> None:
    outcome = run_scenario(0, two_nodes(200))
    assert outcome.outcomes == {"done": 200}
    assert outcome.retries == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_run_with_delays_and_faults_is_clean(seed: int) -> None:
    outcome = run_scenario(seed, draw_scenario(seed))
    assert outcome.outcomes["done"] > 0, f"seed {seed}: {outcome}"


def run_in_a_process(seed: int, num_tasks: int, hash_seed: int) -> str:
    """The digest of a seed's run in an interpreter of its own."""
    program = (
        "from tests.simulation.explore import draw;"
        "from tests.simulation.scenario import run_scenario;"
        f"print(run_scenario({seed}, draw({seed}, {num_tasks})).digest)"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# In the second nodes are drained that hold large values.
@pytest.mark.parametrize(("seed", "num_tasks"), [(7, 60), (5001176, 120)])
def test_a_seed_gives_one_digest_whatever_the_hash_seed(seed: int, num_tasks: int) -> None:
    here = run_scenario(seed, draw(seed, num_tasks)).digest
    assert run_scenario(seed, draw(seed, num_tasks)).digest == here
    assert run_in_a_process(seed, num_tasks, hash_seed=1) == here
    assert run_in_a_process(seed, num_tasks, hash_seed=2) == here


def test_another_seed_gives_another_digest() -> None:
    assert run_scenario(1, two_nodes(20)).digest != run_scenario(2, two_nodes(20)).digest


# ---- planted bugs: judged from outside, without the raylets' own recounting


def run_with_bug(scenario: Scenario) -> Outcome:
    return run_scenario(0, scenario, check_internals=False)


def test_a_ledger_that_grants_the_same_cpu_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ResourceLedger.allocate
    count = 0

    def allocate(
        ledger: ResourceLedger, lease_id: bytes, resources: ResourceSet, kept: ResourceSet | None = None
    ) -> dict[str, tuple[int, ...]]:
        nonlocal count
        count += 1
        free = ledger.available
        instances = honest(ledger, lease_id, resources, kept)
        if count == 2:
            ledger._available = free
        return instances

    monkeypatch.setattr(ResourceLedger, "allocate", allocate)
    with pytest.raises(SimulationError, match=r"has {CPU: 2} and its leases hold {CPU: 3}"):
        run_with_bug(two_nodes(200))


def test_a_pool_that_hands_a_worker_out_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = WorkerPool.take

    def take(pool: WorkerPool, binding: Binding, lease_id: bytes, for_actor: bool, now_s: float) -> Worker:
        leased = [worker for worker in pool if worker.lease_id is not None]
        return leased[0] if leased else honest(pool, binding, lease_id, for_actor, now_s)

    monkeypatch.setattr(WorkerPool, "take", take)
    with pytest.raises(SimulationError, match="has two leases"):
        run_with_bug(two_nodes(50))


def test_a_lost_return_of_a_worker_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResourceLedger, "release", lambda ledger, lease_id: None)
    with pytest.raises(SimulationError) as raised:
        run_with_bug(two_nodes(50))
    assert "seed 0" in "".join(raised.value.__notes__)


def test_a_job_that_is_called_over_and_whose_driver_lives_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LeaseManager.request
    count = 0

    def request(manager: LeaseManager, wanted: LeaseRequest, now_s: float) -> list[RayletEffect]:
        nonlocal count
        count += 1
        if count == 3:
            return [
                Rejected(wanted.lease_id, RejectionKind.JOB_FINISHED, f"job {wanted.job_id.hex()} is over")
            ]
        return honest(manager, wanted, now_s)

    monkeypatch.setattr(LeaseManager, "request", request)
    with pytest.raises(SimulationError, match="job 01000000 is said to be over, and its driver lives"):
        run_with_bug(two_nodes(1000))


def test_messages_that_are_slow_and_connections_that_break_cost_no_task() -> None:
    knobs = NetworkKnobs(slow_probability=0.2, break_probability=0.02)
    scenario = two_nodes(100)
    outcome = run_scenario(3, Scenario(scenario.node_units, 1, scenario.tasks, max_retries=20, knobs=knobs))
    assert outcome.outcomes == {"done": 100}


def the_gcs_dies_after(seconds: float) -> Scenario:
    """Ten actors, and a GCS that is away for half a second while it places them."""
    fault = Fault(at_s=seconds, kind=FaultKind.RESTART_GCS, lasts_s=0.5, choice=0)
    return dataclasses.replace(two_nodes(0, fault), actors=(ActorScript(num_calls=3),) * 10)


def test_no_actors_lease_outlives_the_gcs_that_asked_for_it_and_never_heard() -> None:
    for milliseconds in range(0, 70, 4):
        outcome = run_scenario(0, the_gcs_dies_after(milliseconds / 1000))
        # Its driver has lost the GCS, too.
        assert sum(outcome.actor_calls) == 30, f"the GCS died after {milliseconds} ms"


@pytest.mark.parametrize("step", list(CommitStep))
def test_no_step_of_the_heads_store_is_a_bad_moment_for_its_end(step: CommitStep) -> None:
    """Each actor is made once and answers all its calls, whenever the GCS dies of them."""
    actors = (ActorScript(num_calls=3),) * 3
    scenario = dataclasses.replace(two_nodes(20), actors=actors)
    commits = run_scenario(0, scenario).head_commits
    assert commits >= 10
    for commit in range(commits):
        outcome = run_scenario(0, dataclasses.replace(scenario, head_faults=(HeadFault(commit, step, 0.5),)))
        assert outcome.outcomes == {"done": 20}, f"commit {commit}"
        assert (outcome.actor_calls, outcome.actor_restarts) == ((9, 0), 0), f"commit {commit}"


def test_a_raylet_that_keeps_what_the_gcs_does_not_want_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseManager, "disowned", lambda manager, lease_ids, now_s: [])
    with pytest.raises(SimulationError, match="has 1 leases, the first .*for_actor=True"):
        run_with_bug(the_gcs_dies_after(0.02))


# ---- tasks of tasks, and cancels


def with_tasks(*scripts: TaskScript) -> Scenario:
    return dataclasses.replace(two_nodes(0), tasks=tuple((script, ONE_CPU) for script in scripts))


def test_tasks_that_wait_for_their_own_tasks_leave_them_the_cpus() -> None:
    parent = TaskScript(num_children=3, levels=2)
    outcome = run_scenario(0, with_tasks(*[parent] * 8))
    assert outcome.outcomes == {"done": 8 * (1 + 3 + 9)}
    assert outcome.retries == 0


def test_a_cancelled_task_ends_wherever_it_is() -> None:
    waits = TaskScript(compute_s=5.0, cancelled_after_s=1.0)
    outcome = run_scenario(0, with_tasks(*[waits] * 20))
    assert outcome.outcomes == {"cancelled": 20}
    assert outcome.retries == 0


def test_a_task_that_is_cancelled_by_force_ends_with_its_worker_and_the_tasks_of_its_own() -> None:
    script = TaskScript(
        compute_s=0.05, num_children=2, levels=2, cancelled_after_s=0.08, is_cancelled_by_force=True
    )
    outcome = run_scenario(0, with_tasks(*[script] * 4))
    assert outcome.outcomes["cancelled"] >= 4
    assert set(outcome.outcomes) <= {"cancelled", "done", "its owner died"}


# ---- actors


def actors_on_two_nodes(*actors: ActorScript) -> Scenario:
    return Scenario(node_units=({"CPU": 2}, {"CPU": 2}), num_drivers=1, tasks=(), actors=actors)


def test_actors_answer_every_call_and_end_with_their_last_handle() -> None:
    outcome = run_scenario(0, actors_on_two_nodes(*[ActorScript(num_calls=10)] * 5))
    assert outcome.actor_calls == (50, 0)
    assert outcome.actor_restarts == 0


def test_an_actor_that_dies_is_restarted_and_its_calls_are_retried() -> None:
    script = ActorScript(
        num_calls=10, max_restarts=2, max_task_retries=1, dies_in_constructors=1, dies_at_call=4
    )
    outcome = run_scenario(0, actors_on_two_nodes(script))
    assert outcome.actor_calls == (10, 0)
    assert outcome.actor_restarts == 2


def test_an_actor_without_restarts_fails_the_calls_that_it_did_not_answer() -> None:
    outcome = run_scenario(0, actors_on_two_nodes(ActorScript(num_calls=10, dies_at_call=4)))
    answered, failed = outcome.actor_calls
    assert (answered, answered + failed) == (4, 10)


def test_an_actor_that_is_restarted_too_often_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ActorManager.register

    def register(
        manager: ActorManager, registration: ActorRegistration, now_s: float, awaits_arguments: bool
    ) -> list[Effect]:
        generous = dataclasses.replace(registration, max_restarts=registration.max_restarts + 1)
        return honest(manager, generous, now_s, awaits_arguments)

    monkeypatch.setattr(ActorManager, "register", register)
    script = ActorScript(max_restarts=1, max_task_retries=5, dies_in_constructors=2)
    with pytest.raises(SimulationError, match="may be restarted 1 times"):
        run_with_bug(actors_on_two_nodes(script))


def test_an_error_that_a_service_logs_ends_the_run_unless_it_is_a_faults() -> None:
    async def log(what: str) -> None:
        logging.getLogger("ray_mono.a_service").error("object 1 cannot be %s", what)

    with World(0, explained=("read: the fault",)) as world:
        world.run(log("read: the fault"), 1.0)
    for what in ("read", "read: the fault, and more"):
        with pytest.raises(SimulationError, match=f"logged: object 1 cannot be {what}"):
            with World(0, explained=("read: the fault",)) as world:
                world.run(log(what), 1.0)

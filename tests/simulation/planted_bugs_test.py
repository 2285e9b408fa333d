"""Bugs planted in the core worker, and that the seeds of the suite find them.

    python -m tests.simulation.planted_bugs_test      which of the suite's seeds finds which, by hand

A test begins at a seed that is known to find its bug. Where that one does not find it any more, the others of
the suite are tried.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.core_worker.objects.generator_streams import Stream
from ray_mono.core_worker.task_execution.item_sender import ItemSender
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.core_worker.task_submission.lease import Lease
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.task_manager import PendingTask, TaskManager
from ray_mono.protobuf import raylet_pb2
from tests.simulation.loop import SimulationError
from tests.simulation.scenario import draw_scenario, run_scenario

NUM_SEEDS = 50
"""Of the suite."""
HANGS_AFTER_S = 150.0
"""Virtual seconds after the last fault that say enough here: the clean runs of the suite take less than half
of these."""

Plant = Callable[[pytest.MonkeyPatch], None]


# ---- tasks that are given back


def forgets_what_was_given_back(patch: pytest.MonkeyPatch) -> None:
    """A task that a worker did not start waits nowhere."""
    patch.setattr(NormalTaskSubmitter, "again", lambda submitter, queue, task: task.not_started())


def runs_what_it_gave_back(patch: pytest.MonkeyPatch) -> None:
    """A worker answers that it did not start a task, and keeps it."""
    honest = TaskReceiver.give_back

    def give_back(receiver: TaskReceiver, connection: Any = None) -> None:
        queue = deque(receiver.queue)
        honest(receiver, connection)
        receiver.queue = queue

    patch.setattr(TaskReceiver, "give_back", give_back)


def takes_back_one_that_has_begun(patch: pytest.MonkeyPatch) -> None:
    """Off by one, where a raylet has taken back what a worker had not begun."""
    honest = Lease.take_unbegun
    patch.setattr(Lease, "take_unbegun", lambda lease, num_begun: honest(lease, num_begun - 1))


# ---- the life of a lease


def never_returns_a_lease(patch: pytest.MonkeyPatch) -> None:
    """An idle lease is forgotten, and the raylet is not told."""

    def give_back(submitter: NormalTaskSubmitter, lease: Lease, leaving: bool = False) -> None:
        if not lease.is_over:
            lease.returned()
            lease.queue.forget(lease)

    patch.setattr(NormalTaskSubmitter, "_return", give_back)


def returns_a_lease_twice(patch: pytest.MonkeyPatch) -> None:
    honest = NormalTaskSubmitter._return

    def give_back(submitter: NormalTaskSubmitter, lease: Lease, leaving: bool = False) -> None:
        is_over = lease.is_over
        honest(submitter, lease, leaving)
        if not is_over:
            lease.raylet.ReturnWorker.notify(raylet_pb2.ReturnWorkerRequest(lease_id=lease.lease_id))

    patch.setattr(NormalTaskSubmitter, "_return", give_back)


def uses_a_lease_that_others_wait_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NormalTaskSubmitter, "_on_reclaimed", lambda submitter, named: None)


def pushes_on_a_lease_that_it_returned(patch: pytest.MonkeyPatch) -> None:
    """The lease is sent back, and stays among the idle ones."""

    def give_back(submitter: NormalTaskSubmitter, lease: Lease, leaving: bool = False) -> None:
        if not lease.is_over:
            lease.raylet.ReturnWorker.notify(raylet_pb2.ReturnWorkerRequest(lease_id=lease.lease_id))

    patch.setattr(NormalTaskSubmitter, "_return", give_back)


# ---- a stream's backpressure


def loses_a_credit(patch: pytest.MonkeyPatch) -> None:
    """What the user takes is not told to the generator, now and then."""
    honest = Stream._acknowledge

    def acknowledge(stream: Stream) -> None:
        if stream.num_taken % 3 or stream.is_dropped:
            honest(stream)

    patch.setattr(Stream, "_acknowledge", acknowledge)


def makes_one_item_too_many(patch: pytest.MonkeyPatch) -> None:
    honest = ItemSender.acknowledge

    def acknowledge(sender: ItemSender, request: Any) -> None:
        request.taken += 1
        honest(sender, request)

    patch.setattr(ItemSender, "acknowledge", acknowledge)


def does_not_tell_a_new_attempt_what_was_taken(patch: pytest.MonkeyPatch) -> None:
    honest = Stream.add_part

    def add_part(stream: Stream, peer: Any, part: Any) -> None:
        num_taken = stream.num_taken
        stream.num_taken = 0
        try:
            honest(stream, peer, part)
        finally:
            stream.num_taken = num_taken

    patch.setattr(Stream, "add_part", add_part)


# ---- others


def retries_under_the_same_number(patch: pytest.MonkeyPatch) -> None:
    """An attempt that was lost is made again, and not as the next one."""
    honest = TaskManager.next_attempt

    def next_attempt(tasks: TaskManager, task: PendingTask, why: str | bytes) -> None:
        attempt = task.request.attempt
        honest(tasks, task, why)
        task.request.attempt = attempt

    patch.setattr(TaskManager, "next_attempt", next_attempt)


def keeps_items_that_nobody_took(patch: pytest.MonkeyPatch) -> None:
    """A stream that is dropped holds on to what it received."""

    def drop(stream: Stream) -> None:
        stream.num_taken = stream.num_received
        honest(stream)

    honest = Stream.drop
    patch.setattr(Stream, "drop", drop)


def sends_an_actors_calls_again_in_another_order(patch: pytest.MonkeyPatch) -> None:
    honest = CalledActor.take_sent
    patch.setattr(CalledActor, "take_sent", lambda actor: honest(actor)[::-1])


def lets_a_call_overtake_those_that_wait(patch: pytest.MonkeyPatch) -> None:
    """A call goes out at once, although earlier ones wait for the actor."""
    honest = ActorTaskSubmitter._connect

    def connect(submitter: ActorTaskSubmitter, actor: CalledActor, worker: Any, why: str) -> None:
        actor.queue.rotate(1)
        honest(submitter, actor, worker, why)

    patch.setattr(ActorTaskSubmitter, "_connect", connect)


PLANTS: list[tuple[Plant, int]] = [
    (forgets_what_was_given_back, 0),
    (runs_what_it_gave_back, 6),
    (takes_back_one_that_has_begun, 0),
    (never_returns_a_lease, 0),
    (returns_a_lease_twice, 0),
    (uses_a_lease_that_others_wait_for, 0),
    (pushes_on_a_lease_that_it_returned, 0),
    (loses_a_credit, 5),
    (makes_one_item_too_many, 11),
    (does_not_tell_a_new_attempt_what_was_taken, 43),
    (retries_under_the_same_number, 0),
    (keeps_items_that_nobody_took, 1),
    (sends_an_actors_calls_again_in_another_order, 18),
    (lets_a_call_overtake_those_that_wait, 1),
]
"""With the seed to begin at."""


def found_by(plant: Plant, first: int) -> tuple[int, SimulationError] | None:
    """The seed that finds a bug, and how."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for place in range(NUM_SEEDS):
            seed = (first + place) % NUM_SEEDS
            try:
                run_scenario(seed, draw_scenario(seed), liveness_s=HANGS_AFTER_S)
            except SimulationError as error:
                return seed, error
    return None


@pytest.mark.parametrize(("plant", "first"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_the_seeds_of_the_suite_find(plant: Plant, first: int) -> None:
    assert found_by(plant, first) is not None


def main() -> None:
    for plant, _ in PLANTS:
        found = found_by(plant, 0)
        if found is None:
            print(f"{plant.__name__}: not found", flush=True)
        else:
            seed, error = found
            print(f"{plant.__name__}: seed {seed}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()

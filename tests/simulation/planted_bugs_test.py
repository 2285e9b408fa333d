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
from ray_mono.core_worker.task_submission import lost_worker
from ray_mono.core_worker.task_submission.actor_task_submitter import ActorTaskSubmitter
from ray_mono.core_worker.task_submission.called_actor import CalledActor
from ray_mono.core_worker.task_submission.lease import Lease
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.core_worker.task_submission.pending_task import PendingTask
from ray_mono.core_worker.task_submission.reclaims import Reclaims
from ray_mono.core_worker.task_submission.task_manager import TaskManager
from ray_mono.protobuf import raylet_pb2
from tests.simulation.draws import draw_scenario
from tests.simulation.loop import SimulationError
from tests.simulation.scenario import run_scenario

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
    patch.setattr(Reclaims, "_named", lambda reclaims, named: None)


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


# ---- retries and cancels


def never_retries(patch: pytest.MonkeyPatch) -> None:
    """A task fails with its first worker."""

    def lost(tasks: TaskManager, task: PendingTask, error: Callable[[], BaseException], **_: bool) -> None:
        if tasks.is_pending(task):
            tasks.fail_unless_cancelled(task, error())

    patch.setattr(TaskManager, "lost", lost)


def retries_once_less(patch: pytest.MonkeyPatch) -> None:
    honest = TaskManager.lost

    def lost(tasks: TaskManager, task: PendingTask, error: Callable[[], BaseException], **how: bool) -> None:
        if task.retries_left == 1:
            task.give_up_retries()
        honest(tasks, task, error, **how)

    patch.setattr(TaskManager, "lost", lost)


def never_uses_up_retries(patch: pytest.MonkeyPatch) -> None:
    honest = PendingTask.again

    def again(task: PendingTask, is_free: bool = False) -> None:
        retries_left = task.retries_left
        honest(task, is_free)
        task.retries_left = retries_left

    patch.setattr(PendingTask, "again", again)


def counts_a_give_back_as_a_retry(patch: pytest.MonkeyPatch) -> None:
    honest = PendingTask.not_started

    def not_started(task: PendingTask) -> None:
        honest(task)
        task.retries_left = max(0, task.retries_left - 1)

    patch.setattr(PendingTask, "not_started", not_started)


def cancels_the_one_behind_too(patch: pytest.MonkeyPatch) -> None:
    honest = NormalTaskSubmitter.cancel

    def cancel(submitter: NormalTaskSubmitter, task: PendingTask, request: Any) -> None:
        for queue in submitter._queues.values():
            if task in queue.tasks and queue.tasks[-1] is not task:
                behind = queue.tasks[queue.tasks.index(task) + 1]
                honest(submitter, behind, request)
        honest(submitter, task, request)

    patch.setattr(NormalTaskSubmitter, "cancel", cancel)


def runs_what_was_cancelled_and_given_back(patch: pytest.MonkeyPatch) -> None:
    def again(submitter: NormalTaskSubmitter, queue: Any, task: PendingTask) -> None:
        if submitter._tasks.is_pending(task):
            task.not_started()
            queue.take_back(task)

    patch.setattr(NormalTaskSubmitter, "again", again)


# ---- what a worker leaves behind


def settles_a_late_worker_twice(patch: pytest.MonkeyPatch) -> None:
    """The raylet answers after all, and that counts, too."""
    honest = lost_worker._when_known

    def when_known(env: Any, lease: Lease, settle: Callable[..., None], asks_for_words: bool) -> None:
        def twice(error: BaseException, words: Any) -> None:
            settle(error, words)
            if words is None and asks_for_words:
                settle(error, words)

        honest(env, lease, twice, asks_for_words)

    patch.setattr(lost_worker, "_when_known", when_known)


# ---- streams that nobody takes from


def does_not_tell_the_generator_of_a_dropped_stream(patch: pytest.MonkeyPatch) -> None:
    honest = Stream._acknowledge

    def acknowledge(stream: Stream) -> None:
        if not stream.is_dropped:
            honest(stream)

    patch.setattr(Stream, "_acknowledge", acknowledge)


def lets_a_cancelled_generator_rest(patch: pytest.MonkeyPatch) -> None:
    """One that waits for its items to be taken is not woken."""
    patch.setattr(ItemSender, "stop", lambda sender: setattr(sender, "is_stopped", True))


# ---- others


def retries_under_the_same_number(patch: pytest.MonkeyPatch) -> None:
    """An attempt that was lost is made again, and not as the next one."""
    honest = TaskManager.next_attempt

    def next_attempt(tasks: TaskManager, task: PendingTask, why: str | bytes, is_free: bool = False) -> None:
        attempt = task.request.attempt
        honest(tasks, task, why, is_free)
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
    """What was sent waits in front of the others, the last one first."""

    def queue_again(actor: CalledActor, tasks: list[PendingTask]) -> None:
        actor.queue.extendleft(tasks)

    patch.setattr(CalledActor, "queue_again", queue_again)


def lets_a_call_overtake_those_that_wait(patch: pytest.MonkeyPatch) -> None:
    """Where an actor can be reached, the call that came last goes out first."""
    honest = CalledActor.connect

    def connect(actor: CalledActor, worker: Any, peer: Any) -> None:
        honest(actor, worker, peer)
        actor.queue.rotate(1)

    patch.setattr(CalledActor, "connect", connect)


def lets_a_call_overtake_one_that_waits_for_an_argument(patch: pytest.MonkeyPatch) -> None:
    honest = ActorTaskSubmitter._pump

    def pump(submitter: ActorTaskSubmitter, actor: CalledActor) -> None:
        ready = [task for task in actor.queue if not task.waits_for_arguments]
        if actor.peer is not None and ready and actor.queue[0] is not ready[0]:
            actor.queue.remove(ready[0])
            actor.queue.appendleft(ready[0])
        honest(submitter, actor)

    patch.setattr(ActorTaskSubmitter, "_pump", pump)


PLANTS: list[tuple[Plant, int]] = [
    (forgets_what_was_given_back, 0),
    (runs_what_it_gave_back, 6),
    (takes_back_one_that_has_begun, 0),
    (never_returns_a_lease, 4),
    (returns_a_lease_twice, 0),
    (uses_a_lease_that_others_wait_for, 0),
    (pushes_on_a_lease_that_it_returned, 0),
    (loses_a_credit, 2),
    (makes_one_item_too_many, 2),
    (does_not_tell_a_new_attempt_what_was_taken, 43),
    (retries_under_the_same_number, 0),
    (keeps_items_that_nobody_took, 2),
    (sends_an_actors_calls_again_in_another_order, 5),
    (lets_a_call_overtake_those_that_wait, 2),
    (never_retries, 0),
    (retries_once_less, 0),
    (never_uses_up_retries, 1),
    (counts_a_give_back_as_a_retry, 3),
    (cancels_the_one_behind_too, 0),
    (runs_what_was_cancelled_and_given_back, 31),
    (settles_a_late_worker_twice, 0),
    (does_not_tell_the_generator_of_a_dropped_stream, 11),
    (lets_a_cancelled_generator_rest, 8),
    (lets_a_call_overtake_one_that_waits_for_an_argument, 2),
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

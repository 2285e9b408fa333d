"""Identifiers nest as Ray's do, and are made the same way every time."""

from __future__ import annotations

import pickle
import random

import pytest

from ray_mono.common import ids
from ray_mono.common.ids import ActorID, JobID, NodeID, ObjectID, TaskID, WorkerID

JOB = JobID.from_int(7)
DRIVER = TaskID.for_driver(JOB.binary())


@pytest.mark.parametrize(
    ("kind", "size"), [(JobID, 4), (ActorID, 16), (TaskID, 24), (ObjectID, 28), (NodeID, 28), (WorkerID, 28)]
)
def test_sizes_are_rays_and_another_size_is_refused(kind: type[ids.BaseID], size: int) -> None:
    assert kind.SIZE == len(kind.nil().binary()) == size and kind.nil().is_nil()
    with pytest.raises(ValueError, match=f"{kind.__name__} takes {size} bytes"):
        kind(bytes(size + 1))


def test_an_object_leads_back_to_its_task_actor_and_job() -> None:
    actor = ActorID.of(JOB.binary(), DRIVER.binary(), 1)
    task = TaskID(ids.child_task_id(ids.task_seed(DRIVER.binary()), 1, actor.binary()))
    returned = ObjectID(ids.object_id_bytes(task.binary(), 3))
    assert (returned.task_id, returned.index) == (task, 3)
    assert task.actor_id() == actor and task.job_id() == actor.job_id == JOB and JOB.int() == 7


def test_ids_are_derived_and_differ_by_counter_and_kind() -> None:
    actor = ids.nil_actor_of(JOB.binary())
    made = [ids.child_task_id(ids.task_seed(DRIVER.binary()), counter, actor) for counter in range(100)]
    assert made == [
        ids.child_task_id(ids.task_seed(DRIVER.binary()), counter, actor) for counter in range(100)
    ]
    actors = [ActorID.of(JOB.binary(), DRIVER.binary(), counter).binary() for counter in range(100)]
    assert len(set(made)) == len(set(actors)) == 100
    assert not {task[:8] for task in made} & {actor_id[:8] for actor_id in actors}


def test_what_each_attempt_of_a_task_makes_has_ids_of_its_own_in_the_same_job_and_actor() -> None:
    task = DRIVER.binary()
    made = [ids.of_attempt(task, attempt) for attempt in range(4)]
    assert made[0] == task and len(set(made)) == 4
    assert {task_id[8:] for task_id in made} == {task[8:]}
    assert ids.of_attempt(task, 2) == made[2]


def test_puts_and_returns_never_share_an_index() -> None:
    task = bytes(24)
    assert ids.object_id_bytes(task, ids.PUT_INDEX_BASE) != ids.object_id_bytes(task, ids.PUT_INDEX_BASE - 1)
    assert ObjectID(ids.object_id_bytes(task, ids.PUT_INDEX_BASE)).index == ids.PUT_INDEX_BASE


def test_ids_compare_within_their_kind_and_travel() -> None:
    node = NodeID.from_random(random.Random(1))
    assert (
        node
        == NodeID.from_random(random.Random(1))
        == NodeID.from_hex(node.hex())
        == pickle.loads(pickle.dumps(node))
    )
    assert node != WorkerID(node.binary()) and node != node.binary()
    assert len({node, NodeID(node.binary())}) == 1
    assert NodeID(b"\0" * 28) < NodeID(b"\1" * 28)


def test_each_object_has_a_short_name_of_its_own() -> None:
    actor = ActorID.of(JOB.binary(), DRIVER.binary(), 1).binary()
    creation = TaskID.for_actor_creation(actor).binary()
    task = ids.child_task_id(ids.task_seed(DRIVER.binary()), 1, actor)
    other_driver = TaskID.for_driver(JobID.from_int(8).binary()).binary()
    made_by = (DRIVER.binary(), other_driver, creation, task)
    put = [ids.PUT_INDEX_BASE + number for number in (1, 2)]
    objects = [ids.object_id_bytes(each, index) for each in made_by for index in put]
    objects += [ids.object_id_bytes(task, index) for index in (1, 2)]
    objects.append(ids.object_id_bytes(creation, 1))
    names = [ids.object_name(each) for each in objects]
    assert len(set(names)) == len(objects)
    assert {
        "object 1 put by the driver of job 07000000",
        f"object 2 put by the constructor of actor {actor.hex()[:8]}",
        f"object {task.hex()[:8]}…",
        f"object {task.hex()[:8]}… (number 2)",
        f"object 1 put by task {task.hex()[:8]}…",
    } <= set(names)

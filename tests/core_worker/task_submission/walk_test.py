"""The walk from what waits to what it waits for: what moves, what is stuck, and what waits for itself."""

from __future__ import annotations

import pytest

from ray_mono.common.explanation import WaitCode
from ray_mono.core_worker.task_submission.explainer import SUBJECTS_MAX, Story, Walk
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject
RUNS, STUCK = "RUNNING", "INFEASIBLE"


class Cluster:
    """What each subject waits for: names of others, "|" before those of which one is enough, "2|" where two
    are needed, "~" where it goes on when a time is over, "held" before the calls of an actor that holds it;
    or a code."""

    def __init__(self, **reasons: str) -> None:
        self.reasons = reasons
        self.asked: list[str] = []

    def ask(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        name = subject.id.decode()
        self.asked.append(name)
        told = self.reasons[name]
        if told in WaitCode.__members__:
            return common_pb2.WaitReason(code=told, text=name)
        times_out, told = told.startswith("~"), told.lstrip("~")
        num_needed, is_any, listed = told.rpartition("|")
        calls = listed.removeprefix("held")
        return common_pb2.WaitReason(
            code=WaitCode.HELD_BY_ACTOR if "held" in told else WaitCode.TASK,
            text=name,
            waits_for=map(subject_of, calls.split()),
            any=bool(is_any),
            num_needed=int(num_needed or 0),
            times_out=times_out,
        )

    def story(self) -> Story:
        return Walk(lambda subjects: [*map(self.ask, subjects)]).begin(subject_of("a"))


def subject_of(name: str) -> common_pb2.WaitSubject:
    return Subject(kind=Subject.TASK, id=name.encode())


def names(story: Story) -> list[str]:
    return [link.reason.text for link in story.links]


@pytest.mark.parametrize(
    ("reasons", "moves", "way"),
    [
        ({"a": RUNS}, True, "a"),
        ({"a": STUCK}, False, "a"),
        ({"a": "b", "b": "c", "c": RUNS}, True, "a b c"),
        ({"a": "b", "b": "c", "c": STUCK}, False, "a b c"),
        # All are needed: the first that is stuck is the way.
        ({"a": "b c d", "b": RUNS, "c": STUCK, "d": STUCK}, False, "a c"),
        ({"a": "b c", "b": RUNS, "c": RUNS}, True, "a b"),
        # One is enough: the first that moves is the way.
        ({"a": "|b c d", "b": STUCK, "c": RUNS, "d": RUNS}, True, "a c"),
        ({"a": "|b c", "b": STUCK, "c": STUCK}, False, "a b"),
        # Two are needed: where one of them moves, the others decide.
        ({"a": "2|b c d", "b": RUNS, "c": STUCK, "d": RUNS}, True, "a b"),
        ({"a": "2|b c d", "b": RUNS, "c": STUCK, "d": STUCK}, False, "a c"),
        # What goes on when a time is over tells what it waits for.
        ({"a": "b", "b": "~c", "c": STUCK}, True, "a b c"),
        # What an actor holds it holds whatever its calls do.
        ({"a": "held b", "b": RUNS}, False, "a"),
        ({"a": "held b", "b": STUCK}, False, "a"),
        # What two ways lead to moves on both.
        ({"a": "b c", "b": "d", "c": "d", "d": RUNS}, True, "a b d"),
    ],
)
def test_the_way_leads_to_what_decides(reasons: dict[str, str], moves: bool, way: str) -> None:
    story = Cluster(**reasons).story()
    assert (story.moves, names(story), story.cycle_begins) == (moves, way.split(), None)


@pytest.mark.parametrize(
    ("reasons", "way", "cycle"),
    [
        ({"a": "a"}, "a", "a"),
        ({"a": "b", "b": "a"}, "a b", "a b"),
        ({"a": "b", "b": "c", "c": "b"}, "a b c", "b c"),
        # Who holds it waits for it, or is stuck otherwise: the circle says more.
        ({"a": "|b c", "b": STUCK, "c": "a"}, "a c", "a c"),
        ({"a": "|b c", "b": "a", "c": STUCK}, "a b", "a b"),
        ({"a": "b c", "b": RUNS, "c": "a"}, "a c", "a c"),
        # A call waits for what its own actor holds.
        ({"a": "b", "b": "held a"}, "a b", "a b"),
    ],
)
def test_what_waits_for_itself_is_stuck(reasons: dict[str, str], way: str, cycle: str) -> None:
    story = Cluster(**reasons).story()
    assert not story.moves and names(story) == way.split()
    assert story.cycle_begins is not None and names(story)[story.cycle_begins :] == cycle.split()


def test_a_circle_that_another_holder_will_end_is_none() -> None:
    story = Cluster(a="|b c", b="a", c=RUNS).story()
    assert story.moves and names(story) == ["a", "c"] and story.cycle_begins is None


@pytest.mark.parametrize(
    ("is_any", "code", "moves"),
    [(True, STUCK, True), (True, RUNS, True), (False, STUCK, False), (False, RUNS, True)],
)
def test_where_one_that_was_not_told_may_be_enough_nothing_is_stuck(
    is_any: bool, code: str, moves: bool
) -> None:
    def ask(subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if subject.id == b"a":
            waits_for = map(subject_of, "bc")
            return common_pb2.WaitReason(code=WaitCode.GET, waits_for=waits_for, any=is_any, num_others=3)
        return common_pb2.WaitReason(code=code)

    story = Walk(lambda subjects: [*map(ask, subjects)]).begin(subject_of("a"))
    assert story.moves is moves and [link.reason.code for link in story.links] == ["GET", code]


def test_an_object_in_two_stores_does_not_wait_for_itself() -> None:
    def in_store(node_id: bytes) -> common_pb2.WaitSubject:
        return Subject(kind=Subject.STORE, id=b"object", at=common_pb2.Address(node_id=node_id))

    def ask(subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if subject.at.node_id == b"far":
            return common_pb2.WaitReason(code=WaitCode.READY)
        return common_pb2.WaitReason(code=WaitCode.TRANSFER, waits_for=[in_store(b"far")])

    story = Walk(lambda subjects: [*map(ask, subjects)]).begin(in_store(b"near"))
    assert story.moves and [link.reason.code for link in story.links] == ["TRANSFER", "READY"]


def test_the_walk_is_bounded() -> None:
    chain = [f"n{number}" for number in range(2 * SUBJECTS_MAX)]
    reasons = dict(zip(chain, chain[1:], strict=False)) | {chain[-1]: STUCK, "a": chain[0]}
    cluster = Cluster(**reasons)
    story = cluster.story()
    assert len(cluster.asked) == SUBJECTS_MAX == len(story.links) and story.moves


def test_a_long_chain_is_followed_to_its_end() -> None:
    chain = [f"n{number}" for number in range(1500)]
    reasons = dict(zip(chain, chain[1:], strict=False)) | {chain[-1]: STUCK, "a": chain[0]}
    story = Cluster(**reasons).story()
    assert not story.moves and story.links[-1].reason.code == STUCK


def test_what_moves_is_asked_once() -> None:
    cluster = Cluster(a="b c d", b="e", c="e", d="e", e=RUNS)
    assert cluster.story().moves and cluster.asked.count("e") == 1

"""The walk from what waits to what it waits for: what moves, what is stuck, and what waits for itself."""

from __future__ import annotations

import pytest

from ray_mono.common.explanation import Outlook, WaitCode
from ray_mono.core_worker.task_submission.wait_walk import SUBJECTS_MAX, Story, Walk
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject
MOVES, OPEN, STUCK = Outlook.MOVES, Outlook.OPEN, Outlook.STUCK
RUNS, LACKS, ASKED = "RUNNING", "INFEASIBLE", "BACKPRESSURE"


class Cluster:
    """What each subject waits for: names of others, "|" before those of which one is enough, "2|" where two
    are needed, "~" where it goes on when a time is over, "?" where something else may keep it waiting, "held"
    before the calls of an actor that holds it, of which capitals are the actor as its owner knows it; or a
    code."""

    def __init__(self, **reasons: str) -> None:
        self.reasons = reasons
        self.asked: list[str] = []

    def ask(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        name = subject.id.decode()
        self.asked.append(name)
        told = self.reasons[name]
        if told in WaitCode.__members__:
            return common_pb2.WaitReason(code=told, text=name)
        times_out, is_unsure, told = "~" in told, "?" in told, told.lstrip("~?")
        num_needed, is_any, listed = told.rpartition("|")
        calls = listed.removeprefix("held")
        return common_pb2.WaitReason(
            code=WaitCode.HELD_BY_ACTOR if "held" in told else WaitCode.TASK,
            text=name,
            waits_for=map(subject_of, calls.split()),
            any=bool(is_any),
            num_needed=int(num_needed or 0),
            times_out=times_out,
            unsure=is_unsure,
        )

    def story(self) -> Story:
        return Walk(lambda subjects: [*map(self.ask, subjects)]).begin(subject_of("a"))


def subject_of(name: str) -> common_pb2.WaitSubject:
    return Subject(kind=Subject.ACTOR if name.isupper() else Subject.TASK, id=name.encode())


def names(story: Story) -> list[str]:
    return [link.reason.text for link in story.links]


@pytest.mark.parametrize(
    ("reasons", "outlook", "way"),
    [
        ({"a": RUNS}, MOVES, "a"),
        ({"a": LACKS}, STUCK, "a"),
        ({"a": "b", "b": "c", "c": RUNS}, MOVES, "a b c"),
        ({"a": "b", "b": "c", "c": LACKS}, STUCK, "a b c"),
        # All are needed: the first that is stuck is the way.
        ({"a": "b c d", "b": RUNS, "c": LACKS, "d": LACKS}, STUCK, "a c"),
        ({"a": "b c", "b": RUNS, "c": RUNS}, MOVES, "a b"),
        # One is enough: the first that moves is the way.
        ({"a": "|b c d", "b": LACKS, "c": RUNS, "d": RUNS}, MOVES, "a c"),
        ({"a": "|b c", "b": LACKS, "c": LACKS}, STUCK, "a b"),
        # Two are needed: where one of them moves, the others decide.
        ({"a": "2|b c d", "b": RUNS, "c": LACKS, "d": RUNS}, MOVES, "a b"),
        ({"a": "2|b c d", "b": RUNS, "c": LACKS, "d": LACKS}, STUCK, "a c"),
        # What goes on when a time is over tells what it waits for.
        ({"a": "b", "b": "~c", "c": LACKS}, MOVES, "a b c"),
        # What an actor holds it holds whatever its calls do, until its owner ends it.
        ({"a": "held b", "b": RUNS}, OPEN, "a"),
        ({"a": "held b", "b": LACKS}, OPEN, "a"),
        ({"a": "held A b", "A": ASKED, "b": RUNS}, OPEN, "a A"),
        ({"a": "held A b", "A": "c", "b": LACKS, "c": RUNS}, MOVES, "a A c"),
        ({"a": "held A", "A": "c", "c": LACKS}, STUCK, "a A c"),
        # Where something else may keep it waiting, nothing is known to move.
        ({"a": "held A", "A": "?c", "c": RUNS}, OPEN, "a A c"),
        ({"a": "held A", "A": "?c", "c": LACKS}, STUCK, "a A c"),
        # Somebody may do it, or not.
        ({"a": "b c d", "b": RUNS, "c": ASKED, "d": RUNS}, OPEN, "a c"),
        ({"a": "b c", "b": ASKED, "c": LACKS}, STUCK, "a c"),
        ({"a": "|b c", "b": LACKS, "c": ASKED}, OPEN, "a c"),
        ({"a": "|b c", "b": ASKED, "c": RUNS}, MOVES, "a c"),
        ({"a": "2|b c d", "b": LACKS, "c": ASKED, "d": RUNS}, OPEN, "a c"),
        ({"a": "2|b c d", "b": LACKS, "c": LACKS, "d": ASKED}, STUCK, "a b"),
        # What two ways lead to moves on both.
        ({"a": "b c", "b": "d", "c": "d", "d": RUNS}, MOVES, "a b d"),
    ],
)
def test_the_way_leads_to_what_decides(reasons: dict[str, str], outlook: Outlook, way: str) -> None:
    story = Cluster(**reasons).story()
    assert (story.outlook, names(story), story.cycle_begins) == (outlook, way.split(), None)


@pytest.mark.parametrize(
    ("reasons", "way", "cycle"),
    [
        ({"a": "a"}, "a", "a"),
        ({"a": "b", "b": "a"}, "a b", "a b"),
        ({"a": "b", "b": "c", "c": "b"}, "a b c", "b c"),
        # Who holds it waits for it, or is stuck otherwise: the circle says more.
        ({"a": "|b c", "b": LACKS, "c": "a"}, "a c", "a c"),
        ({"a": "|b c", "b": "a", "c": LACKS}, "a b", "a b"),
        ({"a": "b c", "b": RUNS, "c": "a"}, "a c", "a c"),
        # A call waits for what its own actor holds, or what an actor holds that it has made.
        ({"a": "b", "b": "held a"}, "a b", "a b"),
        ({"a": "b", "b": "held A", "A": "a"}, "a b A", "a b A"),
        ({"a": "b", "b": "held A c", "A": ASKED, "c": "a"}, "a b c", "a b c"),
        # Somebody else may end it, whom it does not help.
        ({"a": "b c", "b": ASKED, "c": "a"}, "a c", "a c"),
    ],
)
def test_what_waits_for_itself_is_stuck(reasons: dict[str, str], way: str, cycle: str) -> None:
    story = Cluster(**reasons).story()
    assert story.outlook is STUCK and names(story) == way.split()
    assert story.cycle_begins is not None and names(story)[story.cycle_begins :] == cycle.split()


def test_a_circle_that_another_holder_will_end_is_none() -> None:
    story = Cluster(a="|b c", b="a", c=RUNS).story()
    assert story.outlook is MOVES and names(story) == ["a", "c"] and story.cycle_begins is None


@pytest.mark.parametrize(
    ("is_any", "code", "outlook"),
    [(True, LACKS, OPEN), (True, RUNS, MOVES), (False, LACKS, STUCK), (False, RUNS, MOVES)],
)
def test_where_one_that_was_not_told_may_be_enough_nothing_is_stuck(
    is_any: bool, code: str, outlook: Outlook
) -> None:
    def ask(subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if subject.id == b"a":
            waits_for = map(subject_of, "bc")
            return common_pb2.WaitReason(code=WaitCode.GET, waits_for=waits_for, any=is_any, num_others=3)
        return common_pb2.WaitReason(code=code)

    story = Walk(lambda subjects: [*map(ask, subjects)]).begin(subject_of("a"))
    assert story.outlook is outlook and [link.reason.code for link in story.links] == ["GET", code]


def test_an_object_in_two_stores_does_not_wait_for_itself() -> None:
    def in_store(node_id: bytes) -> common_pb2.WaitSubject:
        return Subject(kind=Subject.STORE, id=b"object", at=common_pb2.Address(node_id=node_id))

    def ask(subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        if subject.at.node_id == b"far":
            return common_pb2.WaitReason(code=WaitCode.READY)
        return common_pb2.WaitReason(code=WaitCode.TRANSFER, waits_for=[in_store(b"far")])

    story = Walk(lambda subjects: [*map(ask, subjects)]).begin(in_store(b"near"))
    assert story.outlook is MOVES and [link.reason.code for link in story.links] == ["TRANSFER", "READY"]


def test_the_walk_is_bounded() -> None:
    chain = [f"n{number}" for number in range(2 * SUBJECTS_MAX)]
    reasons = dict(zip(chain, chain[1:], strict=False)) | {chain[-1]: LACKS, "a": chain[0]}
    cluster = Cluster(**reasons)
    story = cluster.story()
    assert len(cluster.asked) == SUBJECTS_MAX == len(story.links) and story.outlook is OPEN


def test_a_long_chain_is_followed_to_its_end() -> None:
    chain = [f"n{number}" for number in range(1500)]
    reasons = dict(zip(chain, chain[1:], strict=False)) | {chain[-1]: LACKS, "a": chain[0]}
    story = Cluster(**reasons).story()
    assert story.outlook is STUCK and story.links[-1].reason.code == LACKS


def test_what_moves_is_asked_once() -> None:
    cluster = Cluster(a="b c d", b="e", c="e", d="e", e=RUNS)
    assert cluster.story().outlook is MOVES and cluster.asked.count("e") == 1


@pytest.mark.parametrize(("end", "outlook"), [(RUNS, MOVES), (ASKED, OPEN), (LACKS, STUCK)])
def test_ways_that_part_and_meet_again_are_walked_once(end: str, outlook: Outlook) -> None:
    reasons = {f"n{number}": f"{'|' * (number % 2)}n{number + 1} x{number}" for number in range(60)}
    reasons |= {f"x{number}": f"n{number + 1}" for number in range(60)}
    cluster = Cluster(a="n0", n60=end, **reasons)
    assert cluster.story().outlook is outlook and len(cluster.asked) == 2 + 2 * 60


def test_a_walk_among_many_that_wait_for_each_other_ends() -> None:
    names = [f"n{number}" for number in range(30)]
    reasons = {name: "|" + " ".join(other for other in names if other != name) for name in names}
    story = Cluster(a="n0", **reasons).story()
    assert story.outlook is not MOVES

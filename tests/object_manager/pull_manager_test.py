"""Pulls: one per object, holders in turn, places and memory shared out in order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_mono.object_manager.admission import Priority
from ray_mono.object_manager.keys import NodeKey, ObjectKey
from ray_mono.object_manager.pull_manager import (
    PullEffect,
    PullLost,
    PullManager,
    PullState,
    StartFetch,
    StopFetch,
)

A, B, C = (ObjectKey(name) for name in (b"a", b"b", b"c"))
FAR, FARTHER, FARTHEST = (NodeKey(name) for name in (b"1", b"2", b"3"))
ROOM = 1000
GET, WAIT, TASK_ARGUMENTS = Priority


def make_pulls(active_max: int = 2) -> PullManager:
    return PullManager(active_max)


def test_a_pull_asks_the_first_holder_and_says_how_much_fits() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR, FARTHER], GET)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM, others=(FARTHER,))]
    assert pulls.schedule(ROOM) == []


def test_an_object_that_many_want_is_pulled_once() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR], GET)
    pulls.schedule(ROOM)
    pulls.want(A, [FAR, FARTHER], GET)
    assert pulls.schedule(ROOM) == []
    # What the second one added is tried when the first holder has failed.
    assert pulls.fetch_failed(A, "gone") == []
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHER, ROOM, avoided=(FAR,))]


def test_an_object_that_nobody_gave_is_lost_with_every_reason() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR, FARTHER], GET)
    pulls.schedule(ROOM)
    pulls.fetch_failed(A, "it is dead")
    pulls.schedule(ROOM)
    (lost,) = pulls.fetch_failed(A, "it holds no copy")
    assert isinstance(lost, PullLost)
    assert f"node {FAR.hex()}: it is dead; node {FARTHER.hex()}: it holds no copy" in lost.reason
    assert len(pulls) == 0
    pulls.want(A, [FAR], GET)  # a new attempt is a new pull
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]


def test_at_most_so_many_fetches_run_and_the_others_follow_in_order() -> None:
    pulls = make_pulls(active_max=1)
    for object_id in (A, B, C):
        pulls.want(object_id, [FAR], GET)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]
    pulls.fetched(A)
    assert pulls.schedule(ROOM) == [StartFetch(B, FAR, ROOM)]


def test_what_found_no_room_is_tried_again_when_there_is_and_others_go_on_meanwhile() -> None:
    pulls = make_pulls(active_max=1)
    pulls.want(A, [FAR, FARTHER], GET)
    pulls.want(B, [FAR], GET)
    pulls.schedule(ROOM)
    pulls.no_memory(A, 500)
    assert pulls.schedule(499) == [StartFetch(B, FAR, 499)]
    pulls.fetched(B)
    assert pulls.schedule(499) == []
    assert pulls.schedule(500) == [StartFetch(A, FAR, 500, others=(FARTHER,))]


def test_the_most_urgent_has_the_next_place_and_none_waits_for_what_is_less_urgent() -> None:
    pulls = make_pulls(active_max=1)
    pulls.want(A, [FAR], TASK_ARGUMENTS)
    pulls.want(B, [FAR], TASK_ARGUMENTS)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]
    pulls.want(C, [FAR], GET)
    assert pulls.schedule(ROOM) == [StartFetch(C, FAR, ROOM)]
    pulls.fetched(A)
    assert pulls.schedule(ROOM) == []  # the get counts for what is less urgent
    pulls.fetched(C)
    assert pulls.schedule(ROOM) == [StartFetch(B, FAR, ROOM)]


def test_what_several_want_is_as_urgent_as_the_most_urgent_of_them() -> None:
    pulls = make_pulls(active_max=1)
    for object_id, priority in ((A, WAIT), (B, TASK_ARGUMENTS), (C, TASK_ARGUMENTS)):
        pulls.want(object_id, [FAR], priority)
    pulls.want(C, [FAR], GET)
    pulls.want(C, [FAR], WAIT)
    assert pulls.schedule(ROOM) == [StartFetch(C, FAR, ROOM)]
    pulls.fetched(C)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]


def test_fetches_that_are_started_together_share_the_memory() -> None:
    pulls = make_pulls()
    for object_id in (A, B):
        pulls.want(object_id, [FAR], GET)
    pulls.schedule(ROOM)
    for object_id in (A, B):
        pulls.no_memory(object_id, 600)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]


def test_what_nobody_wants_any_more_is_not_started_but_a_running_fetch_goes_on() -> None:
    pulls = make_pulls(active_max=1)
    pulls.want(A, [FAR], GET)
    pulls.want(B, [FAR], GET)
    pulls.schedule(ROOM)
    pulls.unwant(A)
    pulls.unwant(B)
    assert A in pulls and B not in pulls
    pulls.fetched(A)
    assert len(pulls) == 0


def test_a_fetch_that_nobody_wants_is_not_tried_again() -> None:
    for end in (
        lambda pulls: pulls.fetch_failed(A, "broke"),
        lambda pulls: pulls.no_memory(A, 500),
        lambda pulls: pulls.announced(A),
    ):
        pulls = make_pulls()
        pulls.want(A, [FAR, FARTHER], GET)
        pulls.schedule(ROOM)
        pulls.unwant(A)
        (lost,) = end(pulls)
        assert isinstance(lost, PullLost)
        assert len(pulls) == 0


def test_a_fetch_that_is_wanted_again_goes_on_to_the_next_holder() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR, FARTHER], GET)
    pulls.schedule(ROOM)
    pulls.unwant(A)
    pulls.want(A, [], GET)
    assert pulls.fetch_failed(A, "broke") == []
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHER, ROOM, avoided=(FAR,))]


def test_a_holder_that_gave_some_of_it_is_asked_again_after_the_others() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR, FARTHER], GET)
    pulls.schedule(ROOM)
    assert pulls.fetch_failed(A, "broke", has_brought=True) == []
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHER, ROOM, others=(FAR,))]
    pulls.fetch_failed(A, "it holds no copy")
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM, avoided=(FARTHER,))]
    (lost,) = pulls.fetch_failed(A, "connection refused")
    assert isinstance(lost, PullLost)


def test_who_is_sent_on_asks_there_and_comes_back_if_that_fails() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR], GET)
    pulls.schedule(ROOM)
    assert pulls.sent_on(A, FARTHER) == []
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHER, ROOM, is_sent_on=True)]
    assert pulls.sent_on(A, FARTHEST) == []  # it has enough to do as well
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHEST, ROOM, is_sent_on=True)]
    pulls.fetch_failed(A, "it is dead")
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM, avoided=(FARTHEST,))]
    (lost,) = pulls.sent_on(A, FARTHEST)  # it does not listen
    assert isinstance(lost, PullLost)


def test_a_relay_that_breaks_off_is_asked_again_only_if_a_holder_names_it_again() -> None:
    """It may have come to wait for this node meanwhile."""
    pulls = make_pulls()
    pulls.want(A, [FAR], GET)
    pulls.schedule(ROOM)
    pulls.sent_on(A, FARTHER)
    pulls.schedule(ROOM)
    pulls.fetch_failed(A, "broke", has_brought=True)
    assert pulls.schedule(ROOM) == [StartFetch(A, FAR, ROOM)]
    pulls.sent_on(A, FARTHER)
    assert pulls.schedule(ROOM) == [StartFetch(A, FARTHER, ROOM, is_sent_on=True)]


def test_a_freed_object_stops_its_fetch() -> None:
    pulls = make_pulls()
    pulls.want(A, [FAR], GET)
    assert pulls.cancel(B) == []
    pulls.schedule(ROOM)
    assert pulls.cancel(A) == [StopFetch(A)]
    # What the fetch still reports is nobody's.
    assert pulls.fetch_failed(A, "stopped") == []
    pulls.fetched(A)
    assert pulls.no_memory(A, 5) == []
    assert len(pulls) == 0 and pulls.num_active == 0


class PullsUnderAnyEvents(RuleBasedStateMachine):
    """Whatever happens in whatever order: the invariants hold, nothing is fetched twice at a time, and every
    pull comes to an end."""

    objects = st.sampled_from([A, B, C])

    def __init__(self) -> None:
        super().__init__()
        self.pulls = make_pulls()
        self.running: dict[ObjectKey, NodeKey] = {}

    def follow(self, effects: list[PullEffect]) -> None:
        for effect in effects:
            if isinstance(effect, StartFetch):
                assert effect.object_id not in self.running
                self.running[effect.object_id] = effect.node_id
            elif isinstance(effect, StopFetch):
                del self.running[effect.object_id]

    @rule(
        object_id=objects,
        nodes=st.lists(st.sampled_from([FAR, FARTHER, FARTHEST]), min_size=1),
        priority=st.sampled_from(Priority),
    )
    def want(self, object_id: ObjectKey, nodes: list[NodeKey], priority: Priority) -> None:
        self.pulls.want(object_id, nodes, priority)

    @rule(room=st.integers(0, 1000))
    def schedule(self, room: int) -> None:
        self.follow(self.pulls.schedule(room))

    @rule(
        object_id=objects,
        end=st.sampled_from(["whole", "failed", "sent on", "no memory"]),
        size=st.integers(1, 1000),
    )
    def fetch_ends(self, object_id: ObjectKey, end: str, size: int) -> None:
        if self.running.pop(object_id, None) is None:
            return
        if end == "whole":
            self.pulls.fetched(object_id)
        elif end == "failed":
            self.follow(self.pulls.fetch_failed(object_id, "failed", has_brought=size % 2 == 0))
        elif end == "sent on":
            self.follow(self.pulls.sent_on(object_id, FARTHEST))
        else:
            self.follow(self.pulls.no_memory(object_id, size))

    @rule(object_id=objects)
    def unwant(self, object_id: ObjectKey) -> None:
        self.pulls.unwant(object_id)

    @rule(object_id=objects)
    def cancel(self, object_id: ObjectKey) -> None:
        self.follow(self.pulls.cancel(object_id))

    @invariant()
    def holds(self) -> None:
        self.pulls.check_invariants()
        fetching = {
            pull.object_id: pull.current for pull in self.pulls.pulls() if pull.state is PullState.FETCHING
        }
        assert fetching == self.running

    def teardown(self) -> None:
        for _ in range(30):
            self.follow(self.pulls.schedule(1 << 30))
            for object_id in list(self.running):
                del self.running[object_id]
                self.follow(self.pulls.fetch_failed(object_id, "failed"))
        assert len(self.pulls) == 0


PullsUnderAnyEvents.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPullsUnderAnyEvents = PullsUnderAnyEvents.TestCase

"""The walk from what waits to what it waits for (docs/internals/explain.md).

    look(subject) ──ask──► its reason; if that waits for others: look at them, depth first

A subject moves if its code says so, or if what it waits for does: one of these, or all. What is met again on
the way to itself does not move by that. Where nobody can foresee whether it will, its outlook is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ray_mono.common.explanation import FOR_SOMEBODY, MOVING, Outlook, WaitCode
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject
Key = tuple[int, bytes]
MOVES, OPEN, STUCK = Outlook.MOVES, Outlook.OPEN, Outlook.STUCK

SUBJECTS_MAX = 2_000
"""Of one walk."""
DEPTH_MAX = 200
"""Of branches within branches."""
LOOKS_MAX = 20_000
"""Of one walk: where ways part and lead back, there are many more ways than subjects."""


@dataclass(frozen=True)
class Link:
    subject: common_pb2.WaitSubject
    reason: common_pb2.WaitReason


@dataclass(frozen=True)
class Story:
    """What came of a walk: the way from what was asked to where it ends."""

    links: tuple[Link, ...]
    outlook: Outlook
    cycle_begins: int | None = None
    """Where the last link leads back to: the links from there on wait for each other."""


class Walk:
    """One. ask(subjects) brings their reasons, in order."""

    def __init__(
        self, ask: Callable[[Sequence[common_pb2.WaitSubject]], Sequence[common_pb2.WaitReason]]
    ) -> None:
        self._ask = ask
        self._told: dict[Key, common_pb2.WaitReason] = {}
        # Of those whose end does not depend on the way to them.
        self._ends: dict[Key, Story] = {}
        self._num_circles = 0
        self._num_looks = 0

    def begin(self, subject: common_pb2.WaitSubject) -> Story:
        return self._look(subject, [])

    def _look(self, subject: common_pb2.WaitSubject, path: list[Key], depth: int = 0) -> Story:
        # Where one thing waits for one other, and so on, this goes on here: chains are long.
        links: list[Link] = []
        keys: list[Key] = []
        num_circles = self._num_circles
        while True:
            key = _key(subject)
            if key in path:
                self._num_circles += 1
                found = Story((), STUCK, cycle_begins=path.index(key))
                break
            if (known := self._ends.get(key)) is not None:
                found = known
                break
            self._num_looks += 1
            is_over = depth == DEPTH_MAX or self._num_looks > LOOKS_MAX
            if is_over or (key not in self._told and len(self._told) >= SUBJECTS_MAX):
                found = Story((), OPEN)
                break
            self._ask_about([subject])
            reason = self._told[key]
            links.append(Link(subject, reason))
            keys.append(key)
            path = [*path, key]
            if reason.code == WaitCode.HELD_BY_ACTOR:
                found = self._held(reason, path, depth)
                break
            if not reason.waits_for:
                found = Story((), MOVES if reason.times_out else _outlook_of(reason))
                break
            if len(reason.waits_for) > 1 or reason.num_needed > 1 or _is_open_ended(reason):
                found = self._beyond(reason, path, depth)
                break
            subject = reason.waits_for[0]
        story = replace(found, links=(*links, *found.links))
        # What moves does so whoever asks.
        if keys and (story.outlook is MOVES or num_circles == self._num_circles):
            # Where the way branches, and where it began.
            self._ends[keys[-1]] = replace(found, links=(links[-1], *found.links))
            self._ends[keys[0]] = story
        return story

    def _beyond(self, reason: common_pb2.WaitReason, path: list[Key], depth: int) -> Story:
        """What all of these lead to, or enough of them."""
        self._ask_about(reason.waits_for)
        stories = (self._look(each, path, depth + 1) for each in reason.waits_for)
        if not reason.any:
            found = self._all_of(stories)
        else:
            found = self._some_of(stories, max(1, reason.num_needed), reason.num_others)
        if reason.times_out:
            return replace(found, outlook=MOVES, cycle_begins=None)
        is_unsure = reason.unsure and found.outlook is MOVES
        return replace(found, outlook=OPEN) if is_unsure else found

    @staticmethod
    def _all_of(stories: Iterator[Story]) -> Story:
        """The first that is stuck, else the first that may be."""
        found = Story((), MOVES)
        for each in stories:
            if each.outlook is STUCK:
                return each
            if not found.links or (found.outlook is MOVES and each.outlook is OPEN):
                found = each
        return found

    @staticmethod
    def _some_of(stories: Iterator[Story], num_needed: int, num_others: int) -> Story:
        """num_others: of more than these nothing is known."""
        found: dict[Outlook, list[Story]] = {MOVES: [], OPEN: [], STUCK: []}
        for each in stories:
            found[each.outlook].append(each)
            if len(found[MOVES]) == num_needed:
                return found[MOVES][0]
        stuck = found[STUCK]
        told = next((each for each in stuck if each.cycle_begins is not None), [*stuck, Story((), OPEN)][0])
        if len(found[MOVES]) + len(found[OPEN]) + num_others < num_needed:
            return told
        return [*found[OPEN], replace(told, outlook=OPEN, cycle_begins=None)][0]

    def _held(self, reason: common_pb2.WaitReason, path: list[Key], depth: int) -> Story:
        """By an actor, until it ends: its owner says when that may be. What its calls wait for says more only
        where it leads back here."""
        self._ask_about(reason.waits_for)
        by_owner = Story((), OPEN)
        for each in reason.waits_for:
            found = self._look(each, path, depth + 1)
            if found.cycle_begins is not None:
                return found
            if each.kind == Subject.ACTOR:
                by_owner = found
        return by_owner

    def _ask_about(self, subjects: Sequence[common_pb2.WaitSubject]) -> None:
        new = {_key(each): each for each in subjects if _key(each) not in self._told}
        some = dict(islice(new.items(), max(0, SUBJECTS_MAX - len(self._told))))
        self._told.update(zip(some, self._ask([*some.values()]) if some else (), strict=True))


def _is_open_ended(reason: common_pb2.WaitReason) -> bool:
    return bool(reason.times_out or reason.num_others or reason.unsure)


def _outlook_of(reason: common_pb2.WaitReason) -> Outlook:
    """Of what waits for nothing that is known."""
    if reason.code in MOVING:
        return MOVES
    return OPEN if reason.code in FOR_SOMEBODY else STUCK


def _key(subject: common_pb2.WaitSubject) -> Key:
    """A call that was handed on is another subject where it runs, and an object in another store. A node may
    be asked for several resources."""
    needs = subject.needs.SerializeToString(deterministic=True)
    return subject.kind, subject.id + (subject.at.worker_id or subject.at.node_id) + needs

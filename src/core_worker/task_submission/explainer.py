"""Asks the processes that know why something waits, one after another, as the walk wants
(docs/internals/explain.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ray_mono.common.explanation import (
    Explanation,
    NodeShortage,
    Outlook,
    WaitCode,
    Waiting,
    WaitingOverview,
    WaitLink,
)
from ray_mono.common.ids import TaskID, object_id_bytes, object_name
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.common.wait_messages import NODES_TOLD_MAX, reason_of
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.peers import PeerPool
from ray_mono.core_worker.task_submission.wait_reasons import LOOK_AT_IT, WaitReasons
from ray_mono.core_worker.task_submission.wait_walk import Link, Story, Walk
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.surface import RpcError

Subject = common_pb2.WaitSubject

ANSWER_S = 2.0
"""So long one process may take to answer."""
THE_HEAD = "the head"
GROUPS_MAX = 100
"""Of what waits alike: so many are followed."""
WALKS_MAX = 3
WALK_S = 10.0
"""So long a walk may take: whoever is met after that is not asked."""
AGAIN_S = 0.3
"""After that it is walked again where something seems to be stuck; 0: at once."""
OPEN, STUCK = Outlook.OPEN, Outlook.STUCK


class Explainer:
    """Of one process."""

    def __init__(self, env: Environment, peers: PeerPool, reasons: WaitReasons) -> None:
        """reasons: this process's own."""
        self._env = env
        self._peers = peers
        self._reasons = reasons

    def explain(self, kind_name: str, id_: bytes, is_sure: bool = True) -> Explanation:
        """See CoreInterface. Who knows an object that this process has no reference to is looked for. The
        lock must not be held."""
        subject = Subject(kind=kind_name.upper(), id=id_)
        if subject.kind == Subject.ACTOR:
            # Before its constructor's arguments are there whoever makes it knows more than the head, if that
            # knows it at all.
            creation_id = TaskID.for_actor_creation(id_).binary()
            creation = Subject(kind=Subject.TASK, id=creation_id, at=self._env.address)
            with self._env.lock:
                if self._reasons.of(creation).code == WaitCode.DEPENDENCIES:
                    subject = creation
        elif subject.kind == Subject.TASK:
            # Whoever submitted it knows it by its first return.
            subject = Subject(kind=Subject.OBJECT, id=object_id_bytes(id_, 1))
        if subject.kind == Subject.OBJECT:
            with self._env.lock:
                subject = self._reasons.subject_of(subject.id)
                is_known = self._reasons.of(subject).code != WaitCode.UNKNOWN
            if not is_known:
                found = self._looked_for(subject)
                if found is None:
                    text = self._unknown(kind_name, id_)
                    return Explanation(
                        (_plain(Link(subject, reason_of(WaitCode.UNKNOWN, text))),), Outlook.OPEN
                    )
                subject = found
        [told] = self._followed([subject], self._env.clock.time_s() + WALK_S, {}, is_sure)
        return told

    def explain_all(self) -> WaitingOverview:
        """See CoreInterface. The lock must not be held."""
        env = self._env
        until_s = env.clock.time_s() + WALK_S
        silent: dict[str, str] = {}
        others = [row for row in self._processes(silent) if row.address.worker_id != env.worker_id]
        names = [(THE_HEAD, THE_HEAD), *((_process(row.address), _placed(row)) for row in others)]
        with env.lock:
            stubs = [self._peers.stub_for(row.address) for row in others]
            methods = [env.gcs.ListWaiting, *(stub.ListWaiting for stub in stubs)]
        request = core_worker_pb2.ListWaitingRequest()
        answers = self._answers(
            [(methods[0], common_pb2.Empty()), *((each, request) for each in methods[1:])]
        )
        # A process that cannot be reached has ended a moment ago: nothing waits there.
        silent |= dict(name for name, got in zip(names, answers, strict=True) if got == (None, None))
        if mute := [row.address.worker_id for row in others if _process(row.address) in silent]:
            request.silent_worker_ids.extend(mute)
            heard = [place for place, (reply, _) in enumerate(answers) if place and reply is not None]
            again = self._answers([(methods[place], request) for place in heard])
            answers = [answers[0], *again]
        with env.lock:
            own = self._reasons.waiting(frozenset(mute))
        replies = [own, *(reply for reply, _ in answers if reply is not None)]
        did_not_answer = [*silent.values()]
        if answers[0][0] is None and THE_HEAD not in silent:
            did_not_answer.insert(0, THE_HEAD)
        alike = sorted((each for reply in replies for each in reply.alike), key=lambda each: -each.count)
        alike, num_left = alike[:GROUPS_MAX], len(alike) - GROUPS_MAX
        followed = self._followed([each.example for each in alike], until_s, silent)
        groups = [Waiting(each.count, told) for each, told in zip(alike, followed, strict=True)]
        waiting = tuple(group for group in groups if _waits(group.example))
        return WaitingOverview(waiting, max(0, num_left), tuple(did_not_answer))

    def _followed(
        self,
        subjects: Sequence[common_pb2.WaitSubject],
        until_s: float,
        silent: dict[str, str],
        is_sure: bool = True,
    ) -> list[Explanation]:
        """silent: who did not answer already, and how they are named. They are not waited for again. is_sure:
        STUCK is told of what was so twice, and in the same way. What is busy may look so between two
        answers."""
        stories = [self._walked(subject, until_s, silent) for subject in subjects]
        unsure = [place for place, story in enumerate(stories) if is_sure and story.outlook is STUCK]
        for _ in range(WALKS_MAX):
            if not unsure:
                break
            if AGAIN_S:
                self._env.reactor.wait(Waiter(self._env.reactor), AGAIN_S)
            before = {place: _way(stories[place]) for place in unsure}
            stories = [
                self._walked(subjects[place], until_s, silent) if place in before else story
                for place, story in enumerate(stories)
            ]
            unsure = [
                place
                for place, way in before.items()
                if stories[place].outlook is STUCK and _way(stories[place]) != way
            ]
        return [
            self._plainly(replace(story, outlook=OPEN) if place in unsure else story, silent)
            for place, story in enumerate(stories)
        ]

    def _walked(self, subject: common_pb2.WaitSubject, until_s: float, silent: dict[str, str]) -> Story:
        for _ in range(WALKS_MAX):
            story = Walk(partial(self._ask, until_s, silent)).begin(subject)
            if len(story.links) == 1 or story.links[-1].reason.code != WaitCode.UNKNOWN:
                break
            # What was waited for has ended between two answers: whoever waited tells something else by now.
        return story

    def _plainly(self, story: Story, silent: dict[str, str]) -> Explanation:
        links = tuple(map(_plain, self._with_lost(story.links, silent)))
        is_cycle = story.cycle_begins is not None and story.outlook is STUCK
        return Explanation(links, story.outlook, links[story.cycle_begins :] if is_cycle else ())

    def _with_lost(self, links: Sequence[Link], silent: dict[str, str]) -> Sequence[Link]:
        """An object at their end may have been in stores of nodes that are gone: its owner hears of that when
        somebody needs it."""
        last = links[-1]
        if last.reason.code != WaitCode.READY or not last.reason.node_ids or THE_HEAD in silent:
            return links
        gone = {row.node_id for row in self._nodes(silent) if row.state == common_pb2.NODE_DEAD}
        if not gone.issuperset(last.reason.node_ids):
            return links
        where = ", ".join(node_id.hex()[:8] for node_id in last.reason.node_ids[:NODES_TOLD_MAX])
        text = (
            f"{_told(last.subject)} was on node {where}, which is gone: whoever needs it has it"
            " made again, if its retries allow, or an error"
        )
        return [*links[:-1], Link(last.subject, reason_of(WaitCode.LOST, text))]

    def _of_head(self, method: Any, silent: dict[str, str]) -> Any:
        """Its reply; None where it gives none."""
        if THE_HEAD in silent:
            return None
        ((reply, error),) = self._answers([(method, common_pb2.Empty())])
        if reply is None and error is None:
            silent[THE_HEAD] = THE_HEAD
        return reply

    def _nodes(self, silent: dict[str, str]) -> list[common_pb2.NodeInfo]:
        """Of the cluster, those that are dead as well."""
        reply = self._of_head(self._env.gcs.GetAllNodes, silent)
        return [] if reply is None else list(reply.nodes)

    def _processes(self, silent: dict[str, str]) -> list[common_pb2.WorkerInfo]:
        """Of the cluster that live."""
        reply = self._of_head(self._env.gcs.GetAllWorkers, silent)
        rows = [] if reply is None else reply.workers
        return [row for row in rows if row.is_alive and row.address.worker_id]

    def _ask(
        self, until_s: float, silent: dict[str, str], subjects: Sequence[common_pb2.WaitSubject]
    ) -> list[common_pb2.WaitReason]:
        """Of all of them, each asked where it is known, at the same time."""
        env = self._env
        if env.clock.time_s() > until_s:
            text = "who knows about {} was not asked any more"
            return [reason_of(WaitCode.UNKNOWN, text.format(_told(each))) for each in subjects]
        reasons: dict[int, common_pb2.WaitReason] = {}
        asked: dict[int, tuple[str, Any]] = {}
        with env.lock:
            for place, subject in enumerate(subjects):
                if subject.at.worker_id == env.worker_id:
                    reasons[place] = self._reasons.of(subject)
                else:
                    asked[place] = self._service_of(subject)
        calls = {
            place: (service.Explain, common_pb2.ExplainRequest(subject=subjects[place]))
            for place, (who, service) in asked.items()
            if who not in silent
        }
        answers = dict(zip(calls, self._answers([*calls.values()]), strict=True))
        for place, (who, _) in asked.items():
            reply, error = answers.get(place, (None, None))
            if reply is None or error is not None:
                reply = self._not_told(subjects[place], who, error, silent)
            reasons[place] = reply
        return [reasons[place] for place in range(len(subjects))]

    def _not_told(
        self, subject: common_pb2.WaitSubject, who: str, error: RpcError | None, silent: dict[str, str]
    ) -> common_pb2.WaitReason:
        if error is not None and self._has_ended(subject, silent):
            return _ended(who, subject)
        why = f"it did not answer within {ANSWER_S:g} s" if error is None else error.message
        state = None
        if error is None:
            if who not in silent:
                silent[who] = self._named(subject.at, silent) or who
            who = silent[who]
            if subject.at.worker_id:
                why += ", so it is stopped, or its code holds the GIL"
                state = self._state_of(subject.at, silent)
        if subject.runs_there or subject.kind == Subject.WORKER:
            is_actor = subject.kind == Subject.WORKER and subject.name and not subject.name.endswith("()")
            text = f"{'actor ' if is_actor else ''}{_told(subject)} is in {who}, which cannot be asked"
        else:
            knows = "" if subject.kind == Subject.HEAD else f", which knows about {_told(subject)},"
            text = f"{who}{knows} cannot be asked"
        if who == THE_HEAD:
            unblock = "look at the head, or start it again"
            return reason_of(WaitCode.HEAD_AWAY, f"{text}: {why}", unblock=unblock)
        if state is not None:
            return reason_of(WaitCode(state.code), f"{text}: {state.text}", unblock=state.unblock)
        return reason_of(WaitCode.UNREACHABLE, f"{text}: {why}", unblock=LOOK_AT_IT)

    def _state_of(self, at: common_pb2.Address, silent: dict[str, str]) -> common_pb2.WaitReason | None:
        """Why a process does not answer, as its raylet knows it; None where that does not answer either."""
        rows = [row for row in self._nodes(silent) if row.node_id == at.node_id]
        if not rows:
            return None
        raylet = common_pb2.Address(node_id=at.node_id, host=rows[0].host, port=rows[0].node_manager_port)
        subject = Subject(kind=Subject.WORKER, id=at.worker_id, at=raylet)
        who, service = self._service_of(subject)
        if who in silent:
            return None
        ((state, error),) = self._answers([(service.Explain, common_pb2.ExplainRequest(subject=subject))])
        if state is None and error is None:
            silent[who] = who
        found: common_pb2.WaitReason | None = state
        return found

    def _named(self, at: common_pb2.Address, silent: dict[str, str]) -> str:
        """A process, as the head knows it; empty where it does not."""
        rows = self._processes(silent) if at.worker_id else []
        return next((_placed(row) for row in rows if row.address.worker_id == at.worker_id), "")

    def _has_ended(self, subject: common_pb2.WaitSubject, silent: dict[str, str]) -> bool:
        """The process that knows it, as the head knows."""
        if not subject.at.worker_id:
            return False
        rows = self._processes(silent)
        return bool(rows) and all(row.address.worker_id != subject.at.worker_id for row in rows)

    def _answers(self, calls: Sequence[tuple[Any, Any]]) -> list[tuple[Any, RpcError | None]]:
        """Of these methods with these requests, made together: (reply, error), (None, None) for what did not
        come in time."""
        waiter = Waiter(self._env.reactor)
        answers: dict[int, tuple[Any, RpcError | None]] = {}

        def answered(place: int, reply: Any, error: RpcError | None) -> None:
            answers[place] = reply, error
            if len(answers) == len(calls):
                waiter.set()

        with self._env.lock:
            for place, (method, request) in enumerate(calls):
                method.start(request, partial(answered, place))
        if calls:
            self._env.reactor.wait(waiter, ANSWER_S)
        return [answers.get(place, (None, None)) for place in range(len(calls))]

    def _looked_for(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitSubject | None:
        """At a process that knows it. Every process of the cluster is asked."""
        elsewhere = [
            Subject(kind=subject.kind, id=subject.id, at=row.address)
            for row in self._processes({})
            if row.address.worker_id != self._env.worker_id
        ]
        with self._env.lock:
            calls = [
                (self._peers.stub_for(each.at).Explain, common_pb2.ExplainRequest(subject=each))
                for each in elsewhere
            ]
        for found, (told, _) in zip(elsewhere, self._answers(calls), strict=True):
            if told is not None and told.code != WaitCode.UNKNOWN:
                return found
        return None

    def _unknown(self, kind_name: str, id_: bytes) -> str:
        """What nobody knows as an object, or as a task."""
        for at in (row.address for row in self._processes({})):
            if id_ in (at.worker_id, at.node_id):
                what = "a node" if id_ == at.node_id else "a worker process"
                may_be = "ids of objects, tasks, actors and placement groups can be explained"
                return f"{id_.hex()} is the id of {what}, and not of an object: {may_be}"
        end = "freed" if kind_name == "object" else "over"
        kind = f"its length is that of ids of {kind_name}s"
        why = f"it is {end}, or of a driver that has left, or never was ({kind})"
        return f"no process of the cluster knows {kind_name} {id_.hex()}: {why}"

    def _service_of(self, subject: common_pb2.WaitSubject) -> tuple[str, Any]:
        env, at = self._env, subject.at
        if at.worker_id:
            return _process(at), self._peers.stub_for(at)
        if not at.host:
            return THE_HEAD, env.gcs
        if at.node_id == env.node_id:
            return "this node's raylet", env.raylet
        return f"the raylet at {at.host}:{at.port}", self._peers.raylet_at(f"{at.host}:{at.port}")


def _process(at: common_pb2.Address) -> str:
    return f"process {at.worker_id.hex()[:8]}"


def _placed(row: common_pb2.WorkerInfo) -> str:
    """A process, with what a person needs to find it."""
    return f"{_process(row.address)} (pid {row.pid}, node {row.address.node_id.hex()[:8]})"


def _ended(who: str, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
    if subject.kind == Subject.PLACEMENT_GROUP:
        text = f"{subject.name} is held until somebody removes it: who made it has ended"
        return reason_of(WaitCode.HELD_BY_GROUP, text)
    if subject.kind != Subject.OBJECT:
        return reason_of(WaitCode.STARTING, f"{who}, where {_told(subject)} was, has ended a moment ago")
    text = f"{who}, which owned {_told(subject)}, has ended, and the value with it"
    return reason_of(WaitCode.OWNER_DIED, text, unblock="make it again, owned by a process that lives on")


def _waits(listed: Explanation) -> bool:
    """What has begun or ended since it was listed does not."""
    return not listed.has_begun and listed.links[0].code != WaitCode.UNKNOWN


def _way(story: Story) -> list[tuple[int, bytes, str]]:
    return [(link.subject.kind, link.subject.id, link.reason.code) for link in story.links]


def _plain(link: Link) -> WaitLink:
    subject, reason = link.subject, link.reason
    return WaitLink(
        kind=_kind(subject),
        id=subject.id.hex(),
        name=subject.name,
        code=reason.code,
        text=reason.text,
        unblock=reason.unblock,
        shortages=tuple(
            NodeShortage(
                each.node_id.hex(),
                ResourceSet.from_proto(each.missing).to_units(),
                ResourceSet.from_proto(each.available).to_units(),
                ResourceSet.from_proto(each.total).to_units(),
            )
            for each in reason.shortages
        ),
        history=reason.history,
        num_needed=reason.num_needed,
    )


def _kind(subject: common_pb2.WaitSubject) -> str:
    return Subject.Kind.Name(subject.kind).lower()


def _told(subject: common_pb2.WaitSubject) -> str:
    if subject.kind == Subject.OBJECT:
        return object_name(subject.id)
    return subject.name or f"{_kind(subject).replace('_', ' ')} {subject.id.hex()}"

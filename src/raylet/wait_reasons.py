"""Why a lease waits, and who holds what on this node: this raylet's links of the chains that
docs/internals/explain.md tells of. It only looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from ray_mono.common.explanation import ADD_A_NODE, WaitCode
from ray_mono.common.process import states_of
from ray_mono.common.scheduling.bundle_resources import plain_name, seats
from ray_mono.common.scheduling.labels import needed
from ray_mono.common.scheduling.policy import drained
from ray_mono.common.scheduling.resources import GPU, SCALE, ResourceSet
from ray_mono.common.wait_messages import NODES_ASKED_MAX, node_subject, reason_of, shortages
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.scheduling import explanations
from ray_mono.raylet.scheduling.lease_manager import LeaseManager
from ray_mono.raylet.scheduling.lease_stories import LeaseStories
from ray_mono.raylet.scheduling.leases import WorkerLease, WorkerLeaseState
from ray_mono.raylet.scheduling.scheduling_policy import Infeasible, NoSuchNode, Wait
from ray_mono.raylet.store_client import EXPLAIN_TIMEOUT_S, StoreClient
from ray_mono.rpc.surface import RpcError, StatusCode

Subject = common_pb2.WaitSubject

HOLDERS_TOLD_MAX = 32
GROUPS_TOLD_MAX = 4


@dataclass(frozen=True)
class Holders:
    """Of what a request lacks on this node."""

    subjects: list[common_pb2.WaitSubject] = field(default_factory=list)
    is_any: bool = True
    """The end of so many of them as are needed may do; else it takes all of these."""
    num_needed: int = 1
    num_others: int = 0
    """Beyond these."""
    by_groups: str = ""
    """What placement groups have of it, in words."""


class WaitReasons:
    """Of one raylet."""

    def __init__(
        self,
        leases: LeaseManager,
        stories: LeaseStories,
        clients: Clients,
        group_of: Callable[[bytes], common_pb2.PlacementGroupInfo | None],
    ) -> None:
        """group_of(id): a placement group that holds something here."""
        self._leases = leases
        self._group_of = group_of
        self._stories = stories
        self._clients = clients

    def of(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """Raises ValueError for what a raylet knows nothing of."""
        if subject.kind == Subject.LEASE:
            return self._of_lease(subject.id, subject.name or "a task")
        if subject.kind == Subject.NODE:
            return self._held_here(ResourceSet.from_proto(subject.needs))
        if subject.kind == Subject.WORKER:
            return self._of_silent(subject.id)
        kind = Subject.Kind.Name(subject.kind)
        told = "LEASE, NODE and WORKER"
        raise ValueError(f"a raylet can tell of {told}, and was asked of {kind} {subject.id.hex()}")

    # ---- a lease

    def _of_lease(self, lease_id: bytes, name: str) -> common_pb2.WaitReason:
        lease = self._leases.get(lease_id)
        if lease is None:
            # It was answered a moment ago, or has not come yet.
            return reason_of(WaitCode.STARTING, f"{name} is about to get a worker, or to ask another node")
        if lease.has_worker:
            text = f"{name} has a worker"
            return reason_of(WaitCode.WORKER, text, [self._worker_of(lease)])
        if lease.state is WorkerLeaseState.RESERVED:
            trouble = self._stories.start_trouble
            code = WaitCode.WORKERS_FAIL if trouble else WaitCode.STARTING
            unblock = "see why workers do not start" if trouble else ""
            return reason_of(code, f"{name} {self._stories.why(lease)}", unblock=unblock)
        return self._queued(lease, name)

    def _queued(self, lease: WorkerLease, name: str) -> common_pb2.WaitReason:
        here, others = self._stories.nodes()
        required, strategy = lease.shape.required, lease.shape.strategy
        decision = self._stories.decision_of(lease)
        text = explanations.without_hint(self._stories.why(lease, name))
        what = needed(required, strategy.selectors)
        if isinstance(decision, NoSuchNode):
            return reason_of(WaitCode.NO_SUCH_NODE, text, unblock="start that node, or ask for another one")
        if isinstance(decision, Infeasible):
            if strategy.group_id and not explanations.is_placed(strategy, [here, *others]):
                group = Subject(kind=Subject.PLACEMENT_GROUP, id=strategy.group_id)
                return reason_of(WaitCode.PLACEMENT_GROUP, text, [group])
            is_drained = drained(required, [here, *others], strategy.selectors)
            code = WaitCode.NODE_DRAINED if is_drained else WaitCode.INFEASIBLE
            unblock = f"start a node with {what}, or ask for less"
            if strategy.group_id:
                unblock = "make a placement group with such bundles, or ask for less"
            missing = shortages(required, [here, *others])
            return reason_of(code, text, unblock=unblock, shortages=missing)
        if not isinstance(decision, Wait):
            return reason_of(WaitCode.STARTING, f"{name} is about to get a worker")
        able = [node for node in (here, *others) if node.node_id in decision.feasible_node_ids]
        held = self._holders(required) if here in able else Holders()
        others_able = [node for node in able if node is not here]
        waits_for, is_any = held.subjects, held.is_any
        num_needed, num_others = held.num_needed, held.num_others
        if others_able:
            told_here = [here] if here in able and not (is_any and num_needed == 1) else []
            waits_for = [] if told_here else waits_for
            nodes = [*told_here, *others_able]
            waits_for += [node_subject(node, required) for node in nodes[:NODES_ASKED_MAX]]
            is_any, num_needed = True, 1
            num_others += max(0, len(nodes) - NODES_ASKED_MAX)
        ways = _ways_to_end(num_needed, held.by_groups)
        unblock = f"{', '.join(ways)}, or {ADD_A_NODE}{what}"
        if strategy.group_id or strategy.only_node_id is not None:
            # No other node has its bundles, or may have it.
            unblock = ", or ".join(ways[:2])
        return reason_of(
            WaitCode.RESOURCES,
            (text if strategy.group_id else f"{name} {text}") + held.by_groups,
            waits_for,
            is_any=is_any,
            unblock=unblock,
            shortages=shortages(required, able),
            num_needed=num_needed,
            num_others=num_others,
        )

    def _of_silent(self, worker_id: bytes) -> common_pb2.WaitReason:
        """Of a process of this node, which does not answer: why?"""
        process = self._clients.get(worker_id)
        states = set() if process is None else states_of(process.pid)
        if process is None or not states:
            return reason_of(WaitCode.STARTING, "it has ended a moment ago")
        if not states.isdisjoint("Tt"):
            unblock = f"let it go on (kill -CONT {process.pid}), or kill it"
            return reason_of(WaitCode.STOPPED, "a signal or a debugger has stopped it", unblock=unblock)
        if not states.isdisjoint("RD"):
            return reason_of(WaitCode.RUNNING, "its code runs, and holds the GIL")
        text = "its code holds the GIL, and sleeps or waits for something"
        return reason_of(WaitCode.UNREACHABLE, text, unblock="look at that process, or kill it")

    # ---- who holds what

    def _held_here(self, needs: ResourceSet) -> common_pb2.WaitReason:
        here, _ = self._stories.nodes()
        held = self._holders(needs)
        if not held.subjects and needs.fits_in(here.available):
            text = f"node {here.node_id.hex()[:8]} has {needs} free, and is about to give it"
            return reason_of(WaitCode.STARTING, text)
        ways = _ways_to_end(held.num_needed, held.by_groups)
        return reason_of(
            WaitCode.RESOURCES,
            f"node {here.node_id.hex()[:8]} has {here.available.beside(needs)} free of"
            f" {here.total.beside(needs)}{held.by_groups}",
            held.subjects,
            is_any=held.is_any,
            unblock=f"{', '.join(ways)}, or add a node" if held.by_groups else "",
            shortages=shortages(needs, [here]),
            num_needed=held.num_needed,
            num_others=held.num_others,
        )

    def _holders(self, needs: ResourceSet) -> Holders:
        """Whoever has what is missing here: workers, and placement groups. For work in any bundle those of
        each bundle that could hold it: one of them will do."""
        here, _ = self._stories.nodes()
        places = [seat for seat in seats(needs, here.total) if seat.fits_in(here.total)] or [needs]
        found = [self._holders_of(place) for place in places]
        if len(found) == 1:
            return found[0]
        subjects = {who.id: who for holders in found for who in holders.subjects}
        return _some_of([*subjects.values()], True, 1, found[0].by_groups)

    def _holders_of(self, needs: ResourceSet) -> Holders:
        here, _ = self._stories.nodes()
        missing = {name for name, _ in needs.missing_from(here.available).items()}
        if not missing:
            # There is enough of it, in parts of accelerators.
            missing = {name for name, amount in needs.items() if amount % SCALE or plain_name(name) == GPU}
        amounts: list[tuple[common_pb2.WaitSubject, ResourceSet, bool]] = []
        for lease in self._leases.leases():
            held = self._stories.held(lease)
            if lease.has_worker and any(name in missing for name, _ in held.items()):
                amounts.append((self._worker_of(lease), held, lease.request.for_actor))
        of_groups = self._stories.groups_with(missing)
        told = "".join(
            f"; placement group {group_id.hex()[:8]} holds {part} there until it is removed"
            for group_id, part in [*of_groups.items()][:GROUPS_TOLD_MAX]
        )
        more = len(of_groups) - GROUPS_TOLD_MAX
        told += f", and {more} more groups" if more > 0 else ""
        unnamed = dict(of_groups)
        for subject in self._held_by_groups(islice(of_groups, HOLDERS_TOLD_MAX)):
            amounts.append((subject, unnamed.pop(subject.id), True))
        decisive = _decisive(needs.only(*missing), here.available, amounts, [*unnamed.values()])
        return _some_of(*decisive, told)

    def _held_by_groups(self, group_ids: Iterable[bytes]) -> Iterator[common_pb2.WaitSubject]:
        """Until whoever made them removes them."""
        for group_id in group_ids:
            group = self._group_of(group_id)
            if group is not None and group.HasField("creator"):
                yield Subject(
                    kind=Subject.PLACEMENT_GROUP,
                    id=group_id,
                    name=f"placement group {group_id.hex()[:8]}",
                    at=group.creator,
                    creator_task_id=group.creator_task_id,
                )

    def placed(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitSubject | None:
        """A WORKER or a STORE of which only ids are known, with its address; None where nobody here knows
        that."""
        if subject.kind == Subject.WORKER:
            process = self._clients.get(subject.id)
            leases = [lease for lease in self._leases.leases() if lease.worker_id == subject.id]
            if leases or process is None:
                return self._worker_of(leases[0]) if leases else None
            return Subject(kind=Subject.WORKER, id=subject.id, at=process.address)
        here, others = self._stories.nodes()
        for node in (here, *others):
            if node.node_id == subject.at.node_id:
                at = common_pb2.Address(node_id=node.node_id, host=node.host, port=node.port)
                return Subject(kind=subject.kind, id=subject.id, name=subject.name, at=at)
        return None

    def _worker_of(self, lease: WorkerLease) -> common_pb2.WaitSubject:
        process = self._clients.get(lease.worker_id or b"")
        return Subject(
            kind=Subject.WORKER,
            id=lease.worker_id or b"",
            name=_name_of(lease),
            at=None if process is None else process.address,
        )


class StoreReasons:
    """What this node's store says of objects. It knows processes and nodes by their ids, so this says where
    they are."""

    def __init__(self, node_id: bytes, store: StoreClient, reasons: WaitReasons) -> None:
        self._node_id = node_id
        self._store = store
        self._reasons = reasons

    async def of(self, subject: common_pb2.WaitSubject) -> common_pb2.WaitReason:
        """Of a STORE."""
        try:
            reason = await self._store.explain(subject)
        except RpcError as error:
            node = f"node {self._node_id.hex()[:8]}"
            is_silent = error.code is StatusCode.DEADLINE_EXCEEDED
            why = f"it did not answer within {EXPLAIN_TIMEOUT_S:g} s" if is_silent else error.message
            text = f"the object store of {node} cannot be asked: {why}"
            unblock = f"look at the object manager of {node} and its machine, or end that node"
            return reason_of(WaitCode.UNREACHABLE, text, unblock=unblock)
        placed = [self._reasons.placed(each) for each in reason.waits_for]
        del reason.waits_for[:]
        reason.waits_for.extend(each for each in placed if each is not None)
        return reason


def _ways_to_end(num_needed: int, by_groups: object) -> list[str]:
    """What helps who waits for so many holders. by_groups: there are placement groups among them."""
    if num_needed > 1:
        of_groups = " (a placement group by removing it)" if by_groups else ""
        return [f"wait for {num_needed} of its holders to end", f"end {num_needed}{of_groups}"]
    ways = ["wait for one of its holders to end", "end one"]
    return [*ways, "remove a placement group"] if by_groups else ways


def _some_of(
    subjects: list[common_pb2.WaitSubject], is_any: bool, num_needed: int, by_groups: str
) -> Holders:
    some = subjects[: 2 * HOLDERS_TOLD_MAX]
    return Holders(some, is_any, num_needed, len(subjects) - len(some), by_groups)


def _decisive(
    needs: ResourceSet,
    free: ResourceSet,
    holders: Sequence[tuple[common_pb2.WaitSubject, ResourceSet, bool]],
    of_others: Sequence[ResourceSet],
) -> tuple[list[common_pb2.WaitSubject], bool, int]:
    """Of (who, what, whether it is held for good) those whose end decides, whether that of some may do, and
    how many somebody has to end at least: those without whom all the others together are not enough; else
    those who hold it for good, if the rest is not enough; else all. of_others: what those hold who cannot be
    named."""
    everybodys = ResourceSet.sum_of([free, *(held for _, held, _ in holders)])
    if needs.fits_in(everybodys):
        needed = [who for who, held, _ in holders if not needs.fits_in(everybodys - held)]
        if needed:
            return needed, len(needed) == 1, len(needed)
        passing = ResourceSet.sum_of([free, *(held for _, held, is_for_good in holders if not is_for_good)])
        if not needs.fits_in(passing):
            lasting = [(who, held) for who, held, is_for_good in holders if is_for_good]
            num_needed = _fewest(needs, passing, [held for _, held in lasting] + [*of_others])
            return [who for who, _ in lasting], True, num_needed
        num_needed = _fewest(needs, free, [held for _, held, _ in holders] + [*of_others])
        return [who for who, _, _ in holders], True, num_needed
    return [who for who, _, _ in holders], True, 1


def _fewest(needs: ResourceSet, free: ResourceSet, held: Sequence[ResourceSet]) -> int:
    """With fewer of them there is not enough of some resource, whichever they are."""
    fewest = 1
    for name, missing in needs.missing_from(free).items():
        largest = sorted((each.get(name) for each in held), reverse=True)
        sums = accumulate(largest)
        fewest = max(fewest, 1 + sum(1 for each in sums if each < missing))
    return fewest


def _name_of(lease: WorkerLease) -> str:
    """Of what it is for."""
    name = lease.request.task_name
    return name.removesuffix(".__init__") if lease.request.for_actor else f"{name}()"

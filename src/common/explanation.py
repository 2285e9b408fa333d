"""Why something waits, as programs and people are told (docs/internals/explain.md)."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class Outlook(enum.StrEnum):
    """Whether a wait will end. The names are stable."""

    MOVES = "MOVES"
    """What runs will end it."""
    OPEN = "OPEN"
    """Nobody can foresee it: it waits for what somebody who lives may do, or not."""
    STUCK = "STUCK"
    """Nothing that runs will end it, unless somebody cancels, kills or removes something, or something
    fails."""


class WaitCode(enum.StrEnum):
    """What something may wait for. The names are stable: programs may compare them."""

    READY = "READY"
    """The value is there, the actor lives, the group is created: nothing waits."""
    RUNNING = "RUNNING"
    """Code of a user runs."""
    STARTING = "STARTING"
    """It is about to run: a message is under way, or a worker process starts."""
    WORKER = "WORKER"
    """It is with a worker, which knows more about it."""
    TASK = "TASK"
    """An object: the call that makes it is not over."""
    OWNER = "OWNER"
    """An object of another process, which knows what becomes of it."""
    DEPENDENCIES = "DEPENDENCIES"
    """Arguments are not there."""
    BEHIND_OTHERS = "BEHIND_OTHERS"
    """Other calls are first: on its worker, or of its actor."""
    GET = "GET"
    """Its code waits in get() or wait()."""
    LEASE = "LEASE"
    """It waits for a worker, which a raylet knows more about."""
    RESOURCES = "RESOURCES"
    """What it needs is in use."""
    INFEASIBLE = "INFEASIBLE"
    """No node has what it needs, whatever runs there."""
    NO_SUCH_NODE = "NO_SUCH_NODE"
    """It has to run on a node that is not there."""
    WORKERS_FAIL = "WORKERS_FAIL"
    """Worker processes do not start."""
    HELD_BY_ACTOR = "HELD_BY_ACTOR"
    """A living actor holds a resource until it ends."""
    OWNED = "OWNED"
    """An actor: it lives as long as somebody has a handle of it."""
    LOCK = "LOCK"
    """A call of an actor: another call has a lock that it wants."""
    SIGNAL = "SIGNAL"
    """A coroutine of an actor: somebody there has to put an item, to take one, to release or to notify."""
    ACTOR = "ACTOR"
    """A call: its actor does not run yet, or not at present."""
    ACTOR_DEAD = "ACTOR_DEAD"
    ACTOR_RESTARTING = "ACTOR_RESTARTING"
    """It pauses, or its last process may still run."""
    UNREACHABLE = "UNREACHABLE"
    """A process that lives, as far as anybody knows, does not answer."""
    STOPPED = "STOPPED"
    """A process does not answer, since a signal or a debugger has stopped it."""
    PLACEMENT_GROUP = "PLACEMENT_GROUP"
    """Its placement group has no place yet."""
    PLACEMENT_GROUP_REMOVED = "PLACEMENT_GROUP_REMOVED"
    RETRY_PAUSE = "RETRY_PAUSE"
    """It runs again after a pause."""
    FETCH = "FETCH"
    """It is on another node, and wanted on this one."""
    TRANSFER = "TRANSFER"
    """It is being copied from another node."""
    STORE_FULL = "STORE_FULL"
    """A node's object store has no room for it."""
    HELD_BY_GROUP = "HELD_BY_GROUP"
    """A placement group holds a resource until it is removed."""
    HELD_BY_DRIVER = "HELD_BY_DRIVER"
    """A driver holds references until it drops them."""
    BACKPRESSURE = "BACKPRESSURE"
    """A generator: its caller has not taken what it yielded."""
    HEAD = "HEAD"
    """It waits for an answer of the head."""
    HEAD_AWAY = "HEAD_AWAY"
    """The head does not answer."""
    NODE_DRAINED = "NODE_DRAINED"
    """Only a node that is drained has what it needs."""
    OWNER_DIED = "OWNER_DIED"
    """An object: the process that owned it has ended, and the value with it."""
    LOST = "LOST"
    """An object: the nodes that had it are gone. Who needs it has it made again, if that can be, or an
    error."""
    UNKNOWN = "UNKNOWN"
    """Nobody knows it, or knows why."""


MOVING = frozenset(
    {
        WaitCode.READY,
        WaitCode.RUNNING,
        WaitCode.STARTING,
        WaitCode.RETRY_PAUSE,
        WaitCode.ACTOR_RESTARTING,
        WaitCode.TRANSFER,
        WaitCode.LOST,
    }
)
"""The reasons of what is not stuck: it is there, it runs, or it is about to, when a time is over."""
FOR_SOMEBODY = frozenset(
    {
        WaitCode.HELD_BY_ACTOR,
        WaitCode.OWNED,
        WaitCode.HELD_BY_GROUP,
        WaitCode.HELD_BY_DRIVER,
        WaitCode.BACKPRESSURE,
        WaitCode.UNREACHABLE,
        WaitCode.HEAD_AWAY,
        WaitCode.LOCK,
        WaitCode.SIGNAL,
        WaitCode.RESOURCES,
        WaitCode.UNKNOWN,
    }
)
"""Those of what somebody may end, who need not be known, and nobody knows whether he will: an outlook that is
open, where nothing else is waited for."""
PASSING = frozenset(
    {
        WaitCode.TASK,
        WaitCode.WORKER,
        WaitCode.OWNER,
        WaitCode.DEPENDENCIES,
        WaitCode.BEHIND_OTHERS,
        WaitCode.GET,
        WaitCode.LEASE,
        WaitCode.ACTOR,
        WaitCode.PLACEMENT_GROUP,
        WaitCode.HEAD,
        WaitCode.FETCH,
        WaitCode.LOCK,
    }
)
"""Those of what waits for something else, whose reason says more."""
SILENT = frozenset({WaitCode.WORKER, WaitCode.OWNER, WaitCode.LEASE})
"""Those that people need not hear of where another link follows."""
CLAUSES_MAX = 10
"""Of one sentence. `Explanation.links` has all of them."""
ADD_A_NODE = "add a node with "
"""How the last advice begins where that would help."""
DEADLOCK = "DEADLOCK"
"""The code of what waits for itself, over others."""


@dataclass(frozen=True)
class NodeShortage:
    """What a node lacks that could hold what is needed. In user units, by name."""

    node_id: str
    missing: Mapping[str, float]
    available: Mapping[str, float]
    total: Mapping[str, float]


@dataclass(frozen=True)
class WaitLink:
    """One step of the way: what waits, and why."""

    kind: str
    """object, task, actor, placement_group, lease, worker, node, head or store."""
    id: str
    """Hexadecimal."""
    name: str
    """Of a task its function, of an actor its class; may be empty."""
    code: str
    text: str
    """A clause that names what waits."""
    unblock: str
    """What would help; may be empty."""
    shortages: tuple[NodeShortage, ...] = ()
    history: str = ""
    """A clause that says how earlier attempts ended; empty where this is the first."""
    num_needed: int = 0
    """So many of those that it waits for have to end, or to be there; 0 where it takes one, or all."""


@dataclass(frozen=True)
class Explanation:
    """What something waits for, followed to where the way ends."""

    links: tuple[WaitLink, ...]
    outlook: Outlook
    cycle: tuple[WaitLink, ...] = ()
    """Those that wait for each other: a deadlock. Empty where it is none."""

    @property
    def is_stuck(self) -> bool:
        return self.outlook is Outlook.STUCK

    @property
    def code(self) -> str:
        """DEADLOCK, or the code of the first link that does not only wait for another one."""
        if self.cycle:
            return DEADLOCK
        codes = [link.code for link in self.links]
        # What moves, as far as it knows itself, does not say why the whole does not.
        passing = PASSING if self.outlook is Outlook.MOVES else PASSING | MOVING
        return next((code for code in codes if code not in passing), codes[-1] if codes else "UNKNOWN")

    @property
    def has_begun(self) -> bool:
        """It runs, or is there. What waits for something that runs has the same code."""
        told = (link.code for link in self.links if link.code not in SILENT)
        return next(told, "") in (WaitCode.READY, WaitCode.RUNNING)

    @property
    def unblock(self) -> str:
        """What would help; empty where nothing has to be done."""
        if self.cycle:
            return "cancel or kill one of these, or let it do without the others"
        found = [link for link in self.links if link.unblock]
        if not found:
            return ""
        ways = found[-1].unblock
        if len(found) > 1 and found[-1].code == WaitCode.HELD_BY_ACTOR:
            if (num := max(link.num_needed for link in self.links)) > 1:
                ways = f"end {num} of those that hold it, of which that actor is one"
            # Where the actor stays, there may be another way, of which the node with the resources knows.
            _, _, more = found[-2].unblock.partition(ADD_A_NODE)
            if more:
                ways = f"{ways.replace(', or ', ', ')}, or {ADD_A_NODE}{more}"
            if self.outlook is Outlook.MOVES:
                ways = f"wait, {ways}"
        return ways

    @property
    def text(self) -> str:
        """All of it in one sentence."""
        clauses: list[str] = []
        for link in self.links:
            is_told = link is self.links[-1] or link.code not in SILENT
            clauses += [clause for clause in (link.history, link.text * is_told) if clause]
        if len(clauses) > CLAUSES_MAX:
            # The way there, and where it ends.
            left_out = len(clauses) - CLAUSES_MAX
            clauses[CLAUSES_MAX // 2 : -(CLAUSES_MAX // 2)] = [f"and so on, over {left_out} more"]
        told = "; ".join(clauses)
        if self.cycle:
            told += f": a deadlock, in which {_who_wait(self.cycle)}"
        return f"{told}. To unblock it: {self.unblock}." if self.unblock else f"{told}."

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        return {
            "code": self.code,
            "text": self.text,
            "unblock": self.unblock,
            "outlook": self.outlook,
            "links": [asdict(link) for link in self.links],
            "cycle": [asdict(link) for link in self.cycle],
        }

    def __str__(self) -> str:
        return self.text


def _who_wait(cycle: Sequence[WaitLink]) -> str:
    waiting = {link.id: link.name for link in reversed(cycle) if link.name}
    names = list(dict.fromkeys(reversed(waiting.values()))) or ["it"]
    if len(names) > 1:
        return f"{' and '.join(names)} wait for each other"
    # A call has one id as a task; who holds something is told by the id of its worker.
    num_calls = len({link.id for link in cycle if link.name and link.kind in ("task", "worker")})
    return f"calls of {names[0]} wait for each other" if num_calls > 1 else f"{names[0]} waits for itself"


@dataclass(frozen=True)
class Waiting:
    """So many calls, actors or placement groups that wait alike, as one of them does."""

    count: int
    example: Explanation


@dataclass(frozen=True)
class WaitingOverview:
    """All that waits in a cluster."""

    groups: tuple[Waiting, ...]
    num_not_looked_at: int = 0
    """Of groups, beyond those that were."""
    silent: tuple[str, ...] = ()
    """Who did not answer: what waits there is missing."""

    @property
    def by_code(self) -> dict[str, list[Waiting]]:
        """By why they wait, those with most first."""
        found: dict[str, list[Waiting]] = {}
        for group in sorted(self.groups, key=lambda group: (-group.count, group.example.text)):
            found.setdefault(group.example.code, []).append(group)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        told = {
            code: [{"count": group.count, "example": group.example.to_dict()} for group in groups]
            for code, groups in self.by_code.items()
        }
        return {"waiting": told, "num_not_looked_at": self.num_not_looked_at, "silent": list(self.silent)}

    def __str__(self) -> str:
        lines = [] if self.groups or self.silent else ["Nothing waits."]
        for code, groups in self.by_code.items():
            lines.append(f"{code}: {sum(group.count for group in groups)}")
            lines += [f"  {group.count} × {group.example}" for group in groups]
        if self.num_not_looked_at:
            lines.append(f"and {self.num_not_looked_at} kinds more, which were not looked at")
        if self.silent:
            lines.append(f"Not heard, since they did not answer: {', '.join(self.silent)}.")
        return "\n".join(lines)

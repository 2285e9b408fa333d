"""Objects of ours that somebody could not get from the stores that were said to have them: they are found on
another node, made again by their tasks, or told as lost. Ray's ObjectRecoveryManager.

    known, in stores   ──a store, or a borrower, did not get it there──►
                           known, in the others       if there are other copies
                           LOOKED FOR                 if not
    LOOKED FOR         ──the GCS has said which nodes are dead──►
                           MADE AGAIN                 its task may run again
                           known, as an error         it may not, and the nodes that had it are dead
                           known, where it was        it may not, and one of these nodes lives: a moment
                                                      later whoever wants it tries again, and after some
                                                      times is told why it cannot be made
    MADE AGAIN         ──its task was answered, or failed──► known

LOOKED FOR and MADE AGAIN are pending for the memory store. So whoever waits for the object waits on, and asks
nobody; any number of reports of one loss lead to one run of its task. A loss is reported by whoever needs the
object, and nothing is done for an object that nobody reads.

When a task runs again, its arguments are looked at: those that are known to lie on dead nodes only, and those
that went out of scope, are made again as well, and so on. That costs one step for each. Arguments that turn
out to be lost later are reported by the worker that reads them, which waits meanwhile. What goes out of scope
goes again after the run that made it. So whatever else is lost and would need that is made of the same run:
otherwise each of many results of one task would cost it a retry.

The nodes that did not give the object are freed with it: they may live, and have it.

Called under the core worker's lock; never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.lineage import Lineage, Reason
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.store_provider.memory_store import Entry, MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.protobuf import common_pb2
from ray_mono.rpc.surface import RpcError


class Remaker(Protocol):
    """Has tasks run again: task_submission/reconstruction.py."""

    def why_not(self, object_id: bytes) -> Reason | None:
        """Why no task makes this object again; None where one can."""
        ...

    def prepare(self, object_id: bytes) -> Sequence[bytes]:
        """The task that makes the object is pending again, if it is not already. Returns what that task needs
        and what has to be looked at."""
        ...

    def start(self) -> None:
        """Those that were prepared are submitted, as soon as their arguments are there."""
        ...


class ObjectRecovery:
    """The lost objects that this process owns."""

    def __init__(
        self,
        env: Environment,
        references: ReferenceCounter,
        memory_store: MemoryStore,
        plasma: PlasmaStoreProvider,
        lineage: Lineage[Any],
        remaker: Callable[[], Remaker],
    ) -> None:
        self._env = env
        self._references = references
        self._memory_store = memory_store
        self._plasma = plasma
        self._lineage = lineage
        self._remaker = remaker
        # As the GCS said last.
        self._dead: set[bytes] = set()
        self._looked_for: dict[bytes, Entry] = {}
        # How often an object was looked for in vain, of those that are not found or freed since.
        self._tries: dict[bytes, int] = {}
        # By object: nodes that are not named any more, and may have a copy.
        self._left_behind: dict[bytes, dict[bytes, None]] = {}
        # Those of `_looked_for` that are tried again a moment later.
        self._waiting: set[bytes] = set()
        # Which question to the GCS is open; 0: none.
        self._question = 0
        self._num_asked = 0

    def lost(self, object_id: bytes, node_ids: Iterable[bytes]) -> None:
        """Somebody did not get this object of ours from these nodes."""
        entry = self._memory_store.get(object_id)
        if entry is None or entry.locations is None:
            return  # it is on its way again, or known otherwise
        failed = set(node_ids)
        left = [node_id for node_id in entry.locations if node_id not in failed]
        if len(left) == len(entry.locations):
            return  # these are other copies
        if left:
            self._leave_behind(object_id, [each for each in entry.locations if each in failed])
            self._memory_store.put_in_store(object_id, left, entry.size_bytes)
            return
        self._memory_store.forget(object_id)
        self._looked_for[object_id] = entry
        if self._is_gone(entry):
            self._decide([object_id])
        elif not self._question:
            self._ask_for_dead_nodes()

    def given_up(self, object_id: bytes, node_ids: Iterable[bytes]) -> tuple[bytes, bytes] | None:
        """The same of somebody who has asked these nodes often: why it cannot be made again, as an error's
        metadata and data. Others may yet get it. None where it can be made, or may lie elsewhere."""
        entry = self._memory_store.get(object_id)
        if entry is not None and entry.locations and set(entry.locations) <= set(node_ids):
            why_not = self._remaker().why_not(object_id)
            if why_not is not None:
                return why_not.serialized(object_id)
        self.lost(object_id, node_ids)
        return None

    def found(self, object_id: bytes, node_id: bytes) -> None:
        """A node has a copy of an object that was not known to lie in stores."""
        entry = self._looked_for.pop(object_id, None)
        if entry is not None:
            self._leave_behind(object_id, entry.locations or ())
            self._memory_store.put_in_store(object_id, [node_id], entry.size_bytes)
        else:
            self._leave_behind(object_id, [node_id])

    def value_ended(self, object_id: bytes, known: Entry | None = None) -> None:
        """An object of ours is out of scope, or lies in no store any more. It is freed where it is known to
        lie, and where else it may have a copy."""
        locations: Sequence[bytes] = (known.locations or ()) if known is not None else ()
        if self._tries:
            self._tries.pop(object_id, None)
        if self._looked_for or self._left_behind:
            entry = self._looked_for.pop(object_id, None)
            nodes = dict.fromkeys(locations)
            nodes.update(dict.fromkeys(entry.locations or () if entry is not None else ()))
            nodes.update(dict.fromkeys(self._left_behind.pop(object_id, ())))
            locations = list(nodes)
        if locations:
            self._plasma.free(object_id, list(locations))
        self._lineage.not_stored(object_id)

    def fail(self, object_id: bytes, why_not: Reason) -> None:
        """It is lost for good, which is its value from now on."""
        self._memory_store.put_inline(object_id, *why_not.serialized(object_id))

    # ---- which nodes are dead

    def _is_gone(self, entry: Entry) -> bool:
        """Whether all nodes that had it are known to be dead. This one would have given it."""
        return all(node_id in self._dead or node_id == self._env.node_id for node_id in entry.locations or ())

    def _ask_for_dead_nodes(self) -> None:
        self._num_asked += 1
        number = self._question = self._num_asked

        def answered(reply: Any, error: RpcError | None) -> None:
            if self._question != number:
                return
            self._question = 0
            if reply is not None:
                dead = common_pb2.NODE_DEAD
                self._dead = {node.node_id for node in reply.nodes if node.state == dead}
            self._decide([each for each in self._looked_for if each not in self._waiting])

        self._env.reactor.call_later(self._env.config.nodes_answer_s, lambda: answered(None, None))
        self._env.gcs.GetAllNodes.start(common_pb2.Empty(), answered)

    def _decide(self, object_ids: Sequence[bytes]) -> None:
        remaker = self._remaker()
        lost = []
        for object_id in object_ids:
            entry = self._looked_for.pop(object_id, None)
            if entry is None:
                continue  # it went out of scope with one before it
            locations = entry.locations or []
            why_not = remaker.why_not(object_id)
            if why_not is None:
                self._leave_behind(object_id, locations)
                lost.append(object_id)
            elif self._is_gone(entry):
                self.fail(object_id, why_not)
            else:
                self._try_again_later(object_id, entry)
        if lost:
            self._make_again(lost)

    def _try_again_later(self, object_id: bytes, entry: Entry) -> None:
        """A node that has it lives, as the GCS says: it may be about to learn otherwise."""
        self._looked_for[object_id] = entry
        self._waiting.add(object_id)
        tries = self._tries[object_id] = self._tries.get(object_id, 0) + 1

        def try_again() -> None:
            self._waiting.discard(object_id)
            if self._looked_for.get(object_id) is entry:
                del self._looked_for[object_id]
                self._memory_store.put_in_store(object_id, list(entry.locations or ()), entry.size_bytes)

        config = self._env.config
        times = min(tries, config.fetch_attempts_max) - 1
        self._env.reactor.call_later(config.lost_retry_s * config.lost_retry_factor**times, try_again)

    # ---- another run of its task

    def _make_again(self, lost: list[bytes]) -> None:
        remaker = self._remaker()
        seen: set[bytes] = set()
        seen_tasks: set[bytes] = set()
        while lost:
            object_id = lost.pop()
            if object_id in seen:
                continue
            seen.add(object_id)
            why_not = remaker.why_not(object_id)
            if why_not is not None:
                self.fail(object_id, why_not)
            else:
                lost += filter(self._has_to_be_made, remaker.prepare(object_id))
                lost += self._lineage.made_of(object_id, self._is_lost_as_well, seen_tasks)
        remaker.start()

    def _is_lost_as_well(self, object_id: bytes) -> bool:
        """Of an object in stores that nobody has asked for."""
        entry = self._memory_store.get(object_id)
        return entry is not None and bool(entry.locations) and self._has_to_be_made(object_id)

    def _has_to_be_made(self, object_id: bytes) -> bool:
        """Of an argument: its copies are lost."""
        row = self._references.get(object_id)
        if row is None or row.owner is not None or object_id in self._looked_for:
            return False
        entry = self._memory_store.get(object_id)
        if entry is None:
            return True
        if entry.locations is None or not all(node_id in self._dead for node_id in entry.locations):
            return False
        self._memory_store.forget(object_id)
        return True

    def _leave_behind(self, object_id: bytes, node_ids: Iterable[bytes]) -> None:
        alive = [node_id for node_id in node_ids if node_id not in self._dead]
        if alive:
            self._left_behind.setdefault(object_id, {}).update(dict.fromkeys(alive))

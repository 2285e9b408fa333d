"""The tree of a broadcast, of which each holder grows its part: whom it sends an object and whom it sends on.

A machine without I/O. A holder sends a large object to few nodes at a time. Whoever asks meanwhile is sent on
to these: they pass on what they have while the rest arrives. They do the same in turn. So one holder sends
two copies, however many nodes want the object at once, and what the last node gets is behind by as many hops
as the tree is deep.

Who gets an object from several holders asks for it by chunks, and is sent on with the first one or not at
all.

Who is sent on tells, when it comes back, which nodes did not give the object. It is not sent there again. If
none is left it is sent the object after all. So a broken tree costs copies, and hangs nobody.
"""

from __future__ import annotations

from collections.abc import Collection

from ray_mono.common.our_bug import check
from ray_mono.object_manager.keys import NodeKey, ObjectKey


class Senders:
    """Of one node: to whom it sends what."""

    def __init__(self, per_object_max: int, min_bytes: int) -> None:
        """min_bytes: smaller objects are sent to all who ask."""
        self._per_object_max = per_object_max
        self._min_bytes = min_bytes
        # By object: the nodes that it is sent to, and over how many streams. Who was sent on to a node last
        # stands last.
        self._receivers: dict[ObjectKey, dict[NodeKey, int]] = {}

    def begin(
        self,
        object_id: ObjectKey,
        size_bytes: int,
        asker: NodeKey,
        avoided: Collection[NodeKey],
        goes_on: bool = False,
    ) -> NodeKey | None:
        """None: the asker is sent the object, until `end`. Else the node that it is to ask. goes_on: it has
        just got other bytes here, and did not lose its place in between."""
        receivers = self._receivers.setdefault(object_id, {})
        if (
            not goes_on
            and asker not in receivers
            and len(receivers) >= self._per_object_max
            and size_bytes >= self._min_bytes
        ):
            relay = next((node for node in receivers if node not in avoided), None)
            if relay is not None:
                receivers[relay] = receivers.pop(relay)
                return relay
        receivers[asker] = receivers.get(asker, 0) + 1
        return None

    def end(self, object_id: ObjectKey, asker: NodeKey) -> None:
        """It has the object, or its stream broke."""
        receivers = self._receivers[object_id]
        receivers[asker] -= 1
        if not receivers[asker]:
            del receivers[asker]
        if not receivers:
            del self._receivers[object_id]

    def check_invariants(self) -> None:
        """Raises InternalError."""
        for receivers in self._receivers.values():
            check(bool(receivers), "an object is sent to nobody")
            check(all(count > 0 for count in receivers.values()), "a stream is miscounted")

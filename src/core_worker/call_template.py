"""What calls of one function, or of one method of one actor, have in common: sent once per connection, then
named by a number.

A TaskSpec is some twenty fields; a call differs from the next in three or four. So the constant part is a
template with a number that is unique in its process, and a Peer (peers.py) remembers which templates its
connection has carried. Equal templates are one: handles and remote functions that are made again and again
(unpickled in every task, say) do not make the receivers' tables grow.

A template lives while somebody who may call with it does, and as one of the latest RECENT_MAX; functions and
methods with options of their own for each call (a name, say) make as many as there are calls. Of those that
have ended the peers are told, ENDED_MAX at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from ray_mono.common.ids import TaskID
from ray_mono.core_worker.task_wire import push_head
from ray_mono.protobuf import common_pb2

RECENT_MAX = 1000
ENDED_MAX = 256


OnPart = Callable[[Any, bytes, Any], None]


class CallTemplate:
    """The constant part of calls."""

    __slots__ = (
        "__weakref__",
        "_ended",
        "heads",
        "name",
        "num_returns",
        "number",
        "on_part",
        "spec",
        "title",
    )

    def __init__(
        self,
        spec: common_pb2.TaskSpec,
        number: int,
        ended: deque[int] | None = None,
        title: str = "",
        on_part: OnPart | None = None,
    ) -> None:
        """ended: takes the number when it is gone, on whichever thread that happens."""
        self.spec = spec
        self.number = number
        self._ended = ended
        self.name: str = spec.name
        # As errors name it: with the actor's class.
        self.title: str = title or spec.name
        # References that a call returns at once.
        self.num_returns: int = spec.num_returns if spec.num_returns >= 0 else 1
        # Of generators: takes (the peer that runs it, task id, part of the answer) as items arrive.
        self.on_part = on_part
        # What stands before the task's id in a push (task_wire.py), by the task's depth.
        self.heads: dict[int, bytes] = {}

    def head(self, depth: int) -> bytes:
        """The same, made with the first push of this depth."""
        head = self.heads[depth] = push_head(self.number, depth, TaskID.SIZE)
        return head

    def __del__(self) -> None:
        if self._ended is not None:
            self._ended.append(self.number)


class CallTemplates:
    """The templates of one process. Lock held."""

    def __init__(self, tell_ended: Callable[[set[int]], None]) -> None:
        """tell_ended: has the peers forget templates that are gone here."""
        self._tell_ended = tell_ended
        self._functions: WeakValueDictionary[bytes, CallTemplate] = WeakValueDictionary()
        self._recent: deque[CallTemplate] = deque(maxlen=RECENT_MAX)
        self._ended: deque[int] = deque()
        self._num_made = 0

    def of_function(self, spec: common_pb2.TaskSpec, on_part: OnPart | None) -> CallTemplate:
        """The one template of equal specifications."""
        content = spec.SerializeToString(deterministic=True)
        template = self._functions.get(content)
        if template is None:
            template = self._functions[content] = self.new(spec, on_part=on_part)
        return template

    def new(self, spec: common_pb2.TaskSpec, title: str = "", on_part: OnPart | None = None) -> CallTemplate:
        """For a method of an actor, who keeps it."""
        if len(self._ended) >= ENDED_MAX:
            self._tell_ended({self._ended.popleft() for _ in range(len(self._ended))})
        self._num_made += 1
        made = CallTemplate(spec, self._num_made, self._ended, title, on_part)
        self._recent.append(made)
        return made

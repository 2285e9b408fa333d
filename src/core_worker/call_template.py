"""What the calls of one function, or of one method of one actor, have in common. It is sent once per
connection, and then named by a number.

A TaskSpec has some twenty fields, and a call differs from the next in three or four. So the constant part is
a template, whose number is unique in its process. A Peer (peers.py) remembers which templates its connection
has carried. Calls of functions with equal specifications share a template, and so do all handles of an actor.
So the receivers' tables do not grow where handles and remote functions are made again and again, as when
every task unpickles one.

A template lives while something that may call with it lives, and while it is one of the latest RECENT_MAX:
calls that have options of their own (a name, say) make a template each. When ENDED_MAX templates have ended,
the peers are told to forget them.
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


Pace = deque[float]
"""How long the latest calls of one function took, in µs. Who pushes tasks ahead goes by it. It is kept for
each function, since others with the same resources may take a thousand times as long."""
PACE_CALLS_MAX = 5
NO_PACE = Pace(maxlen=0)
"""Of calls that are not pushed ahead, as those of actors: it keeps nothing."""

OnPart = Callable[[Any, bytes, Any], None]
"""Takes items of a generator: the peer that runs it, the task's id, and the part of the answer with them."""


class CallTemplate:
    """The constant part of calls."""

    __slots__ = (
        "__weakref__",
        "_ended",
        "heads",
        "num_returns",
        "number",
        "on_part",
        "pace",
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
        pace: Pace = NO_PACE,
    ) -> None:
        """ended: takes the number when the template is gone, on whichever thread that happens."""
        self.spec = spec
        self.pace = pace
        self.number = number
        self._ended = ended
        # The name that people see: of a method it has the actor's class.
        self.title: str = title or spec.name
        # How many references a call returns at once. A generator's is its end.
        self.num_returns: int = spec.num_returns if spec.num_returns >= 0 else 1
        # Of a generator; None for other calls.
        self.on_part = on_part
        # By the depth of a task: the bytes before the task's id in its push (task_wire.py).
        self.heads: dict[int, bytes] = {}

    def head(self, depth: int) -> bytes:
        """Makes these bytes with the first push of this depth, and keeps them."""
        head = self.heads[depth] = push_head(self.number, depth, TaskID.SIZE)
        return head

    def __del__(self) -> None:
        if self._ended is not None:
            self._ended.append(self.number)


class CallTemplates:
    """The templates of one process. Lock held."""

    def __init__(self, tell_ended: Callable[[set[int]], None]) -> None:
        """tell_ended(numbers) has the peers forget templates that are gone here."""
        self._tell_ended = tell_ended
        self._functions: WeakValueDictionary[tuple[int, bytes], CallTemplate] = WeakValueDictionary()
        self._paces: WeakValueDictionary[bytes, Pace] = WeakValueDictionary()
        self._recent: deque[CallTemplate] = deque(maxlen=RECENT_MAX)
        self._ended: deque[int] = deque()
        self._num_made = 0

    def of_function(
        self, spec: common_pb2.TaskSpec, on_part: OnPart | None, queue_number: int = 0
    ) -> CallTemplate:
        """The template of this specification: equal ones that wait in the same queue share it. All of one
        function share their pace."""
        content = queue_number, spec.SerializeToString(deterministic=True)
        template = self._functions.get(content)
        if template is None:
            pace = self._pace_of(spec.function)
            template = self._functions[content] = self.new(spec, on_part=on_part, pace=pace)
        return template

    def _pace_of(self, function: common_pb2.FunctionDescriptor) -> Pace:
        made = Pace(maxlen=PACE_CALLS_MAX)
        return self._paces.setdefault(function.SerializeToString(deterministic=True), made)

    def new(
        self,
        spec: common_pb2.TaskSpec,
        title: str = "",
        on_part: OnPart | None = None,
        pace: Pace = NO_PACE,
    ) -> CallTemplate:
        """A template of its own, as a method of an actor has it. Whoever asks for it keeps it."""
        if len(self._ended) >= ENDED_MAX:
            self._tell_ended({self._ended.popleft() for _ in range(len(self._ended))})
        self._num_made += 1
        made = CallTemplate(spec, self._num_made, self._ended, title, on_part, pace)
        self._recent.append(made)
        return made

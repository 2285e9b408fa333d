"""What calls of one function, or of one method of one actor, have in common: sent once per connection, then named by a number.

A TaskSpec is some twenty fields; a call differs from the next in three or four. So the constant part is a template with a number that is
unique in its process, and a Peer remembers which templates its connection has carried. Equal templates are one: handles and remote
functions that are made again and again (unpickled in every task, say) do not make the receivers' tables grow.

A template lives while somebody who may call with it does, and as one of the latest RECENT_MAX; functions and methods with options of
their own for each call (a name, say) make as many as there are calls. Of those that have ended the peers are told, ENDED_MAX at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.protobuf.core_worker_rpc import CoreWorkerServiceStub
from ray_mono.rpc.reactor_channel import ReactorChannel

if TYPE_CHECKING:
    from ray_mono.core_worker.core_worker import CoreWorker
    from ray_mono.core_worker.task_submission.normal_task_submitter import SchedulingQueue
    from ray_mono.core_worker.task_submission.task_manager import PendingTask


RECENT_MAX = 1000
ENDED_MAX = 256


class CallTemplate:
    """The constant part of calls."""

    __slots__ = ("__weakref__", "_ended", "name", "num_returns", "number", "on_part", "spec", "title")

    def __init__(self, spec: common_pb2.TaskSpec, number: int, ended: deque[int] | None = None) -> None:
        """ended: takes the number when it is gone, on whichever thread that happens."""
        self.spec = spec
        self.number = number
        self._ended = ended
        self.name: str = spec.name
        # As errors name it: with the actor's class.
        self.title: str = spec.name
        # References that a call returns at once.
        self.num_returns: int = spec.num_returns if spec.num_returns >= 0 else 1
        # Of generators: takes (executor, task id, part of the answer) as items arrive.
        self.on_part: Callable[[Peer, bytes, Any], None] | None = None

    def __del__(self) -> None:
        if self._ended is not None:
            self._ended.append(self.number)


class CallTemplates:
    """The templates of one process. Lock held."""

    def __init__(self, peers: Callable[[], Iterable[Peer]]) -> None:
        self._peers = peers
        self._functions: WeakValueDictionary[bytes, CallTemplate] = WeakValueDictionary()
        self._recent: deque[CallTemplate] = deque(maxlen=RECENT_MAX)
        self._ended: deque[int] = deque()
        self._num_made = 0

    def of_function(self, spec: common_pb2.TaskSpec) -> CallTemplate:
        """The one template of equal specifications."""
        content = spec.SerializeToString(deterministic=True)
        template = self._functions.get(content)
        if template is None:
            template = self._functions[content] = self.new(spec)
        return template

    def new(self, spec: common_pb2.TaskSpec) -> CallTemplate:
        """For a method of an actor, who keeps it."""
        if len(self._ended) >= ENDED_MAX:
            ended = {self._ended.popleft() for _ in range(len(self._ended))}
            for peer in list(self._peers()):
                peer.forget(ended)
        self._num_made += 1
        made = CallTemplate(spec, self._num_made, self._ended)
        self._recent.append(made)
        return made


@dataclass(frozen=True)
class TaskTemplate:
    """What calls of one remote function with one set of options share."""

    core: CoreWorker
    options: TaskOptions
    queue: SchedulingQueue
    call: CallTemplate
    captured: tuple[ObjectRef[Any], ...]
    resubmit: Callable[[PendingTask], None]


@dataclass
class MethodTemplate:
    """What calls of one method through one handle share."""

    name: str
    class_name: str = ""
    num_returns: int = 1
    generator_backpressure_num_objects: int = 0
    max_task_retries: int = 0
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    concurrency_group: str = ""
    hides_events: bool = False
    task_name: str = ""
    """Shown instead of the method's; empty: that."""
    # Made with the first call.
    call: CallTemplate | None = None
    resubmit: Callable[[PendingTask], None] | None = None


class Peer:
    """Another core worker, as this one calls it: one connection, and what it has carried: templates, and functions for all workers."""

    __slots__ = ("_carried", "_num_told", "_worker_runs", "channel", "stub", "worker_id")

    def __init__(self, channel: ReactorChannel, worker_id: bytes, worker_runs: Sequence[bytes]) -> None:
        """worker_runs: keys of functions that every worker runs before what is pushed after them; only appended to (worker_runs.py)."""
        self.channel = channel
        self.stub = CoreWorkerServiceStub(channel)
        self.worker_id = worker_id
        self._carried: set[int] = set()
        self._worker_runs = worker_runs
        self._num_told = 0

    def push(self, template: CallTemplate, request: Any, on_done: Any) -> None:
        """PushTask, with the template where the peer has not seen it. Lock held."""
        number = template.number
        on_part = None if template.on_part is None else partial(template.on_part, self, request.task_id)
        if number in self._carried and self._num_told == len(self._worker_runs):
            self.stub.PushTask.start(request, on_done, on_part)
            return
        self._carried.add(number)
        request.spec.CopyFrom(template.spec)
        request.intended_worker_id = self.worker_id
        request.run_first.extend(self._worker_runs[self._num_told :])
        self._num_told = len(self._worker_runs)
        self.stub.PushTask.start(request, on_done, on_part)
        request.ClearField("spec")
        request.ClearField("intended_worker_id")
        request.ClearField("run_first")

    def forget(self, ended: set[int]) -> None:
        """These templates are gone here. Lock held."""
        numbers = self._carried & ended
        if numbers:
            self._carried -= numbers
            request = core_worker_pb2.ForgetTemplatesRequest(template_ids=numbers)
            self.stub.ForgetTemplates.notify(request)

"""The calls that wait in a worker: pushed by their owners, taken one after another by the main thread, or
given back.

    PushTask ──queue──► the main thread (executor.py)
                 ├── GiveBackTasks, or the running task blocks ──► NOT_STARTED: the owner has it run elsewhere
                 ├── cancelled ──► CANCELLED
                 ├── its actor moves ──► NOT_STARTED, also for what comes after that
                 ├── TakeBackCalls: its caller comes back on another connection, and is told so. What came
                 │   on those before, and has not been read yet, never is
                 └── the worker ends ──► WRONG_WORKER for what comes after that

The queue's last item may be None. Then the worker ends when what is before it has run. Lock held, unless a
method says otherwise.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from ray_mono.common.ids import TaskID
from ray_mono.common.start_board import LEASE_SHIFT, StartBoard
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.reference_counting.borrowing import CALLER
from ray_mono.core_worker.task_execution.call import Call, KnownSpec, Reply, call_of
from ray_mono.core_worker.task_execution.creation_answer import CreationAnswer
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.shared_calls import SharedAnswers, SharedCalls
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns
from ray_mono.protobuf import common_pb2, core_worker_pb2
from ray_mono.rpc.reactor import Waiter
from ray_mono.rpc.reactor_server import ServerCall

Queued = Call | SharedCalls | None


class TaskReceiver:
    """The queue of one worker."""

    def __init__(
        self,
        env: Environment,
        context: WorkerContext,
        running: Running,
        blocked: BlockedNotice,
        worker_runs: WorkerRuns,
        board: StartBoard,
        kept: KeptAnswers,
    ) -> None:
        self._env = env
        self._context = context
        self._board = board
        self._kept = kept
        self._running = running
        self._blocked = blocked
        self._worker_runs = worker_runs
        self.queue: deque[Queued] = deque()
        """What waits, in order. The main thread takes calls from its front."""
        # Of the main thread, while it has nothing to do.
        self._waiter: Waiter | None = None
        self._creation: CreationAnswer | None = None
        # Whoever waits until nothing of the actor runs here. Not None: it moves.
        self._movers: list[ServerCall] | None = None
        self.has_moved = False
        """Nothing of the actor runs here any more: it goes on elsewhere."""
        self._next_number = 0  # of the lease's next task; 0 where its holder does not count them
        # Of each caller of the actor, the connections that brought calls.
        self._callers: defaultdict[bytes, set[Any]] = defaultdict(set)

    # ---- served

    def PushTask(self, request: Any, call: ServerCall) -> None:
        if self._creation is not None and type(request) is not tuple:
            if (request.task_id or request.spec.task_id) == self._creation.task_id:
                self._creation.asked_again(call)
                return
        queue = self.queue
        if self._running.is_ending or (queue and queue[-1] is None):
            call.reply(self._refusal())
            return
        number = self._next_number
        if type(request) is tuple:  # a UsualPush
            template_id, depth, task_id, flat_args = request
            spec = call.connection.state[template_id]
            pushed = Call.usual(spec, task_id, depth, flat_args, call, number)
        else:
            wanted = request.intended_worker_id
            if wanted and wanted != self._env.worker_id:
                call.reply(Reply(status=Reply.WRONG_WORKER))
                return
            spec = self._learn(request, call.connection)
            number = self._next_number
            answer_to: Any = call
            if spec.type == common_pb2.ACTOR_CREATION_TASK:
                task_id = request.task_id or request.spec.task_id
                answer_to = self._creation = CreationAnswer(task_id, request, call)
            pushed = call_of(spec, request, answer_to, number)
        if number:
            self._next_number = number + 1
        queue.append(pushed)
        waiter = self._waiter
        if waiter is not None and not waiter.done:
            waiter.set()

    def _learn(self, request: Any, connection: Any) -> KnownSpec:
        """What a push brings that those behind it leave out. Returns its own specification."""
        templates = connection.state
        if request.lease_id:
            # Now, and not when the task runs: it may be given back before, and only the first task of a lease
            # names it.
            self._blocked.under_lease(request.lease_id)
            self._next_number = (request.lease_number << LEASE_SHIFT) + 1 if request.lease_number else 0
        number = request.template_id
        if number and not request.HasField("spec"):
            return templates[number]
        spec = KnownSpec(request.spec)
        if spec.group.captures:
            self._context.has_capturing()
        if number:
            templates[number] = spec
            self._worker_runs.learn(request.run_first)
        if spec.type == common_pb2.ACTOR_TASK and CALLER not in templates:
            templates[CALLER] = spec.caller.worker_id
            self._follow_caller(connection, spec.caller.worker_id)
        return spec

    def _follow_caller(self, connection: Any, worker_id: bytes) -> None:
        """It calls this worker's actor, on a connection that is new."""
        self._board.caller_came(worker_id)
        self._callers[worker_id].add(connection)

        def ended(reason: str) -> None:
            connections = self._callers[worker_id]
            connections.discard(connection)
            if not connections:
                del self._callers[worker_id]
            if not self._context.is_leaving:
                self._board.caller_lost(worker_id)

        connection.on_close(ended)

    def PushTasks(self, request: Any, call: ServerCall) -> None:
        num_calls = len(request.task_ids) // TaskID.SIZE
        if self._running.is_ending or (self.queue and self.queue[-1] is None):
            call.reply(core_worker_pb2.PushTasksReply(reply=self._refusal(), count=num_calls))
            return
        spec = call.connection.state[request.template_id]
        number = 0
        if spec.type != common_pb2.NORMAL_TASK:
            frame_id = request.task_ids[: TaskID.SIZE]
            answers = SharedAnswers(self._env, call, num_calls, None, self._kept, frame_id)
        else:
            if self._next_number:
                number, self._next_number = self._next_number, self._next_number + num_calls
            answers = SharedAnswers(self._env, call, num_calls, self._board if number else None)
        self._enqueue(SharedCalls(spec, request, answers, number))

    def _refusal(self) -> Any:
        return Reply(status=Reply.WRONG_WORKER if self._movers is None else Reply.NOT_STARTED)

    def GiveBackTasks(self, request: Any, call: ServerCall) -> None:
        self.give_back(call.connection)

    def give_back(self, connection: Any = None, type_: Any = common_pb2.NORMAL_TASK) -> None:
        """Answers NOT_STARTED to queued tasks of this type, of one connection or all."""
        if not self.queue:
            return
        for item in self._take_all(type_, lambda each: connection in (None, each)):
            if isinstance(item, SharedCalls):
                item.give_back()
            else:
                item.answer_to.reply(Reply(status=Reply.NOT_STARTED))

    def take_back(self, caller: bytes, connection: Any) -> bytes:
        """This caller of the actor comes back on `connection`. Those of its calls that have not begun never
        do; returns the id of the first. A process that was stopped may have more to read from the connection
        before, which its caller has given up, than it reads at once."""
        first = b""
        for item in self._take_all(common_pb2.ACTOR_TASK, lambda each: each.state.get(CALLER) == caller):
            if isinstance(item, SharedCalls):
                first = first or item.task_ids[item.left[0]]
                item.left.clear()
            else:
                first = first or item.task_id
        for other in self._callers.get(caller, set()) - {connection}:
            other.close("its process calls on another connection")
        return first

    def _take_all(self, type_: Any, is_of: Callable[[Any], bool]) -> list[Call | SharedCalls]:
        """Takes the tasks of this type out of the queue that came on a connection for which is_of() holds."""
        taken, kept = [], deque[Queued]()
        for item in self.queue:
            if item is None or item.spec.type != type_:
                kept.append(item)
            elif is_of(
                item.answers.connection if isinstance(item, SharedCalls) else item.answer_to.connection
            ):
                taken.append(item)
            else:
                kept.append(item)
        self.queue = kept
        return taken

    def take_queued(self, task_id: bytes) -> Call | None:
        """Takes a call that has not begun out of the queue."""
        for item in self.queue:
            if isinstance(item, SharedCalls):
                call = item.take_out(task_id)
                if call is not None:
                    if not item.left:
                        self.queue.remove(item)
                    return call
            elif item is not None and item.task_id == task_id:
                self.queue.remove(item)
                return item
        return None

    def queued(self) -> Iterator[tuple[KnownSpec, bytes, int]]:
        """What has not begun: of what comes together, the last one and how many they are."""
        for item in self.queue:
            if isinstance(item, SharedCalls):
                if item.left:
                    yield item.spec, item.task_ids[item.left[-1]], len(item.left)
            elif item is not None:
                yield item.spec, item.task_id, 1

    def told_again(self) -> list[common_pb2.ActorInfo]:
        """This worker's actor, for a GCS that has lost it."""
        if self._creation is None or self._running.is_ending or self.has_moved:
            return []
        info = self._creation.told_again(self._env.address, self._env.pid)
        return [] if info is None else [info]

    # ---- the main thread

    @property
    def is_resting(self) -> bool:
        """Nothing runs or waits on the main thread."""
        return self._waiter is not None and not self.queue

    def exit_after_queue(self) -> None:
        """Ends the process once what is queued has run."""
        self._enqueue(None)

    def move(self, call: ServerCall) -> None:
        """The actor goes to another node: no other call begins here. Answers when nothing of it runs."""
        if self._movers is None:
            self._movers = []
            self.give_back(type_=common_pb2.ACTOR_TASK)
            self.exit_after_queue()
        elif self.has_moved:
            call.reply(common_pb2.Empty())
            return
        self._movers.append(call)

    def moved(self, owes_answers: bool) -> None:
        """Nothing of the actor runs here any more. owes_answers: some of its calls have begun and have no
        answer."""
        self.has_moved = True
        if not owes_answers:
            self._board.moved()
        for call in self._movers or ():
            call.reply(common_pb2.Empty())

    @property
    def moves(self) -> bool:
        return self._movers is not None

    def _enqueue(self, item: Queued) -> None:
        self.queue.append(item)
        if self._waiter is not None and not self._waiter.done:
            self._waiter.set()

    def take_next_of(self, calls: SharedCalls) -> int:
        """Which of them is next; -1: none of them is, any more."""
        if not self.queue or self.queue[0] is not calls:
            return -1
        index = calls.left.popleft()
        if not calls.left:
            self.queue.popleft()
        return index

    def part_next_of(self, calls: SharedCalls) -> None:
        """The next of them, if they are next, stands alone in the queue from now on."""
        index = self.take_next_of(calls)
        if index >= 0:
            self.queue.appendleft(calls.call(index))

    def rest(self) -> Waiter:
        """There is no call. Returns what wakes the main thread."""
        self._waiter = Waiter(self._env.reactor)
        return self._waiter

    def awake(self) -> None:
        """The main thread looks again. Without the lock."""
        self._waiter = None

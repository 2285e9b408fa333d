"""The parts of a worker that run tasks, put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray_mono.common.start_board import StartBoard
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.environment import Environment
from ray_mono.core_worker.objects.blocked_notice import BlockedNotice
from ray_mono.core_worker.objects.futures import ObjectFutures
from ray_mono.core_worker.objects.getter import Getter
from ray_mono.core_worker.reference_counting.borrowing import Borrowing
from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from ray_mono.core_worker.reference_counting.reference_counter import ReferenceCounter
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.core_worker.task_execution.before_blocking import before_blocking
from ray_mono.core_worker.task_execution.call_arguments import ArgumentReader
from ray_mono.core_worker.task_execution.executor import Executor
from ray_mono.core_worker.task_execution.generator_runner import GeneratorRunner
from ray_mono.core_worker.task_execution.interrupter import Interrupter
from ray_mono.core_worker.task_execution.item_sender import SenderParts
from ray_mono.core_worker.task_execution.kept_answers import KeptAnswers
from ray_mono.core_worker.task_execution.run_reasons import RunReasons
from ray_mono.core_worker.task_execution.running import Running
from ray_mono.core_worker.task_execution.task_events import TaskEvents
from ray_mono.core_worker.task_execution.task_receiver import TaskReceiver
from ray_mono.core_worker.task_execution.task_reply import TaskReplies
from ray_mono.core_worker.task_submission.function_manager import FunctionManager
from ray_mono.core_worker.task_submission.task_canceller import TaskCanceller
from ray_mono.core_worker.task_submission.wait_reasons import WaitReasons
from ray_mono.core_worker.task_submission.worker_runs import WorkerRuns


@dataclass(frozen=True)
class ExecutionParts:
    """What running tasks uses of the core worker."""

    env: Environment
    context: WorkerContext
    references: ReferenceCounter
    memory_store: MemoryStore
    plasma: PlasmaStoreProvider
    dropped: DroppedReferences
    borrowing: Borrowing
    unpickled: UnpickledReferences
    blocked: BlockedNotice
    getter: Getter
    functions: FunctionManager
    worker_runs: WorkerRuns
    canceller: TaskCanceller
    events: TaskEvents
    futures: ObjectFutures
    reasons: WaitReasons


class Execution:
    """Of one worker."""

    def __init__(
        self, parts: ExecutionParts, running: Running, bind_job: Callable[[Any], None], board: StartBoard
    ) -> None:
        """bind_job: see Executor."""
        env = parts.env
        self.running = running
        self._context = parts.context
        parts.context.share(running)
        kept = KeptAnswers(env, board)
        self.receiver = TaskReceiver(
            env, parts.context, running, parts.blocked, parts.worker_runs, board, kept
        )
        self.replies = TaskReplies(
            env,
            parts.references,
            parts.borrowing,
            parts.plasma,
            parts.dropped,
            parts.blocked,
            board,
            kept,
            running,
            self.receiver,
        )
        sender_parts = SenderParts(env, parts.references, parts.borrowing, parts.plasma, kept)
        self.generators = GeneratorRunner(sender_parts, parts.blocked)
        self.interrupter = Interrupter(
            env, running, self.receiver, self.generators, parts.events, parts.canceller
        )
        self.executor = Executor(
            env,
            parts.context,
            bind_job,
            parts.worker_runs,
            board,
            kept,
            running,
            self.receiver,
            self.replies,
            self.interrupter,
            self.generators,
            parts.events,
            parts.functions,
            ArgumentReader(
                env,
                parts.references,
                parts.memory_store,
                parts.borrowing,
                parts.unpickled,
                parts.blocked,
                parts.getter,
            ),
            parts.unpickled,
            parts.blocked,
        )
        runs = RunReasons(
            env,
            parts.context,
            running,
            parts.blocked,
            parts.futures,
            parts.plasma,
            parts.reasons,
            self.receiver.queued,
        )
        parts.reasons.runs_by(runs.of, runs.waiting)
        parts.blocked.before_each(before_blocking(env, running, self.receiver))

    def is_task_cancelled(self) -> bool:
        """Whether the task that asks was cancelled. Raises RuntimeError in async actors."""
        if self.running.actor_is_asyncio:
            raise RuntimeError(
                "is_canceled() is not for async actors: there a call that is cancelled gets an"
                " asyncio.CancelledError"
            )
        return self._context.is_cancelled()

    def close_actor(self) -> None:
        """The actor ends in order."""
        if self.executor.actor is not None:
            self.executor.actor.close()

    def exit_actor_from_thread(self) -> bool:
        """exit_actor() on a thread of the user's. False where this worker holds no actor."""
        if self.running.actor is None:
            return False
        self.executor.exit_from_thread()
        return True

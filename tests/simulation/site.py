"""Where user code runs in a simulated process, and what it calls there: the core's interface, as the API
above it would.

Everything that it submits, gets and runs is told to the judges.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ray_mono.common import ids
from ray_mono.common.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RaySystemError,
    RayTaskError,
    TaskCancelledError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray_mono.common.ray_error import RpcError as UsersRpcError
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from ray_mono.rpc.surface import RpcError
from tests.simulation.baton import Killed, SimThread
from tests.simulation.checkers import CheckFailed, Journal
from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.scripts import Script, is_filler

if TYPE_CHECKING:
    from tests.simulation.process import SimProcess
    from tests.simulation.world import World

FAULTS = (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    RpcError,
    UsersRpcError,
    WorkerCrashedError,
)
"""Errors that something's going wrong is a reason for."""
JOB_IS_OVER = (" is over", " has finished", ", the owner, is dead")
ACTORS_JOB_IS_OVER = "\tcause: the driver of its job "
DIES_WITH_NODE_S = 10.0
"""Virtual seconds after its node's end in which a driver ends."""


def site() -> Site:
    """Of the process that runs."""
    process: Any = CURRENT_PROCESS.get()
    return process.site  # type: ignore[no-any-return]


class Site:
    """Of one process."""

    def __init__(self, world: World, process: SimProcess, core: CoreWorker, journal: Journal) -> None:
        self.world = world
        self.process = process
        self.core = core
        self.journal = journal
        self.job_id = b""
        self._code: dict[Any, Any] = {}
        self._templates: dict[Any, Any] = {}
        self.kept: dict[int, Any] = {}
        """What stays in the process beyond the task that left it here."""
        self._num_kept = 0

    def enter_job(self, job_id: bytes) -> None:
        self.job_id = job_id

    # ---- time, threads, ends

    def sleep(self, seconds: float) -> None:
        self.world.baton.running().sleep(seconds)

    def thread(self, target: Callable[[], None], name: str) -> SimThread:
        """A thread of the user's."""
        return self.world.baton.start(self.process, target, name)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self.world.loop.call_later(seconds, action, context=self.process.context.copy())

    def keep(self, thing: Any, seconds: float) -> None:
        """Holds it so long."""
        self._num_kept += 1
        number = self._num_kept
        self.kept[number] = thing
        self.later(seconds, lambda: self.kept.pop(number, None))

    def leave(self) -> None:
        """The program is over: so are its variables."""
        self.kept.clear()

    def die(self, reason: str) -> NoReturn:
        self.process.kill(reason)
        raise Killed

    # ---- tasks

    @contextlib.contextmanager
    def execution(self, task_id: bytes, attempt: int) -> Iterator[None]:
        """User code of a normal task runs."""
        self.judge(self.journal.task_begins, self.core.worker_id, task_id, attempt)
        try:
            yield
        finally:
            if self.process.is_alive:
                self.journal.task_over(self.core.worker_id)

    def submit(
        self,
        function: Callable[..., Any],
        script: Script,
        args: list[Any] | None = None,
        options: TaskOptions | None = None,
    ) -> Any:
        """function.remote(script, *args): its reference or references, or the generator. Its cancel, if the
        script has one, is under way."""
        options = options or TaskOptions()
        template = self._template(function, options)
        number = self.world.scripts.number_of(script)
        flat = [each for value in (number, *(args or ())) for each in (None, value)]
        returned = self.core.submit_task(template, flat)
        end = returned[0].completed() if options.num_returns < 0 else returned[0]
        self._submitted(script, end, options, args or ())
        return returned if options.num_returns > 1 else returned[0]

    def submit_map(
        self, function: Callable[..., Any], scripts: Sequence[Script], chunk: int, options: TaskOptions
    ) -> list[ObjectRef[Any]]:
        """function.map(scripts)."""
        refs: list[ObjectRef[Any]] = []
        numbers = [self.world.scripts.number_of(script) for script in scripts]
        self.core.submit_tasks(self._template(function, options), numbers, chunk, refs)
        for script, ref in zip(scripts, refs, strict=True):
            self._submitted(script, ref, options, ())
        return refs

    def _submitted(
        self, script: Script, end: ObjectRef[Any], options: TaskOptions, args: Sequence[Any]
    ) -> None:
        task_id = end.task_id().binary()
        parent, owner = self.core.context.task_id(), self.core.worker_id
        by_reference = tuple(arg.task_id().binary() for arg in args if isinstance(arg, ObjectRef))
        self.judge(self.journal.task_submitted, task_id, parent, options.max_retries, owner, by_reference)
        if script.cancelled_after_s >= 0:
            self._cancel_after(script.cancelled_after_s, end, script.is_cancelled_by_force)

    def script(self, number: int) -> Any:
        """What a task was given the number of."""
        return self.world.scripts[number]

    def _template(self, function: Callable[..., Any], options: TaskOptions) -> Any:
        code = self._code.get(function)
        if code is None:
            code = self._code[function] = self.core.export(function, "function")
        if options.strategy is not None:
            return self.core.task_template(code, options)  # a message, by which nothing is found
        key = (function, options)
        template = self._templates.get(key)
        if template is None:
            template = self._templates[key] = self.core.task_template(code, options)
        return template

    def export(self, functions: Iterable[Any], classes: Iterable[Any]) -> None:
        """Before anything goes wrong."""
        for function in functions:
            self._code[function] = self.core.export(function, "function")
        for cls in classes:
            self.export_class(cls)

    def export_class(self, cls: type) -> Any:
        code = self._code.get(cls)
        if code is None:
            code = self._code[cls] = self.core.export(cls, "class")
        return code

    def called(self, ref: ObjectRef[Any], cancelled_after_s: float = -1.0) -> None:
        """A call of an actor was submitted; negative: it is not cancelled."""
        self.judge(self.journal.call_submitted, ref.task_id().binary(), self.core.context.task_id())
        if cancelled_after_s >= 0:
            self._cancel_after(cancelled_after_s, ref, False)

    def _cancel_after(self, seconds: float, ref: ObjectRef[Any], by_force: bool) -> None:
        def cancel() -> None:
            self.sleep(seconds)
            self.cancel(ref, by_force)

        self.thread(cancel, "cancel")

    def cancel(self, ref: ObjectRef[Any], force: bool) -> None:
        self.judge(self.journal.task_cancelled, ref.task_id().binary(), force)
        self.core.cancel(ref, force, recursive=force)

    def kill_actor(self, actor_id: bytes) -> None:
        """Nothing where the GCS is lost."""
        self.journal.actors.killed(actor_id)
        with contextlib.suppress(RpcError):
            self.core.kill_actor(actor_id, no_restart=True)

    # ---- values

    def put(self, *parts: Any) -> ObjectRef[Any]:
        """Every value here is a tuple. It begins with the id of the task that made it, which for a put is
        the attempt's."""
        task = self.core.context.get()
        return self.core.put((ids.of_attempt(task.task_id, task.attempt), *parts))

    def result(self, ref: ObjectRef[Any]) -> Any:
        """The value of a task of this process's, or its error, which is judged and returned."""
        task_id = ref.task_id().binary()
        value = self.get(ref)
        if isinstance(value, TaskCancelledError):
            outcome = "cancelled"
        elif isinstance(value, BaseException):
            outcome = "crashed"
        else:
            outcome = "done"
        self.judge(self.journal.task_ended, task_id, outcome)
        return value

    def get(self, ref: ObjectRef[Any], is_end: bool = False) -> Any:
        """The value, or the error, which is judged. is_end: of a generator, which says nothing."""
        try:
            value = self.core.get([ref], None)[0]
        except Exception as error:
            self.judge(self.judge_error, ref.task_id().binary(), error)
            return root_of(error).with_traceback(None)
        if not is_end:
            self.judge(self.journal.objects.value_read, ref.task_id().binary(), value[0])
            self.check_bytes(value)
        return value

    def check_bytes(self, value: Any) -> None:
        """Of a value that was read, here or as an argument: what makes it large."""
        for part in value[1:]:
            if isinstance(part, bytes) and not is_filler(part):
                self.judge(self.journal.objects.bytes_are_wrong, value[0], part)

    def judge_error(self, task_id: bytes, error: BaseException) -> None:
        """Whether anything went wrong that is a reason for this error of a task's; empty: of another call."""
        error = root_of(error)
        if isinstance(error, ObjectLostError):
            self.journal.loss_read(error)
            self.journal.objects.error_read(self.process, error)
            return
        self.journal.objects.errors_read += 1
        if isinstance(error, TaskCancelledError):
            self.journal.cancel_read(task_id, bytes.fromhex(str(error.task_id)))
            return
        if isinstance(error, WorkerCrashedError | NodeDiedError):
            self.journal.crash_read(task_id, error)
        groups = self.journal.groups
        if isinstance(error, TaskPlacementGroupRemoved | ActorPlacementGroupRemoved):
            groups.removal_read(task_id, self.job_id)
            return
        if isinstance(error, ActorDiedError) and groups.is_removed_of(task_id):
            return
        if isinstance(error, ObjectStoreFullError | OutOfDiskError | Expected):
            return
        if isinstance(error, TaskUnschedulableError) and self.says_job_is_over(error):
            return
        if self.journal.is_harmless or not isinstance(error, FAULTS):
            raise CheckFailed(f"{self.process.name} reads {type(error).__name__}: {error}") from error

    def says_job_is_over(self, error: BaseException) -> bool:
        """If it does, that has to be true."""
        if not str(error).endswith(JOB_IS_OVER) and ACTORS_JOB_IS_OVER not in str(error):
            return False
        world, journal, job_id = self.world, self.journal, self.job_id
        journal.end_read(job_id)

        def check() -> None:
            world.judge(journal.check_ended, job_id)

        world.loop.call_later(DIES_WITH_NODE_S, check, context=contextvars.Context())
        return True

    def judge(self, judgement: Callable[..., Any], *args: Any) -> Any:
        """Nothing of what a process does that is dead counts."""
        if not self.process.is_alive:
            raise Killed
        return self.world.judge(judgement, *args)


class Expected(Exception):
    """What user code raises where its script says so."""


def root_of(error: BaseException) -> BaseException:
    """Of a task that failed with the error of another."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def is_error(value: Any) -> bool:
    return isinstance(value, RayError)

"""What the core worker's modules take from the machine, and here from the simulation.

Most of the world comes to the core worker through its Environment. A few modules look at the machine by
themselves: at how long user code ran, to send a signal to the main thread, to end the process, to start a
thread. They do so by names of their own module, which are others while a simulation runs. What is set here
asks who runs (CURRENT_PROCESS, and the baton), so it serves all processes of the simulation.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import io
import os
from collections.abc import Callable, Iterator
from time import CLOCK_BOOTTIME, clock_gettime_ns
from types import SimpleNamespace
from typing import Any, NoReturn

from ray_mono.common.private_files import open_file
from ray_mono.common.start_board import LEASE_SHIFT, LEASES_MASK, cell_of
from ray_mono.core_worker import core_worker, object_ref
from ray_mono.core_worker.objects.lineage import Lineage
from ray_mono.core_worker.process import current, servicer, worker_exit
from ray_mono.core_worker.reference_counting.reference_counter import (
    ForgetAllPlain,
    ForgetPlain,
    OnOutOfScope,
    ReferenceCounter,
    Table,
)
from ray_mono.core_worker.store_provider import plasma_store_provider
from ray_mono.core_worker.store_provider.memory_store import MemoryStore
from ray_mono.core_worker.task_execution import (
    actor_runtime,
    async_group,
    before_blocking,
    executor,
    generator_runner,
    interrupter,
    process_title,
    shared_runner,
    task_events,
    task_reply,
)
from ray_mono.raylet import servicer as raylet_servicer
from tests.simulation.actor_loop import actor_asyncio
from tests.simulation.baton import Baton, Killed
from tests.simulation.handles import CURRENT_PROCESS
from tests.simulation.loop import SimulationError
from tests.simulation.object_checkers import JudgedCounter, ObjectJournal
from tests.simulation.process import SimProcess

VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "RAY_MONO_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_MONO_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


def this_process() -> SimProcess:
    process = CURRENT_PROCESS.get()
    if not isinstance(process, SimProcess):
        raise SimulationError("no simulated process runs here")
    return process


NEVER_NS = (1 << 64) - 1
KEPT_BYTES_MAX, KEPT_SIZE_BYTES, CALL_SIZE_BYTES = 65_520, 4, 32
"""The room for answers, and what each takes of it besides itself: of a task, of an actor's call."""


class SimBoard:
    """StartBoard and BoardOfAnother in one: both sides of the page are this object."""

    fd = 1

    def __init__(
        self,
        on_close: Callable[[], None] = lambda: None,
        now_ns: Callable[[], int] = lambda: clock_gettime_ns(CLOCK_BOOTTIME),
        is_alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """on_close(): a lease is closed; what it holds is perhaps lent to others. is_alive(): whether the
        worker is. Its threads, which are unwound when it is dead, write no more."""
        self._on_close = on_close
        self._is_alive = is_alive
        self._now_ns = now_ns
        self._head_lease_ns = NEVER_NS
        self._begun = 0
        self._closed = -1
        self._name = ""
        self._kept: dict[int, bytes] = {}
        self._kept_calls: list[tuple[bytes, bytes]] = []
        self._frame_id = b""
        self._lost_callers: list[int] = []
        self.has_moved = False

    def _check_alive(self) -> None:
        if not self._is_alive():
            raise Killed

    def may_begin(self, number: int, name: str) -> bool:
        self._check_alive()
        self._begun = number
        if self._closed == number >> LEASE_SHIFT:
            return False
        self._name = name
        return True

    def is_time_over(self) -> bool:
        return self._now_ns() >= self._head_lease_ns

    def lease_ends(self, at_ns: int, awake_ns: int) -> None:
        self._head_lease_ns = max(at_ns, awake_ns)

    def rest(self) -> None:
        self._check_alive()
        self._name = ""

    def keep(self, number: int, answer: bytes) -> bool:
        self._check_alive()
        num_bytes = sum(KEPT_SIZE_BYTES + len(kept) for kept in (*self._kept.values(), answer))
        if num_bytes > KEPT_BYTES_MAX or self._kept_calls or (self._kept and number - 1 not in self._kept):
            return False
        self._kept[number] = answer
        return True

    def keep_call(self, task_id: bytes, answer: bytes) -> bool:
        self._check_alive()
        if self._kept or not self._has_room(answer):
            return False
        self._kept_calls.append((task_id, answer))
        return True

    def keep_more(self, more: bytes) -> bool:
        self._check_alive()
        if not self._has_room(more):
            return False
        task_id, answer = self._kept_calls[-1]
        self._kept_calls[-1] = (task_id, answer + more)
        return True

    def _has_room(self, answer: bytes) -> bool:
        num_bytes = sum(CALL_SIZE_BYTES + len(kept) for _, kept in self._kept_calls)
        return num_bytes + CALL_SIZE_BYTES + len(answer) <= KEPT_BYTES_MAX

    def keep_of_frame(self, frame_id: bytes, place: int, answer: bytes) -> bool:
        if not self._kept:
            self._frame_id = frame_id
        elif frame_id != self._frame_id:
            return False
        return self.keep(place, answer)

    def caller_lost(self, worker_id: bytes) -> None:
        if self._is_alive():
            self._lost_callers.append(cell_of(worker_id))

    def caller_came(self, worker_id: bytes) -> None:
        self._lost_callers = [lost for lost in self._lost_callers if lost != cell_of(worker_id)]

    def moved(self) -> None:
        self._check_alive()
        self.has_moved = True

    def lost_callers(self) -> list[int]:
        return list(self._lost_callers)

    def forget_kept(self) -> None:
        self._check_alive()
        self._kept.clear()
        self._kept_calls.clear()

    def leases(self) -> set[int]:
        return {self._begun >> LEASE_SHIFT, min(self._kept, default=0) >> LEASE_SHIFT}

    def kept(self, lease_number: int) -> tuple[int, list[bytes]]:
        first = min(self._kept, default=0)
        if first >> LEASE_SHIFT != lease_number:
            return 0, []
        return first & LEASES_MASK, list(self._kept.values())

    def kept_calls(self) -> list[tuple[bytes, bytes]]:
        return list(self._kept_calls)

    def kept_of_frame(self) -> tuple[bytes, int, list[bytes]]:
        return self._frame_id, *self.kept(0)

    @property
    def last_begun(self) -> int:
        return self._begun

    def begun(self, lease_number: int) -> int:
        return self._begun & LEASES_MASK if self._begun >> LEASE_SHIFT == lease_number else 0

    def runs(self, lease_number: int, place: int) -> bool:
        return self.begun(lease_number) == place and bool(self._name)

    def running(self) -> str:
        return self._name

    def close_lease(self, lease_number: int) -> None:
        self._closed = lease_number
        self._on_close()

    def close(self) -> None:
        """Nothing is mapped."""


class Machine:
    """That of one simulation."""

    def __init__(self, baton: Baton) -> None:
        self.baton = baton
        self._folder = ""
        self._collected_at_s = -1.0
        self.boards: dict[bytes, SimBoard] = {}
        self._objects: ObjectJournal | None = None

    def judged_by(self, objects: ObjectJournal) -> None:
        """Who hears of references."""
        self._objects = objects

    # ---- what the modules get

    def now_s(self) -> float:
        return self.baton.loop.time()

    def sleep(self, seconds: float) -> None:
        self.baton.running().sleep(seconds)

    def end_process(self, status: int) -> NoReturn:
        """os._exit."""
        this_process().kill(f"it ended with status {status}")
        raise Killed

    def strike_main_thread(self, signum: int) -> None:
        process = this_process()
        if process.main_thread is not None and process.on_sigint is not None:
            process.main_thread.strike(process.on_sigint)

    def start_thread(self, target: Callable[..., None], name: str) -> SimpleNamespace:
        """A CallThread, which runs when it is started."""
        process = this_process()
        return SimpleNamespace(start=lambda: self.baton.start(process, target, name))

    def collect_garbage(self) -> None:
        """Of all processes. Once an instant: nothing is made meanwhile."""
        if self.now_s() != self._collected_at_s:
            self._collected_at_s = self.now_s()
            gc.collect()

    def collector(self, target: Any, name: str, daemon: bool) -> SimpleNamespace:
        """A thread that collects garbage, which takes no virtual time."""
        return SimpleNamespace(start=self.collect_garbage, is_alive=lambda: False)

    def queue(self) -> SimQueue:
        return SimQueue(self.baton)

    def find_home(self) -> Any:
        core = this_process().core
        if core is None:
            raise SimulationError("no core worker in this process")
        return core

    def counter(
        self, table: Table, ended: OnOutOfScope, forget: ForgetPlain, forget_all: ForgetAllPlain
    ) -> ReferenceCounter:
        if self._objects is None:
            return ReferenceCounter(table, ended, forget, forget_all)
        return JudgedCounter(this_process(), self._objects, table, ended, forget, forget_all)

    def lineage(self, references: ReferenceCounter, store: MemoryStore, bytes_max: int) -> Lineage[Any]:
        made: Lineage[Any] = Lineage(references, store, bytes_max)
        if self._objects is not None:
            self._objects.keeps(this_process(), made)
        return made

    def open_file(self, path: str, flags: int) -> int:
        """Stores' files have one name in all runs, and lie in another folder each time."""
        return open_file(os.path.join(self._folder, os.path.basename(path)), flags)

    def open_board(self, worker_id: bytes, pid: int, fd: int) -> SimBoard | None:
        return self.boards.get(worker_id)

    # ---- while it runs

    @contextlib.contextmanager
    def installed(self, folder: str) -> Iterator[None]:
        """folder: of stores' files."""
        self._folder = folder
        before: list[tuple[Any, str, Any]] = []
        for module, name, value in self._replacements():
            before.append((module, name, getattr(module, name)))
            setattr(module, name, value)
        variables = {name: os.environ.get(name) for name in VARIABLES}
        os.environ.update(VARIABLES)
        object_ref.found_by(self.find_home)
        try:
            yield
        finally:
            object_ref.found_by(current.require)
            for name, value in variables.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            for module, name, value in before:
                setattr(module, name, value)

    def _replacements(self) -> list[tuple[Any, str, Any]]:
        clock = SimpleNamespace(perf_counter=self.now_s, time=self.now_s, sleep=self.sleep)
        ends = SimpleNamespace(_exit=self.end_process, write=lambda fd, data: None, environ=os.environ)
        threads = SimpleNamespace(
            current_thread=lambda: self.baton.current,
            main_thread=lambda: this_process().main_thread,
        )
        blocking = SimpleNamespace(
            Event=lambda: SimEvent(self.baton), get_ident=lambda: id(self.baton.current)
        )
        silent = SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO())
        garbage = SimpleNamespace(collect=self.collect_garbage)
        return [
            *((module, "time", clock) for module in (executor, generator_runner, async_group, task_events)),
            (shared_runner, "perf_counter", self.now_s),
            (actor_runtime, "time", clock),
            *((module, "os", ends) for module in (executor, interrupter, task_reply, servicer, worker_exit)),
            (interrupter, "strike_main_thread", self.strike_main_thread),
            (interrupter, "threading", threads),
            (actor_runtime, "CallThread", self.start_thread),
            (actor_runtime, "queue", SimpleNamespace(SimpleQueue=self.queue)),
            (async_group, "CallThread", self.start_thread),
            (async_group, "asyncio", actor_asyncio(self.baton)),
            (async_group, "threading", blocking),
            (actor_runtime, "concurrent", _concurrent(self.baton)),
            (process_title, "setproctitle", lambda title: None),
            (process_title, "sys", silent),
            (task_reply, "flush_output", lambda: None),
            (worker_exit, "flush_output", lambda: None),
            (worker_exit, "process_end", SimpleNamespace(run=lambda: None)),
            (plasma_store_provider, "threading", SimpleNamespace(Thread=self.collector)),
            (executor, "gc", garbage),
            (core_worker, "ReferenceCounter", self.counter),
            (core_worker, "Lineage", self.lineage),
            (plasma_store_provider, "open_file", self.open_file),
            (raylet_servicer, "open_board", self.open_board),
            (before_blocking, "os", ends),
        ]


class SimEvent:
    """threading.Event."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._is_set = False
        self._waiting: list[Any] = []

    def set(self) -> None:
        self._is_set = True
        for thread in self._waiting:
            thread.wake()

    def wait(self) -> None:
        thread = self._baton.running()
        self._waiting.append(thread)
        while not self._is_set:
            thread.park()


class SimQueue:
    """queue.SimpleQueue: whoever asked first is served first."""

    def __init__(self, baton: Baton) -> None:
        self._baton = baton
        self._items: collections.deque[Any] = collections.deque()
        self._waiting: collections.deque[Any] = collections.deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting:
            self._waiting.popleft().wake()

    def get(self) -> Any:
        thread = self._baton.running()
        while not self._items:
            self._waiting.append(thread)
            try:
                thread.park()
            finally:
                if thread in self._waiting:
                    self._waiting.remove(thread)  # woken by something else
        return self._items.popleft()

    def empty(self) -> bool:
        return not self._items


def _concurrent(baton: Baton) -> SimpleNamespace:
    """concurrent.futures, of which one function blocks."""

    def wait(futures: list[Any], timeout: float) -> None:
        end_s = baton.loop.time() + timeout
        while not all(future.done() for future in futures) and baton.loop.time() < end_s:
            baton.running().sleep(0.001)

    return SimpleNamespace(futures=SimpleNamespace(wait=wait))

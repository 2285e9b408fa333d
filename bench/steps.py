"""What each step of a small call costs, on both sides of it: the table of docs/internals/tasks.md.

    python bench/steps.py [--calls N]

Told first is the CPU of the driver's process a call, with nothing wrapped: submission, answer and get. Then
the functions of the hot path are wrapped, in this driver and in its worker, and their own CPU (without that
of wrapped functions inside) is added up over N calls. What a wrapper costs is measured and taken off; so a
step that costs less than a wrapper may come out below zero.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray

# (module below ray_mono, class, method, what it does), in the order in which a call passes them.
SUBMISSION, EXECUTION = "core_worker.task_submission", "core_worker.task_execution"
LOOP = (
    ("rpc.reactor", "Reactor", "_take_turns", "epoll_wait(), and the wait itself"),
    ("rpc.reactor_socket", "ReactorSocket", "on_events", "recv(), parse frames"),
    ("rpc.reactor_socket", "ReactorSocket", "send", "frame, send()"),
    ("rpc.reactor_socket", "ReactorSocket", "flush", "send()"),
)
CALLER = (
    ("remote_function", "RemoteFunction", "remote", "check the arguments"),
    ("actor", "ActorMethod", "remote", "check the arguments (actor)"),
    (f"{SUBMISSION}.task_builder", "TaskBuilder", "pack", "pickle the arguments"),
    (f"{SUBMISSION}.task_builder", "TaskBuilder", "submit_task", "ids and ObjectRef"),
    (f"{SUBMISSION}.task_builder", "TaskBuilder", "submit_actor_task", "ids and ObjectRef (actor)"),
    (f"{SUBMISSION}.task_manager", "TaskManager", "add_pending", "count references, make the task"),
    (f"{SUBMISSION}.normal_task_submitter", "NormalTaskSubmitter", "submit", "queue, lease"),
    (f"{SUBMISSION}.normal_task_submitter", "NormalTaskSubmitter", "push", "choose the worker, push"),
    (f"{SUBMISSION}.actor_task_submitter", "ActorTaskSubmitter", "submit", "its place in the order (actor)"),
    (f"{SUBMISSION}.actor_task_submitter", "ActorTaskSubmitter", "_push", "number the call, push (actor)"),
    (f"{SUBMISSION}.task_manager", "PendingTask", "usual_push", "write the request"),
    ("core_worker.peers", "Peer", "push", "the call's number"),
    ("core_worker.objects.getter", "Getter", "get", "look for the value, wait"),
    *LOOP,
    (f"{SUBMISSION}.normal_task_submitter", "NormalTaskSubmitter", "_on_reply", "the next task"),
    (f"{SUBMISSION}.actor_task_submitter", "ActorTaskSubmitter", "_on_reply", "take it off the list (actor)"),
    (f"{SUBMISSION}.task_manager", "TaskManager", "complete_usual", "store the value, let go"),
    (f"{SUBMISSION}.task_manager", "TaskManager", "complete", "store an unusual answer's values"),
    ("core_worker.objects.getter", "Getter", "read", "unpickle the value"),
)
EXECUTOR = (
    *LOOP,
    (f"{EXECUTION}.task_receiver", "TaskReceiver", "PushTask", "queue"),
    (f"{EXECUTION}.executor", "Executor", "_handle", "take the call"),
    (f"{EXECUTION}.executor", "Executor", "_prepare", "function and arguments"),
    (f"{EXECUTION}.executor", "Executor", "run_here", "title, context, the user's function"),
    (f"{EXECUTION}.task_reply", "TaskReplies", "finish", "pickle the value, write the reply"),
)
Steps = tuple[tuple[str, str, str, str], ...]
WARM_UP_CALLS = 500
ROUNDS = 5
WATCH = "steps_of_this_process"
"""Where a worker keeps its stopwatch: by name, since a task's function is a copy."""


class Workload(NamedTuple):
    title: str
    run: Callable[..., list[Any]]
    """run(count, *last): makes so many calls, then those of `last`, and gets all their values."""
    take: Callable[[], ray.ObjectRef[Any]]
    """A call that asks its worker for what was measured."""


class Stopwatch:
    """Own time and calls of wrapped functions, of whatever thread."""

    def __init__(self, steps: Steps) -> None:
        self._spent_s = dict.fromkeys(steps, 0.0)
        self._calls = dict.fromkeys(steps, 0)
        self._thread = threading.local()
        for step in steps:
            module, owner, name, _ = step
            kind = getattr(importlib.import_module(f"ray_mono.{module}"), owner)
            setattr(kind, name, self._wrapped(step, getattr(kind, name)))

    def _wrapped(self, step: tuple[str, str, str, str], function: Callable[..., Any]) -> Callable[..., Any]:
        thread, clock = self._thread, time.thread_time

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began_s = clock()
            inner_s = thread.__dict__.setdefault("inner_s", [0.0])
            inner_s.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                taken_s = clock() - began_s
                self._spent_s[step] += taken_s - inner_s.pop()
                self._calls[step] += 1
                inner_s[-1] += taken_s

        return wrapper

    def take(self) -> dict[str, tuple[float, int]]:
        """(seconds, calls) by step since the last take."""
        taken = {
            f"{step[1]}.{step[2]}\t{step[3]}": (self._spent_s[step], self._calls[step])
            for step in self._spent_s
        }
        self._spent_s = dict.fromkeys(self._spent_s, 0.0)
        self._calls = dict.fromkeys(self._calls, 0)
        return taken


def wrapper_cost_s() -> float:
    """What an empty wrapped call costs more than an empty call."""
    watch = Stopwatch(())
    step = ("", "", "", "")
    watch._spent_s[step], watch._calls[step] = 0.0, 0

    def empty() -> None:
        pass

    def time_s(function: Callable[[], None]) -> float:
        began_s = time.thread_time()
        for _ in range(100_000):
            function()
        return (time.thread_time() - began_s) / 100_000

    return time_s(watch._wrapped(step, empty)) - time_s(empty)


def show(title: str, taken: dict[str, tuple[float, int]], calls: int, overhead_s: float) -> None:
    print(f"\n{title}")
    for name, (spent_s, count) in taken.items():
        if count:
            where, what = name.split("\t")
            print(
                f"  {what:45s}{(spent_s - count * overhead_s) / calls * 1e6:7.1f} µs"
                f" {count / calls:6.2f} a call   {where}"
            )


def install_on_workers(steps: Steps) -> None:
    """Every worker wraps its steps before its first task."""
    kind = Stopwatch

    def install(worker_info: dict[str, Any]) -> None:
        if not worker_info["worker"].is_driver:
            sys.modules[WATCH] = kind(steps)  # type: ignore[assignment]

    ray.run_function_on_all_workers(install)


def take() -> dict[str, tuple[float, int]]:
    return sys.modules[WATCH].take()


def cpu_of(run: Callable[[int], object], calls: int) -> float:
    """Seconds of this process a call: the median of ROUNDS."""
    used_s = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        run(calls)
        used_s.append((time.process_time() - began_s) / calls)
    return statistics.median(used_s)


def workloads() -> tuple[Workload, ...]:
    """On a new cluster, warm."""
    ray.init(address="local", num_cpus=1)

    @ray.remote
    def nothing() -> None:
        pass

    @ray.remote
    class Actor:
        def nothing(self) -> None:
            pass

        def take(self) -> dict[str, tuple[float, int]]:
            return take()

    actor = Actor.remote()
    ray.get(actor.nothing.remote())

    def all_at_once(call: Callable[[], ray.ObjectRef[Any]]) -> Callable[..., list[Any]]:
        # With one CPU they all run on one worker, which `last` asks, too.
        return lambda count, *last: ray.get([each() for each in (*itertools.repeat(call, count), *last)])

    def one_by_one(call: Callable[[], ray.ObjectRef[Any]]) -> Callable[..., list[Any]]:
        return lambda count, *last: [ray.get(each()) for each in (*itertools.repeat(call, count), *last)]

    return (
        Workload("tasks, all in flight", all_at_once(nothing.remote), ray.remote(take).remote),
        Workload("actor calls, all in flight", all_at_once(actor.nothing.remote), actor.take.remote),
        Workload("actor calls, one at a time", one_by_one(actor.nothing.remote), actor.take.remote),
    )


def main() -> int:
    """Measures calls on clusters of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=5000, help="of each kind (default: 5000)")
    calls = parser.parse_args().calls

    for work in workloads():
        work.run(WARM_UP_CALLS)
        print(f"{work.title}: {cpu_of(work.run, calls) * 1e6:.1f} µs of the driver's CPU a call")
    ray.shutdown()

    # Before the core worker is made, which binds some of the steps.
    watch, overhead_s = Stopwatch(CALLER), wrapper_cost_s()
    install_on_workers(EXECUTOR)
    for work in workloads():
        work.run(WARM_UP_CALLS, work.take)
        watch.take()
        executor = work.run(calls, work.take)[-1]
        caller = watch.take()
        print(f"\n{work.title}: {overhead_s * 1e6:.2f} µs a wrapper")
        show("caller", caller, calls, overhead_s)
        show("executor", executor, calls, overhead_s)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

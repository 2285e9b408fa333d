"""What each step of a small call costs, on both sides of it: the table of docs/internals/tasks.md.

    python bench/steps.py [--calls N]

The functions of the hot path are wrapped, in this driver and in its worker, and their own time (without that of wrapped functions inside)
is added up over N calls. A wrapper costs about 0.4 µs, which is measured and taken off; what is printed is still an upper bound.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).absolute().parent.parent / "python"))

import ray_mono as ray

# (module below ray_mono, class, method, what it does), in the order in which a call passes them.
CALLER = (
    ("remote_function", "RemoteFunction", "_remote", "check the arguments"),
    ("core_worker.task_submission.task_builder", "TaskBuilder", "pack", "pickle the arguments"),
    ("core_worker.task_submission.task_builder", "TaskBuilder", "submit_task", "ids and ObjectRef"),
    (
        "core_worker.task_submission.task_builder",
        "TaskBuilder",
        "submit_actor_task",
        "ids and ObjectRef (actor)",
    ),
    (
        "core_worker.task_submission.task_manager",
        "TaskManager",
        "add_pending",
        "count references, make the task",
    ),
    ("core_worker.task_submission.normal_task_submitter", "NormalTaskSubmitter", "submit", "queue, lease"),
    (
        "core_worker.task_submission.normal_task_submitter",
        "NormalTaskSubmitter",
        "_push",
        "choose the worker, make the message",
    ),
    (
        "core_worker.task_submission.actor_task_submitter",
        "ActorTaskSubmitter",
        "_push",
        "number the call, make the message (actor)",
    ),
    ("core_worker.peers", "Peer", "push", "serialize, frame"),
    ("core_worker.objects.getter", "Getter", "get_ids", "look for the value, wait"),
    ("rpc.reactor_socket", "ReactorSocket", "send", "send()"),
    ("rpc.reactor", "Reactor", "_take_turns", "epoll_wait(), and the wait itself"),
    ("rpc.reactor_socket", "ReactorSocket", "on_events", "recv(), parse frames"),
    (
        "core_worker.task_submission.normal_task_submitter",
        "NormalTaskSubmitter",
        "_on_reply",
        "parse the reply, next task",
    ),
    (
        "core_worker.task_submission.actor_task_submitter",
        "ActorTaskSubmitter",
        "_on_reply",
        "parse the reply (actor)",
    ),
    ("core_worker.task_submission.task_manager", "TaskManager", "complete", "store the value, let go"),
    ("core_worker.objects.getter", "Getter", "read", "unpickle the value"),
)
EXECUTOR = (
    ("rpc.reactor", "Reactor", "_take_turns", "epoll_wait(), and the wait itself"),
    ("rpc.reactor_socket", "ReactorSocket", "on_events", "recv(), parse frame and request, queue"),
    ("core_worker.task_execution.executor", "Executor", "_handle", "take the call"),
    ("core_worker.task_execution.executor", "Executor", "_prepare", "function and arguments"),
    ("core_worker.task_execution.executor", "Executor", "run_here", "title, context, the user's function"),
    (
        "core_worker.task_execution.task_reply",
        "TaskReplies",
        "finish",
        "pickle the value, make and frame the reply",
    ),
    ("rpc.reactor_socket", "ReactorSocket", "flush", "send()"),
)
Steps = tuple[tuple[str, str, str, str], ...]
WARM_UP_CALLS = 500


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
        thread, clock = self._thread, time.perf_counter

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
        began_s = time.perf_counter()
        for _ in range(100_000):
            function()
        return (time.perf_counter() - began_s) / 100_000

    return time_s(watch._wrapped(step, empty)) - time_s(empty)


def show(title: str, taken: dict[str, tuple[float, int]], calls: int, overhead_s: float) -> None:
    print(f"\n{title}")
    for name, (spent_s, count) in taken.items():
        if count:
            where, what = name.split("\t")
            print(
                f"  {what:45s}{(spent_s - count * overhead_s) / calls * 1e6:7.1f} µs {count / calls:6.2f} a call   {where}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=5000, help="of each kind (default: 5000)")
    calls = parser.parse_args().calls
    ray.init(address="local", num_cpus=1)
    watch, overhead_s = Stopwatch(CALLER), wrapper_cost_s()

    @ray.remote
    class Actor:
        def nothing(self) -> None:
            pass

        def install(self, kind: type[Stopwatch], steps: Steps) -> None:
            self.watch = kind(steps)

        def take(self) -> dict[str, tuple[float, int]]:
            return self.watch.take()

    actor = Actor.remote()
    ray.get(actor.install.remote(Stopwatch, EXECUTOR))

    def sync() -> None:
        ray.get(actor.nothing.remote())

    for _ in range(WARM_UP_CALLS):
        sync()
    for title, run, count in (
        ("actor calls, one at a time", lambda: [sync() for _ in range(calls)], calls),
        (
            "actor calls, all in flight",
            lambda: ray.get([actor.nothing.remote() for _ in range(calls)]),
            calls,
        ),
    ):
        watch.take()
        ray.get(actor.take.remote())
        watch.take()
        began_s = time.perf_counter()
        run()
        taken_s = time.perf_counter() - began_s
        caller = watch.take()
        executor = ray.get(actor.take.remote())
        print(f"\n{title}: {taken_s / count * 1e6:.1f} µs a call, with {overhead_s * 1e6:.2f} µs a wrapper")
        show("caller", caller, count, overhead_s)
        show("executor", executor, count, overhead_s)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())

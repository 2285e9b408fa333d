"""A submitter of tasks, its raylet and its workers, and what they say to each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray_mono.core_worker.options import TaskOptions
from ray_mono.core_worker.task_submission.normal_task_submitter import NormalTaskSubmitter
from ray_mono.protobuf import common_pb2, core_worker_pb2, raylet_pb2

Reply = core_worker_pb2.PushTaskReply


class FakeTask:
    """A PendingTask, as far as the submitter knows it."""

    def __init__(self, number: int) -> None:
        self.task_id = bytes([number]) * 24
        self.name = f"task {number}"
        self.template = SimpleNamespace()
        self.request = core_worker_pb2.PushTaskRequest()
        self.retries_left = 1


class FakeRaylet:
    """What the submitter says to its raylet; the test answers."""

    def __init__(self) -> None:
        self.asked: dict[bytes, Callable[[Any, Any], None]] = {}
        self.strategies: list[common_pb2.SchedulingStrategy] = []
        self.returned: list[raylet_pb2.ReturnWorkerRequest] = []
        self.cancelled: list[bytes] = []
        self.withdrawals: list[tuple[Any, Callable[[Any, Any], None]]] = []
        self.lost: list[bytes] = []
        self.reclaim: Callable[[Any], None] | None = None
        self.RequestWorkerLease = SimpleNamespace(start=self._request)
        self.CancelWorkerLease = SimpleNamespace(
            start=lambda request, done: self.cancelled.append(request.lease_id)
        )
        self.ReturnWorker = SimpleNamespace(notify=self.returned.append)
        self.WithdrawTasks = SimpleNamespace(
            start=lambda request, done: self.withdrawals.append((request, done))
        )
        self.killed: list[bytes] = []
        self.KillWorker = SimpleNamespace(start=lambda request, done: self.killed.append(request.worker_id))
        self.LostWorker = SimpleNamespace(start=lambda request, done: self.lost.append(request.lease_id))
        self.WatchReclaims = SimpleNamespace(start=self._watch)

    def _request(self, request: Any, done: Callable[[Any, Any], None]) -> None:
        self.asked[request.lease_id] = done
        self.strategies.append(request.strategy)

    def _watch(self, request: Any, on_item: Callable[[Any], None], on_end: Any) -> None:
        self.reclaim = on_item


class Scene:
    """One submitter, workers, and time that passes by `fire`."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.completed: list[Any] = []
        self.cancelled: list[Any] = []
        self.failed: list[BaseException] = []
        self.lost: list[Any] = []
        self.borrowers: list[bytes] = []
        self.given_back = 0
        self.pushed: dict[str, Callable[[Any, Any], None]] = {}
        self.told: list[bytes] = []
        self._ids = itertools.count(1)
        tasks = SimpleNamespace(
            cancelled=set(),
            complete=lambda task, reply, address: self.completed.append(task),
            fail=lambda task, error: self.failed.append(error),
            fail_cancelled=self.cancelled.append,
            lost=lambda task, error: self.lost.append(task),
            note_borrows=lambda reply, address: self.borrowers.append(address.node_id),
        )
        stub = SimpleNamespace(
            GiveBackTasks=SimpleNamespace(notify=self._on_give_back),
            CancelTask=SimpleNamespace(start=lambda request, done: self.told.append(request.task_id)),
        )
        peer = SimpleNamespace(stub=stub, push=self._on_push)
        self.raylet = FakeRaylet()
        self.core: Any = SimpleNamespace(
            raylet=self.raylet,
            tasks=tasks,
            address=common_pb2.Address(),
            job_id=b"",
            outlives_job=False,
            is_leaving=False,
            new_id=lambda: bytes([next(self._ids)]),
            peer=lambda address: peer,
            reactor=SimpleNamespace(call_later=self._call_later),
        )
        self.submitter = NormalTaskSubmitter(self.core)
        self.queue = self.submitter.queue_for(TaskOptions())

    def _call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.timers.append(callback)
        return SimpleNamespace(cancel=lambda: None)

    def _on_give_back(self, request: Any) -> None:
        self.given_back += 1

    def _on_push(self, template: Any, request: Any, on_done: Callable[[Any, Any], None]) -> None:
        self.pushed[self.names[len(self.pushed)]] = on_done

    def submit(self, *numbers: int) -> list[Any]:
        tasks = [FakeTask(number) for number in numbers]
        for task in tasks:
            self.submitter.submit(self.queue, task)  # type: ignore[arg-type]
        return tasks

    def grant(self, node_id: bytes = b"") -> None:
        """The oldest request."""
        lease_id = next(iter(self.raylet.asked))
        grant = raylet_pb2.Grant(lease_id=lease_id, worker=common_pb2.Address(node_id=node_id))
        self.raylet.asked.pop(lease_id)(raylet_pb2.RequestWorkerLeaseReply(grant=grant), None)

    def fire(self, times: int = 1) -> None:
        """Every timer that is set now."""
        for _ in range(times):
            timers, self.timers = self.timers, []
            for callback in timers:
                callback()

    def answer(self, push: int, status: int = Reply.DONE) -> None:
        self.pushed[f"push {push}"](Reply(status=status), None)  # type: ignore[arg-type]

    @property
    def lease(self) -> Any:
        (lease,) = self.queue.leases.values()
        return lease

    names = [f"push {number}" for number in range(20)]


def a_worker_with(scene: Scene, *numbers: int) -> list[Any]:
    """Has these pushed to one worker whose tasks were short so far."""
    scene.queue.run_us = 1.0
    tasks = scene.submit(*numbers)
    scene.grant()
    assert list(scene.lease.tasks) == tasks
    return tasks

"""The end of a worker that ends in order: for whom it stays, and what it says when."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.process import worker_exit


class Gone(BaseException):
    pass


class Worker:
    """One that leaves. `needs`: what others need of it, one look after the other."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, needs: list[str], actor: Any = None, **executor: Any
    ) -> None:
        self.steps: list[str] = []
        self._needs = [*needs, "nothing"]
        self._executor: Any = SimpleNamespace(
            actor=actor,
            events=SimpleNamespace(send=lambda: None),
            answers=SimpleNamespace(num_unsettled=0),
            termination=SimpleNamespace(is_wanted=False),
            owes_answer=False,
            exit_cause="",
        )
        vars(self._executor).update(executor)
        self.lock = threading.RLock()
        self.reactor = SimpleNamespace(is_closed=False, flush=lambda: None, wait=self._wait)
        self.server = SimpleNamespace(has_unsent=False)
        self.getter = SimpleNamespace(lease_id=b"lease")
        self.worker_id = b"w" * 28
        self.raylet = SimpleNamespace(
            ReturnWorker=SimpleNamespace(start=self._returns),
            NotifyLeaving=SimpleNamespace(notify=lambda request: self.steps.append("says why")),
        )
        monkeypatch.setattr(worker_exit.process_end, "run", lambda: self.steps.append("ends"))
        monkeypatch.setattr(worker_exit.termination, "die", self._exit)
        monkeypatch.setattr(worker_exit.os, "_exit", self._exit)

    @property
    def tasks(self) -> Any:
        return SimpleNamespace(pending={1: 1} if self._needs[0] == "a task" else {})

    @property
    def references(self) -> Any:
        class References(list[Any]):
            is_borrowed = self._needs[0] == "a value"

        return References()

    def drain(self) -> None: ...

    def shutdown(self) -> None: ...

    def _wait(self, waiter: Any, timeout_s: float) -> None:
        self.steps.append(f"stays for {self._needs.pop(0)}")

    def _returns(self, request: Any, done: Any) -> None:
        assert request.leaving and request.lease_id == b"lease"
        self.steps.append("returns its lease")

    def _exit(self, status: int | None = None) -> None:
        self.steps.append("killed" if status is None else f"status {status}")
        raise Gone

    def leaves(self) -> list[str]:
        with pytest.raises(Gone):
            worker_exit.leave(self, self._executor)  # type: ignore[arg-type]
        return self.steps


def an_actor(**resource_ids: list[int]) -> Any:
    return SimpleNamespace(resource_ids=resource_ids, close=lambda: None)


def test_a_worker_stays_for_tasks_and_values_of_its_and_says_that_its_end_is_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch, ["a task", "a value"])
    stays = ["stays for a task", "stays for a value"]
    assert worker.leaves() == [*stays, "says why", "ends", "status 0"]


def test_an_actor_that_stays_returns_its_lease_first_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, ["a value", "a value"], an_actor())
    assert worker.leaves() == ["returns its lease", *["stays for a value"] * 2, "ends", "status 0"]


def test_an_actor_with_accelerators_stays_for_tasks_only_and_keeps_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker(monkeypatch, ["a task", "a value"], an_actor(GPU=[0]))
    assert worker.leaves() == ["stays for a task", "ends", "status 0"]


def test_one_whose_end_is_an_answer_stays_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, ["a value"], owes_answer=True)
    assert worker.leaves() == ["says why", "ends", "status 0"]


def test_one_that_got_sigterm_is_killed_by_it_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, ["a value"], owes_answer=True, termination=SimpleNamespace(is_wanted=True))
    assert worker.leaves() == ["ends", "killed"]

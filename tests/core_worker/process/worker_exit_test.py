"""The end of a worker that ends in order: for whom it stays, and what it says when."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.process import worker_exit
from ray_mono.core_worker.process.worker_exit import ANSWERS_TIMEOUT_S, CALLS_END_S, OrderlyExit
from ray_mono.core_worker.task_execution.actor_runtime import ThreadGroup
from ray_mono.protobuf import common_pb2, core_worker_pb2
from tests.core_worker.scene import Said, SceneServer, Served, value
from tests.core_worker.worker_scene import CALLER, OTHER_OWNER, WAIT_S, Arriving, Pushed, Worker
from tests.waiting import wait_until


class Gone(BaseException):
    pass


class Leaving(Worker):
    """One that leaves, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.steps: list[str] = []
        self.kept: list[Any] = []
        monkeypatch.setattr(worker_exit.process_end, "run", lambda: self.steps.append("ends"))
        monkeypatch.setattr(worker_exit.termination, "die", self._exit)
        monkeypatch.setattr(worker_exit.os, "_exit", self._exit)
        self.wire.heard = self._heard

    def _heard(self, said: Said) -> None:
        if said.method == "NotifyLeaving":
            self.steps.append("says why")
        elif said.method == "ReturnWorker" and said.request.leaving:
            self.steps.append("returns its lease")

    def _exit(self, status: int | None = None) -> None:
        self.steps.append("killed" if status is None else f"status {status}")
        raise Gone

    def leaves(self, *meanwhile: Callable[[], None]) -> list[str]:
        """meanwhile: what happens while it stays, one look after the other."""

        def look(then: Callable[[], None]) -> Callable[[], None]:
            def happens() -> None:
                self.steps.append("stays")
                then()

            return happens

        self.reactor.meanwhile[:] = map(look, meanwhile)
        with pytest.raises(Gone):
            OrderlyExit(self.core, self.execution).leave()
        assert not self.reactor.meanwhile, "it did not stay so long"
        return self.steps

    # ---- what others need of it

    def lend(self) -> Callable[[], None]:
        """A value of its that another holds; what to do to have that end."""
        ref = self.core.put(1)
        request = core_worker_pb2.AddBorrowerRequest(object_id=ref.binary(), borrower=OTHER_OWNER)
        with self.env.lock:
            self.core.borrowing.AddBorrower(request, Served())  # type: ignore[arg-type]
        watched = self.wire.last("WaitForRefRemoved")
        return lambda: watched.answer(common_pb2.Empty())

    def work(self) -> Callable[[], None]:
        """A task that it submitted; what to do to have it finished."""
        self.kept.append(self.submit())

        def finish() -> None:
            self.grant()
            self.wire.last("PushTask").answer(value(1))

        return finish


class Actor:
    pass


def test_a_worker_that_nobody_needs_says_that_its_end_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)

    def leave() -> None:
        raise SystemExit(3)

    worker.ask(worker.function(leave))
    worker.run()
    assert worker.leaves() == ["says why", "ends", "status 0"]
    told = worker.wire.last("NotifyLeaving").request
    assert (told.worker_id, told.because) == (b"me", "its code raised SystemExit(3)")
    assert worker.reactor.is_closed and worker.context.is_leaving


def test_a_worker_stays_for_tasks_and_values_of_its(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    finish, give_back = worker.work(), worker.lend()
    assert worker.leaves(finish, lambda: None, give_back) == [*["stays"] * 3, "says why", "ends", "status 0"]


def test_what_only_its_own_variables_hold_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    worker.kept.append(worker.core.put(1))
    assert worker.leaves() == ["says why", "ends", "status 0"]


def an_actor(worker: Leaving, **resource_ids: list[int]) -> Pushed:
    given = {name: core_worker_pb2.PushTaskRequest().resource_ids[name] for name in resource_ids}
    for name, ids in resource_ids.items():
        given[name].ids.extend(ids)
    spec = worker.function(
        Actor,
        "Actor.__init__",
        type=common_pb2.ACTOR_CREATION_TASK,
        actor_creation=common_pb2.ActorCreationSpec(actor_id=b"a" * 16),
    )
    call = worker.ask(spec, lease_id=b"lease", resource_ids=given)
    worker.run()
    return call


def test_an_actor_that_stays_returns_its_lease_first_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    an_actor(worker)
    give_back = worker.lend()
    steps = worker.leaves(lambda: None, give_back)
    assert steps == ["returns its lease", "stays", "stays", "ends", "status 0"]
    returned = worker.wire.last("ReturnWorker").request
    assert returned.leaving and returned.lease_id == b"lease"


def test_an_actor_with_accelerators_stays_for_tasks_only_and_keeps_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    worker = Leaving(monkeypatch)
    an_actor(worker, GPU=[0])
    worker.lend()
    assert worker.leaves(worker.work()) == ["stays", "ends", "status 0"]


def moving(monkeypatch: pytest.MonkeyPatch) -> Leaving:
    """With an actor that was asked to move."""
    worker = Leaving(monkeypatch)
    an_actor(worker)
    with worker.env.lock:
        worker.execution.receiver.move(Served())  # type: ignore[arg-type]
    return worker


def test_an_actor_that_moves_says_so_when_its_calls_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    an_actor(worker)

    class Mover(Served):
        def reply(self, message: Any, rings: bool = True) -> None:
            worker.steps.append("has left")

    with worker.env.lock:
        worker.execution.receiver.move(Mover())  # type: ignore[arg-type]
    worker.running.calls[b"call"] = None  # type: ignore[assignment]
    steps = worker.leaves(worker.running.calls.clear)
    assert steps == ["stays", "has left", "ends", "status 0"]
    assert worker.as_raylet().has_moved


def test_calls_that_run_beside_each_other_keep_an_actor_from_moving_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = moving(monkeypatch)
    worker.running.calls[b"call"] = None  # type: ignore[assignment]
    began_s = worker.reactor.now_s
    assert worker.leaves() == ["ends", "status 0"]
    assert CALLS_END_S <= worker.reactor.now_s - began_s < CALLS_END_S + 1
    assert not worker.as_raylet().has_moved


def test_one_that_moves_and_ends_in_the_middle_of_a_call_does_not_say_that_none_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = moving(monkeypatch)
    worker.running.end_after_this()
    worker.leaves()
    assert not worker.as_raylet().has_moved


def test_an_actor_that_nobody_needs_keeps_its_lease_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    an_actor(worker)
    assert worker.leaves() == ["ends", "status 0"]


def test_one_whose_end_is_an_answer_stays_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    worker.lend()
    worker.running.end_after_this()
    assert worker.leaves() == ["says why", "ends", "status 0"]


def test_one_that_got_sigterm_is_killed_by_it_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    worker.lend()
    worker.running.terminate()
    assert worker.leaves() == ["ends", "killed"]


def test_one_whose_connections_are_gone_stays_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    worker.lend()
    assert worker.leaves(worker.reactor.close)[-2:] == ["ends", "status 0"]


def test_answers_that_wait_for_owners_go_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    spec = worker.function(lambda reference: worker.kept.append(reference))
    call = worker.ask(spec, Arriving(b"o" * 28, OTHER_OWNER))
    worker.run()

    def acknowledge() -> None:
        with worker.env.lock:
            worker.wire.last("AddBorrower").answer(common_pb2.Empty())

    steps = worker.leaves(lambda: None, acknowledge)
    assert steps == ["stays", "stays", "says why", "ends", "status 0"] and call.value is None


def test_answers_that_others_were_to_take_along_go_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Actor:
        def method(self) -> str:
            assert rests.wait(WAIT_S)
            return "value"

    rests = threading.Event()
    monkeypatch.setattr(ThreadGroup, "has_waiting", lambda group: True)
    worker = Leaving(monkeypatch)
    worker.actor(Actor, max_concurrency=2)
    call = worker.ask(worker.method("method"))
    worker.run()
    rests.set()
    wait_until(lambda: not worker.running.calls, "the end of the call")
    assert not call.replies
    worker.leaves()
    assert call.is_flushed and call.value == "value"


def test_an_owner_that_never_answers_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    spec = worker.function(lambda reference: worker.kept.append(reference))
    worker.ask(spec, Arriving(b"o" * 28, OTHER_OWNER))
    worker.run()
    began_s = worker.reactor.now_s
    assert worker.leaves()[-1] == "status 0"
    assert 0 <= worker.reactor.now_s - began_s - ANSWERS_TIMEOUT_S < 1.0


def test_answers_that_wait_for_room_in_a_socket_go_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    monkeypatch.setattr(SceneServer, "has_unsent", True)

    def room() -> None:
        SceneServer.has_unsent = False

    assert worker.leaves(room) == ["stays", "says why", "ends", "status 0"]


def test_what_it_ran_is_told_before_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)
    worker.ask(worker.function(lambda: 1, caller=CALLER))
    worker.run()
    worker.leaves()
    assert list(worker.wire.last("AddTaskEvents").request.names) == ["f"]


def test_what_it_ran_is_told_before_it_stays_and_what_ran_at_its_end_before_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Leaving(monkeypatch)
    worker.ask(worker.function(lambda: 1))
    worker.run()
    give_back = worker.lend()
    told: list[int] = []

    def look() -> None:
        told.append(len(worker.wire.all("AddTaskEvents")))
        give_back()

    end = worker_exit.process_end.run
    monkeypatch.setattr(
        worker_exit.process_end, "run", lambda: worker.core.add_span("last", "{}", 0.0) or end()
    )
    worker.leaves(look)
    assert told == [1]
    assert [list(each.request.names) for each in worker.wire.all("AddTaskEvents")] == [["f"], ["last"]]


def test_what_was_written_in_the_end_is_out_before_the_process_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Leaving(monkeypatch)
    output = SimpleNamespace(flush=lambda: worker.steps.append("output"), write=lambda text: None)
    monkeypatch.setattr(sys, "stdout", output)
    worker.core.at_shutdown(lambda: worker.steps.append("leaves"))
    assert worker.leaves() == ["says why", "ends", "leaves", "output", "status 0"]


def test_the_actor_is_closed_when_its_last_answers_are_out(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Leaving(monkeypatch)

    class Closing:
        def __ray_shutdown__(self) -> None:
            worker.steps.append("closed")

    worker.actor(Closing)
    give_back = worker.lend()
    assert worker.leaves(give_back)[:2] == ["closed", "returns its lease"]

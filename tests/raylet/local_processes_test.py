"""What this node's workers and drivers say, and what follows from their ends, over the real machines."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.start_board import LEASE_SHIFT, BoardOfAnother, StartBoard
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess, Clients
from ray_mono.raylet.head_lease import HeadLease
from ray_mono.raylet.local_processes import LocalProcesses
from ray_mono.raylet.worker.launcher import WorkerExit
from ray_mono.rpc.surface import Connection
from tests.raylet.scheduling.lease_scene import JOB_A, THERE, Scene, units

DRIVER_ID = b"d" * 28


class FakeConnection:
    """One that ends when a test says so."""

    def __init__(self) -> None:
        self._on_close: list[Callable[[str], None]] = []

    def on_close(self, callback: Callable[[str], None]) -> None:
        self._on_close.append(callback)

    def close(self) -> None:
        callbacks, self._on_close = self._on_close, []
        for callback in callbacks:
            callback("closed")


class Node:
    """One CPU; its workers start when a lease waits for one, and register when a test says so."""

    def __init__(self, session_dir: Path) -> None:
        self.scene = scene = Scene(units(CPU=1))
        scene.hold_starts = True
        self.clients = Clients()
        # What others are told.
        self.added: list[bytes] = []
        self.freed: list[bytes] = []
        self.reports: list[tuple[ClientProcess, str]] = []
        self.heard_out: list[ClientProcess] = []
        config: Any = SimpleNamespace(node_id=b"n" * 28, session_dir=str(session_dir))
        clock: Any = SimpleNamespace(time_s=lambda: scene.now_s, awake_or_asleep_s=lambda: scene.now_s)
        tasks: Any = SimpleNamespace(spawn=lambda coroutine, name: asyncio.run(coroutine))
        outbox: Any = SimpleNamespace(add_worker=lambda info: self.added.append(info.worker_id))
        store: Any = SimpleNamespace(free_owned_by=self.freed.append)
        deaths: Any = SimpleNamespace(exited=lambda exit_: None, report=self._report, hear_out=self._hear_out)
        self.running: list[int] = []
        launcher: Any = SimpleNamespace(
            lease_ends=lambda at_ns, awake_ns: None, registered=lambda token, pid: self.running.append(pid)
        )
        effects: Any = SimpleNamespace(run=scene.take)
        self.processes = LocalProcesses(
            config,
            clock,
            tasks,
            self.clients,
            scene.pool,
            scene.manager,
            effects,
            outbox,
            store,
            deaths,
            HeadLease(60.0, clock, launcher, self.clients),
            launcher,
        )

    async def _report(self, process: ClientProcess, connection_end: str, end_reason: str) -> None:
        self.reports.append((process, end_reason))

    async def _hear_out(self, process: ClientProcess) -> None:
        self.heard_out.append(process)

    def started(self) -> ClientProcess:
        """The process of the worker that was started last, which has not registered."""
        start = self.scene.starts.pop()
        return _process(start.worker_id, start.startup_token)


def _process(worker_id: bytes, startup_token: int = 0, is_driver: bool = False) -> ClientProcess:
    connection: Connection = FakeConnection()  # type: ignore[assignment]
    kind = common_pb2.DRIVER if is_driver else common_pb2.WORKER
    job_id = JOB_A if is_driver else b""
    address = common_pb2.Address(worker_id=worker_id)
    language = common_pb2.PYTHON
    return ClientProcess(worker_id, kind, language, 7, job_id, address, connection, startup_token, 0.0)


def test_a_worker_that_registers_serves_the_lease_that_waits_for_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    assert node.added == [worker.worker_id] and node.scene.granted["a"].worker_id == worker.worker_id
    assert node.running == [worker.pid]


def test_who_was_not_started_here_or_registers_twice_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    with pytest.raises(ValueError, match="no worker .* was started here"):
        node.processes.register(_process(b"x" * 28, startup_token=99))
    node.processes.register(worker)
    with pytest.raises(ValueError, match="is registered already"):
        node.processes.register(worker)
    assert node.added == [worker.worker_id]


def test_nobody_registers_with_a_raylet_that_stops_and_no_end_is_reported(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    node.processes.close()
    with pytest.raises(ValueError, match="is stopping"):
        node.processes.register(_process(DRIVER_ID, is_driver=True))
    worker.connection.close()
    assert node.reports == []


def test_the_end_of_a_workers_connection_ends_its_lease_and_frees_what_it_owned(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    worker.connection.close()
    assert node.scene.running == [] and node.scene.ledger.available == units(CPU=1)
    assert node.freed == [worker.worker_id] and node.reports == [(worker, "")]
    assert worker.job_id == JOB_A and worker.ran == "a task" and node.clients.get(worker.worker_id) is None


def test_the_end_of_a_driver_ends_its_job_here_and_removes_its_socket(tmp_path: Path) -> None:
    node = Node(tmp_path)
    socket = tmp_path / "sockets" / f"worker-{DRIVER_ID.hex()[:16]}"
    socket.parent.mkdir()
    socket.touch()
    driver = _process(DRIVER_ID, is_driver=True)
    node.processes.register(driver)
    node.scene.ask("a")
    driver.connection.close()
    assert "a" in node.scene.rejected and not socket.exists() and node.freed == [DRIVER_ID]


def test_a_process_that_exits_before_it_registers_leaves_a_failed_start_and_no_socket(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    socket = tmp_path / "sockets" / f"worker-{worker.worker_id.hex()[:16]}"
    socket.parent.mkdir()
    socket.touch()
    node.processes.exited(WorkerExit(worker.startup_token, 7, 1, 0, "worker pid 7 exited with code 1"))
    assert node.scene.pool.start_trouble == "worker pid 7 exited with code 1" and node.freed == []
    assert not socket.exists()


def test_a_failed_start_says_what_the_worker_wrote_last_and_what_helps(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / f"worker-{worker.worker_id.hex()}-7.err"
    log.write_text("Traceback (most recent call last):\nRuntimeError: can't start new thread\n")
    node.processes.exited(WorkerExit(worker.startup_token, 7, 1, 0, "worker pid 7 exited with code 1"))
    trouble = node.scene.pool.start_trouble
    assert "exited with code 1 and wrote last: RuntimeError: can't start new thread; no more" in trouble
    assert "'ulimit -u' or the pids limit" in trouble


def test_a_registered_process_that_exits_is_heard_out_before_its_connection_ends(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    exit_ = WorkerExit(worker.startup_token, 7, 0, 9, "killed")
    node.processes.exited(exit_)
    assert node.heard_out == [worker] and node.scene.running == ["a"]
    worker.connection.close()
    # It is gone: nothing follows from what is told twice.
    node.processes.exited(exit_)
    assert node.heard_out == [worker] and len(node.reports) == 1


def test_who_has_a_worker_killed_is_remembered_and_why_is_told(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KILLED, message="by kill()")
    node.processes.kill(worker.worker_id, force=True, cause=cause)
    assert worker.ordered_cause == cause and node.scene.ended[0].reason == "by kill()"
    worker.connection.close()
    assert node.reports == [(worker, "by kill()")]


def test_who_runs_what_is_read_off_its_board_and_without_one_it_may_be_anything(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    assert node.processes.may_run(worker.worker_id, 7, 1)
    board = StartBoard(worker.worker_id)
    worker.board = BoardOfAnother(os.getpid(), board.fd, worker.worker_id)
    assert not node.processes.may_run(worker.worker_id, 7, 1)
    board.may_begin((7 << LEASE_SHIFT) + 1, "f")
    assert node.processes.may_run(worker.worker_id, 7, 1)
    assert not node.processes.may_run(worker.worker_id, 7, 2)
    assert not node.processes.may_run(b"gone".ljust(28), 7, 1)
    board.keep((7 << LEASE_SHIFT) + 1, b"value")
    held = node.processes.held_answers(worker.worker_id, 7)
    assert (held.is_known, held.begun, held.first, list(held.plain)) == (True, 1, 1, [b"value"])
    assert not node.processes.held_answers(b"gone".ljust(28), 7).is_known


@pytest.mark.parametrize("end", ["it died", "killed", "lost by its holder", "holder's node died", "job over"])
@pytest.mark.parametrize("for_actor", [False, True])
def test_however_a_worker_for_tasks_ends_its_last_words_are_kept(
    tmp_path: Path, end: str, for_actor: bool
) -> None:
    node = Node(tmp_path)
    scene = node.scene
    scene.other_node(units(CPU=1))
    scene.ask("a", requester_node=THERE, for_actor=for_actor)
    worker = node.started()
    board = StartBoard(worker.worker_id)
    worker.board = BoardOfAnother(os.getpid(), board.fd, worker.worker_id)
    node.processes.register(worker)
    board.may_begin((7 << LEASE_SHIFT) + 1, "f")
    board.keep((7 << LEASE_SHIFT) + 1, b"value")
    board.may_begin((7 << LEASE_SHIFT) + 2, "f")
    if end == "killed":
        node.processes.kill(worker.worker_id, force=True, cause=common_pb2.DeathCause())
    elif end == "lost by its holder":
        scene.give_back("a", dispose=True)
    elif end == "holder's node died":
        scene.take(scene.manager.node_died(THERE, scene.now_s))
    elif end == "job over":
        scene.take(scene.manager.job_finished(JOB_A, scene.now_s))
    worker.connection.close()
    words = node.processes.last_words(worker.worker_id, 7)
    expected = (False, 0, []) if for_actor else (True, 2, [b"value"])
    assert (words.is_known, words.begun, list(words.plain)) == expected
    # Only of a worker that died by itself it is news what it ran.
    assert worker.ran == ("task f" if end == "it died" and not for_actor else "")


@pytest.mark.parametrize("is_noticed", [False, True])
def test_what_an_actors_process_had_answered_is_told_to_its_callers(tmp_path: Path, is_noticed: bool) -> None:
    node = Node(tmp_path)
    node.scene.ask("a", for_actor=True)
    worker = node.started()
    board = StartBoard(worker.worker_id)
    worker.board = BoardOfAnother(os.getpid(), board.fd, worker.worker_id)
    node.processes.register(worker)
    board.keep_call(b"1" * 24, b"one")
    if is_noticed:
        worker.connection.close()
    told = node.processes.last_answers(worker.worker_id)
    assert [(answer.task_id, answer.reply) for answer in told.answers] == [(b"1" * 24, b"one")]
    assert not node.processes.last_answers(b"gone".ljust(28)).answers


def test_of_calls_that_came_together_it_is_told_which_they_are(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a", for_actor=True)
    worker = node.started()
    board = StartBoard(worker.worker_id)
    worker.board = BoardOfAnother(os.getpid(), board.fd, worker.worker_id)
    node.processes.register(worker)
    board.keep_of_frame(b"1" * 24, 3, b"three")
    worker.connection.close()
    told = node.processes.last_answers(worker.worker_id)
    assert (told.frame_id, told.first, list(told.plain)) == (b"1" * 24, 2, [b"three"])


def test_a_worker_that_leaves_says_so_unless_somebody_had_it_killed(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    node.processes.leaves(worker.worker_id, "")
    assert worker.ordered_cause.kind == common_pb2.DeathCause.EXITED
    node.processes.leaves(b"u" * 28, "unknown")
    node.processes.leaves(worker.worker_id, "it raised SystemExit(7)")
    assert worker.left_because == "it raised SystemExit(7)"


def test_a_worker_that_waits_lends_its_cpus(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.scene.ask("a")
    worker = node.started()
    node.processes.register(worker)
    node.processes.blocked(worker.worker_id, b"a", True)
    assert node.scene.ledger.available == units(CPU=1)
    node.processes.blocked(worker.worker_id, b"a", False)
    assert node.scene.ledger.available == units()

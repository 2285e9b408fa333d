"""What is told of a worker that ended: to everybody, and to whoever had leased it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ray_mono.common.start_board import LEASE_SHIFT, StartBoard
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.clients import ClientProcess, Clients, open_board
from ray_mono.raylet.effects import EndMode, EndWorker
from ray_mono.raylet.worker.death_reports import DeathReports
from ray_mono.raylet.worker.deaths import (
    ENDS_MAX,
    LAST_BYTES_MAX,
    Ends,
    OomKills,
    death_cause,
    last_lines,
)
from ray_mono.raylet.worker.launcher import WorkerExit
from ray_mono.raylet.worker.worker_ender import WorkerEnder


@dataclasses.dataclass
class Config:
    session_dir: str = "/s"
    host: str = "10.0.0.1"
    node_id: bytes = b"n" * 28
    exit_status_wait_s: float = 0.0
    worker_exit_grace_s: float = 60.0


def process(**fields: Any) -> ClientProcess:
    ids: dict[str, Any] = {"worker_id": b"w" * 28, "pid": 7, "startup_token": 1, "start_time_s": 0.0}
    defaults: dict[str, Any] = {"type": common_pb2.WORKER, "language": common_pb2.PYTHON, "job_id": b""}
    return ClientProcess(
        **{**ids, **defaults, "address": common_pb2.Address(), "connection": cast("Any", None), **fields}
    )


def told(exit_: WorkerExit | None, end_reason: str = "", kills: OomKills | None = None) -> str:
    config = cast("Any", Config())
    client = process()
    if end_reason:
        client.raylet_tries_to_end_it(signal.SIGKILL)
    return death_cause(client, exit_, "closed", end_reason, config, kills or OomKills("/none")).message


@pytest.mark.parametrize(
    ("exit_", "end_reason", "message"),
    [
        (WorkerExit(1, 7, 3, 0, "worker pid 7 exited with code 3"), "", "worker pid 7 exited with code 3"),
        (None, "", "worker pid 7 lost its connection to the raylet: closed"),
        (WorkerExit(1, 7, 0, 9, "killed"), "", "killed, which this cluster did not send"),
        (WorkerExit(1, 7, 0, 9, "killed"), "its job is over", "killed; the raylet ended it: its job is over"),
        # It had ended when the raylet meant to end it.
        (
            WorkerExit(1, 7, 5, 0, "worker pid 7 exited with code 5"),
            "late",
            "worker pid 7 exited with code 5",
        ),
        (WorkerExit(1, 7, 0, 11, "was killed by signal 11"), "late", "was killed by signal 11"),
    ],
)
def test_how_where_and_its_output(exit_: WorkerExit | None, end_reason: str, message: str) -> None:
    log = f"/s/logs/worker-{(b'w' * 28).hex()}-7"
    assert told(exit_, end_reason) == f"{message}; node 10.0.0.1, output in {log}.out and .err"


def test_what_a_worker_wrote_last_is_told_without_what_it_wrote_for_the_log_monitor(tmp_path: Path) -> None:
    log = str(tmp_path / "worker-ab-7")
    assert last_lines(log) == ""
    Path(log + ".out").write_text(":job_id:01000000\n:task_name:f\nprinted\n")
    Path(log + ".err").write_text(":job_id:01000000\n\n::ray_mono_progress::{}\n")
    assert last_lines(log) == "\nIt wrote last:\n    printed"
    Path(log + ".err").write_text("".join(f"{number}\n" for number in range(100)) + ":actor_name:A\n")
    lines = last_lines(log).splitlines()
    assert lines[1:] == ["It wrote last:", *(f"    {number}" for number in range(90, 100))]
    frames = "".join(f"  File {number}\n" for number in range(100))
    Path(log + ".err").write_text(f"before\nFatal Python error: Aborted\n\nStack\n{frames}")
    lines = last_lines(log).splitlines()
    assert lines[2:5] == ["    Fatal Python error: Aborted", "    Stack", "      File 0"] and len(lines) == 12
    Path(log + ".err").write_text("x" * 100_000)
    assert 0 < len(last_lines(log)) < 2 * LAST_BYTES_MAX


def test_what_it_wrote_is_told_where_it_crashed_and_not_where_it_was_ended(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / f"logs/worker-{(b'w' * 28).hex()}-7.err").write_text("Fatal Python error\n")
    config = cast("Any", Config(session_dir=str(tmp_path)))
    exit_ = WorkerExit(1, 7, 0, 11, "was killed by signal 11")
    for end_reason, is_told in (("", True), ("its job is over", False)):
        cause = death_cause(process(), exit_, "closed", end_reason, config, OomKills("/none"))
        assert ("\nIt wrote last:\n    Fatal Python error" in cause.message) is is_told


def test_of_a_dead_worker_the_task_is_named_that_ran_and_none_where_that_is_not_known() -> None:
    board = StartBoard(b"w" * 28)
    dead = process(board=open_board(b"w" * 28, os.getpid(), board.fd))
    board.may_begin(1 << LEASE_SHIFT, "f")
    dead.note_what_ran()
    assert dead.info(b"n" * 28).ran == "task f"
    board.rest()
    dead.note_what_ran()
    assert dead.ran == ""
    without = process(board=open_board(b"w" * 28, os.getpid(), 0))
    without.note_what_ran()
    assert without.ran == "a task"


def test_a_worker_that_its_task_ended_says_how() -> None:
    left = process(left_because="its code raised SystemExit(7)")
    exit_ = WorkerExit(1, 7, 0, 0, "worker pid 7 exited with code 0")
    cause = death_cause(left, exit_, "closed", "", cast("Any", Config()), OomKills("/none"))
    assert cause.message.startswith(
        "worker pid 7 ended: its code raised SystemExit(7); node 10.0.0.1, output in /s/"
    )
    assert cause.kind == common_pb2.DeathCause.WORKER_DIED


def test_the_out_of_memory_killer_is_named_where_it_has_struck_since(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("pgfault 5\noom_kill 2\n")
    kills = OomKills(str(counters))
    killed = WorkerExit(1, 7, 0, int(signal.SIGKILL), "killed")
    assert "out-of-memory" not in told(killed, kills=kills)
    counters.write_text("pgfault 6\noom_kill 3\n")
    assert "out-of-memory" not in told(WorkerExit(1, 7, 0, int(signal.SIGSEGV), "killed"), kills=kills)
    assert "killed, and the kernel's out-of-memory killer has struck" in told(killed, kills=kills)
    assert "out-of-memory" not in told(killed, kills=kills)


def test_whoever_asks_how_a_worker_ended_hears_what_the_gcs_hears() -> None:
    async def scene() -> None:
        told: list[common_pb2.WorkerInfo] = []
        clock: Any = SimpleNamespace(wall_s=lambda: 1.0)
        outbox: Any = SimpleNamespace(report_worker_death=told.append)
        reports = DeathReports(cast("Any", Config()), cast("Any", None), clock, outbox)
        assert await reports.cause_of(b"w" * 28, timeout_s=0.0) is None
        reports.exited(WorkerExit(1, 7, 3, 0, "gone"))
        await reports.report(process(), "closed", "")
        cause = await reports.cause_of(b"w" * 28, timeout_s=0.0)
        [info] = told
        assert cause is not None and cause.message.startswith("gone") and info.death_cause == cause
        assert (info.worker_id, info.is_alive, info.end_time_s) == (b"w" * 28, False, 1.0)

    asyncio.run(scene())


def test_of_ends_that_nobody_asks_for_the_latest_are_kept() -> None:
    async def scene() -> None:
        ends: Ends[int, str] = Ends()
        for number in range(ENDS_MAX + 1):
            ends.happened(number, "gone")
        assert [await ends.of(number, 0.0) for number in (0, 1, ENDS_MAX)] == [None, "gone", "gone"]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("because", "ordered", "kind"),
    [
        ("", common_pb2.DeathCause.UNKNOWN, common_pb2.DeathCause.EXITED),
        ("it raised", common_pb2.DeathCause.UNKNOWN, common_pb2.DeathCause.WORKER_DIED),
        ("", common_pb2.DeathCause.KILLED, common_pb2.DeathCause.KILLED),
    ],
)
def test_a_worker_that_leaves_by_itself_has_exited_unless_a_task_or_somebody_else_ended_it(
    because: str, ordered: common_pb2.DeathCause.Kind, kind: common_pb2.DeathCause.Kind
) -> None:
    leaves = process(ordered_cause=common_pb2.DeathCause(kind=ordered))
    leaves.leaves(because)
    cause = death_cause(leaves, WorkerExit(1, 7, 0, 0, "exited"), "", "", cast("Any", Config()), OomKills())
    assert cause.kind == kind and (because in cause.message)


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_worker_that_was_killed_before_the_raylet_meant_to_end_it_was_not_ended_by_the_raylet(
    has_ended: bool,
) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        if has_ended:
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        client, clients = process(pid=child.pid), Clients()
        clients.add(client)
        launcher: Any = SimpleNamespace(kill=lambda startup_token, force: None)
        ender = WorkerEnder(
            cast("Any", None), launcher, clients, cast("Any", None), 0.0, lambda worker_id: None
        )
        ender.end(EndWorker(client.worker_id, client.startup_token, EndMode.KILL, "lost"))
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        ender.end(EndWorker(client.worker_id, client.startup_token, EndMode.KILL, "again"))
    finally:
        child.kill()
        child.wait()
    exit_ = WorkerExit(1, 7, 0, signal.SIGKILL, "killed")
    message = death_cause(client, exit_, "closed", "lost", cast("Any", Config()), OomKills("/none")).message
    assert message.startswith(
        "killed, which this cluster did not send" if has_ended else "killed; the raylet ended it: lost"
    )


@pytest.mark.parametrize(
    ("signum", "end"),
    [(signal.SIGKILL, "killed, which this cluster did not send"), (0, "killed; the raylet ended it: idle")],
)
def test_a_worker_that_was_asked_to_end_and_then_killed_was_killed_by_somebody_else(
    signum: int, end: str
) -> None:
    asked = process()
    asked.raylet_tries_to_end_it(0)
    exit_ = WorkerExit(1, 7, 0, signum, "killed")
    message = death_cause(asked, exit_, "closed", "idle", cast("Any", Config()), OomKills("/none")).message
    assert message.startswith(end)
    # It did not answer, and the grace period was over.
    asked.raylet_tries_to_end_it(signal.SIGKILL)
    exit_ = WorkerExit(1, 7, 0, signal.SIGKILL, "killed")
    message = death_cause(asked, exit_, "closed", "idle", cast("Any", Config()), OomKills("/none")).message
    assert message.startswith("killed; the raylet ended it: idle")


def test_a_worker_that_was_killed_for_memory_says_so_and_how_often_its_task_may_run_again() -> None:
    ordered = common_pb2.DeathCause(
        kind=common_pb2.DeathCause.OUT_OF_MEMORY,
        message="node 7 runs short of memory",
        oom_retries=common_pb2.OomRetries(retries_max=-1, pause_s=1.0),
    )
    client = process()
    client.is_ordered_to_end(ordered)
    client.raylet_tries_to_end_it(signal.SIGKILL)
    exit_ = WorkerExit(1, 7, 0, signal.SIGKILL, "killed")
    cause = death_cause(client, exit_, "closed", ordered.message, cast("Any", Config()), OomKills("/none"))
    assert cause.signal == signal.SIGKILL
    cause.ClearField("signal")
    assert cause == ordered

"""A node whose memory runs short: who is killed, and what is told of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2
from ray_mono.raylet.effects import EndMode, WarnJob
from ray_mono.raylet.memory.memory_usage import MemoryUsage
from ray_mono.raylet.memory.process_memory import Processes, ProcessMemory
from ray_mono.raylet.memory_guard import MemoryGuard
from tests.raylet.scheduling.lease_scene import JOB_A, JOB_B, Scene, units

GIB = 1 << 30
DRIVER_PID = 50


class Board:
    """What a worker says that it runs."""

    def __init__(self) -> None:
        self.last_begun = 0
        self.name = ""

    def running(self) -> str:
        return self.name


class Node:
    """A raylet, as far as this knows it, with 10 GiB, and a driver that uses 3."""

    def __init__(self, **config: Any) -> None:
        self.scene = scene = Scene(units(CPU=8))
        self.used_bytes = 0
        self.fault: Exception | None = None
        self.boards: dict[str, Board] = {}
        self.killed: list[str] = []
        self.causes: list[common_pb2.DeathCause] = []
        self.pids = {"driver": DRIVER_PID}
        self.tools: dict[int, int] = {}
        """Processes that workers have started, and by whom."""
        self.tools_killed: list[int] = []
        self._clients: dict[bytes, Any] = {b"driver": self._client("driver", b"driver", is_driver=True)}
        self._gone: set[int] = set()
        settings = {"memory_usage_threshold": 0.95, "memory_kill_wait_s": 5.0, "task_oom_retries": -1}
        settings |= {"task_oom_retry_delay_base_ms": 1000, "host": "10.0.0.7", "node_id": b"n" * 28, **config}
        self.guard = MemoryGuard(
            SimpleNamespace(**settings),  # type: ignore[arg-type]
            SimpleNamespace(time_s=lambda: scene.now_s),  # type: ignore[arg-type]
            self,
            self,  # type: ignore[arg-type]
            scene.pool,
            scene.manager,
            SimpleNamespace(kill=self.kill_worker),  # type: ignore[arg-type]
            SimpleNamespace(run=scene.take),  # type: ignore[arg-type]
        )

    # ---- the machine that it asks

    def usage(self) -> MemoryUsage:
        if self.fault is not None:
            raise self.fault
        return MemoryUsage(self.used_bytes, 10 * GIB, "cgroup /a")

    def processes(self, usage: MemoryUsage) -> Processes:
        of_workers = [pid for name, pid in self.pids.items() if name != "driver"]
        found = [ProcessMemory(pid, 0, 1, GIB, "python3") for pid in of_workers]
        found += [ProcessMemory(pid, 0, parent, GIB // 4, "tool") for pid, parent in self.tools.items()]
        found += [
            ProcessMemory(DRIVER_PID, 0, 1, 3 * GIB, "python3"),
            ProcessMemory(60, 0, 1, GIB // 2, "sh"),
        ]
        return Processes(process for process in found if process.pid not in self._gone)

    def has_memory(self, process: ProcessMemory) -> bool:
        return process.pid not in self._gone

    # ---- the clients that it asks

    def get(self, worker_id: bytes) -> Any:
        return self._clients.get(worker_id)

    def __iter__(self) -> Any:
        return iter(self._clients.values())

    def _client(self, name: str, worker_id: bytes, is_driver: bool = False) -> Any:
        board, pid = self.boards.get(name), self.pids[name]
        return SimpleNamespace(worker_id=worker_id, pid=pid, board=board, is_driver=is_driver, job_id=JOB_A)

    # ---- whom it tells

    def kill(self, process: ProcessMemory) -> None:
        self.tools_killed.append(process.pid)

    def kill_worker(self, worker_id: bytes, force: bool, cause: common_pb2.DeathCause) -> None:
        name = next(name for name in self.pids if self._clients[worker_id].pid == self.pids[name])
        assert force
        self.killed.append(name)
        self.causes.append(cause)
        self.scene.do(lambda now_s: self.scene.manager.kill_worker(worker_id, True, "memory", now_s))

    # ---- events

    def runs(self, name: str, owner: str = "driver", retries: bool = True, **options: Any) -> None:
        """A worker is leased and runs this task; an actor with for_actor."""
        is_actor = options.get("for_actor", False)
        task_name = f"{name}.__init__" if is_actor else name
        self.scene.ask(task_name, owner_id=owner.encode(), is_retriable=retries, **options)
        self.pids[name] = 100 + len(self.pids)
        if not is_actor:
            self.boards[name] = Board()
        worker_id = self.scene.granted[task_name].worker_id
        self._clients[worker_id] = self._client(name, worker_id)
        if not is_actor:
            self.begins(name)
        self.look(used=0)

    def begins(self, name: str) -> None:
        """It goes on to another task."""
        self.boards[name].name = name
        self.boards[name].last_begun += 1

    def look(self, used: float, after_s: float = 0.25) -> None:
        """used: GiB."""
        self.scene.wait(after_s)
        self.used_bytes = int(used * GIB)
        self.guard.look()

    def ends(self, name: str) -> None:
        self._gone.add(self.pids[name])
        (worker_id,) = [id_ for id_, client in self._clients.items() if client.pid == self.pids[name]]
        del self._clients[worker_id]
        self.scene.do(lambda now_s: self.scene.manager.worker_died(worker_id, "killed", now_s))

    def tool_ends(self, pid: int) -> None:
        self._gone.add(pid)

    @property
    def told(self) -> list[WarnJob]:
        return self.scene.warnings


def test_below_the_threshold_nobody_is_killed() -> None:
    node = Node()
    node.runs("f")
    node.look(used=9.5)
    assert not node.killed


def test_one_after_the_other_is_killed_the_newest_first_until_there_is_room() -> None:
    node = Node()
    for name in ("old", "middle", "new"):
        node.runs(name)
    node.look(used=9.6)
    node.look(used=9.6)
    assert node.killed == ["new"]
    node.ends("new")
    node.look(used=9.6)
    assert node.killed == ["new"]
    node.look(used=9.6)
    assert node.killed == ["new", "middle"]
    node.ends("middle")
    node.look(used=5)
    node.look(used=5)
    assert node.killed == ["new", "middle"]


def test_one_that_does_not_end_is_not_killed_twice() -> None:
    node = Node()
    node.runs("old")
    node.runs("new")
    node.look(used=9.6)
    node.look(used=9.6, after_s=5)
    node.look(used=9.6)
    assert node.killed == ["new", "old"]
    node.look(used=9.6, after_s=5)
    node.look(used=9.6)
    assert node.killed == ["new", "old"]


def test_what_counts_is_when_the_task_began_and_not_the_lease() -> None:
    node = Node()
    node.runs("first")
    node.runs("second")
    node.begins("first")
    node.look(used=0)
    node.look(used=9.6)
    assert node.killed == ["first"]


def test_a_worker_between_two_tasks_and_one_without_a_lease_are_let_be() -> None:
    node = Node()
    node.runs("f")
    node.boards["f"].name = ""
    node.look(used=9.6)
    node.begins("f")
    node.scene.give_back("f")
    node.look(used=9.6)
    assert not node.killed


def test_a_driver_is_never_killed_whatever_it_uses() -> None:
    node = Node()
    node.look(used=10)
    assert not node.killed


def test_owners_and_retries_are_those_of_the_leases() -> None:
    node = Node()
    node.runs("precious", retries=False)
    node.runs("mine1", owner="me")
    node.runs("mine2", owner="me")
    node.runs("yours", owner="you")
    for name in ("mine2", "yours", "mine1", "precious"):
        node.look(used=9.6)
        assert node.killed[-1] == name
        node.ends(name)
        node.look(used=9.6)
    assert [cause.oom_retries.retries_max for cause in node.causes] == [-1, 0, 0, 0]


def test_an_actor_is_known_by_its_class_and_goes_by_its_own_age() -> None:
    node = Node()
    node.runs("Model", for_actor=True)
    node.runs("f")
    node.look(used=9.6)
    node.ends("f")
    node.look(used=9.6)
    node.look(used=9.6)
    assert node.killed == ["f", "Model"]
    assert "which ran actor Model and used" in node.causes[1].message
    assert "It is not run again" not in node.causes[1].message


@pytest.mark.parametrize(("retries", "is_told"), [(True, True), (False, False)])
def test_the_error_says_who_used_what_where_and_what_to_do(retries: bool, is_told: bool) -> None:
    node = Node(task_oom_retries=3, task_oom_retry_delay_base_ms=500)
    for number in range(12):
        node.pids[f"other{number}"] = 1000 + number
    node.runs("f", retries=retries)
    node.look(used=9.6)
    (cause,) = node.causes
    assert cause.kind == common_pb2.DeathCause.OUT_OF_MEMORY
    assert cause.oom_retries == common_pb2.OomRetries(retries_max=0, pause_s=0.5)
    first, *lines = cause.message.splitlines()
    node_name = f"Node 10.0.0.7 ({(b'n' * 28).hex()})"
    assert f"{node_name} runs short of memory: 9.60 GiB of the 10.00 GiB of cgroup /a were used" in first
    assert "more than 95.0%" in first and "which ran task f and used 1.00 GiB" in first
    assert ("It is not run again" in first) is is_told
    listed, advice = lines[1:-1], lines[-1]
    assert len(listed) == 10 and listed[0].split() == [
        "50",
        "3.00",
        "GiB",
        "driver",
        "of",
        "job",
        JOB_A.hex(),
    ]
    assert listed[1].endswith("task f") and not any(line.endswith("sh") for line in listed)
    for part in ("num_cpus", "memory=", "RAY_MONO_memory_usage_threshold", "memory_monitor_refresh_ms=0"):
        assert part in advice


def test_the_driver_is_told_of_the_first_and_each_time_that_they_have_doubled() -> None:
    node = Node()
    for number in range(9):
        node.runs(f"f{number}", resources=ResourceSet())
    for number in reversed(range(9)):
        node.look(used=9.6)
        node.ends(f"f{number}")
        node.look(used=9.6)
    assert len(node.killed) == 9 and [warning.job_id for warning in node.told] == [JOB_A] * 4
    assert "killed the worker with pid" in node.told[0].message and "ran task f8" in node.told[0].message
    assert "8 workers of this job so far" in node.told[3].message
    node.runs("g", job=JOB_B)
    node.look(used=9.6)
    assert node.told[4].job_id == JOB_B


def test_what_a_killed_worker_had_started_goes_with_it_and_counts_as_its_own() -> None:
    node = Node()
    node.runs("old")
    node.runs("new")
    node.tools = {70: node.pids["new"], 71: 70, 72: node.pids["old"]}
    node.look(used=9.6)
    assert "which ran task new and used 1.50 GiB" in node.causes[0].message
    node.look(used=9.6)
    assert not node.tools_killed  # else the task would hear of that, and could answer
    node.ends("new")
    node.look(used=9.6)
    node.look(used=9.6)
    assert node.tools_killed == [70, 71] and node.killed == ["new"]
    node.tools = {72: node.pids["old"]}
    node.tool_ends(70)
    node.tool_ends(71)
    node.look(used=9.6)
    node.look(used=9.6)
    assert node.killed == ["new", "old"]


def test_idle_workers_that_use_much_are_asked_to_end_once_before_anybody_is_killed() -> None:
    node = Node()
    node.runs("was here")
    node.runs("f")
    idle = node.scene.granted["was here"].worker_id
    node.scene.give_back("was here")
    node.look(used=9.0)
    assert node.scene.ended == []
    node.look(used=9.6)
    assert [(end.worker_id, end.mode) for end in node.scene.ended] == [(idle, EndMode.ASK)]
    # It owns what others need.
    node.scene.do(lambda now_s: node.scene.manager.worker_refused_to_end(idle, now_s))
    node.look(used=9.6)
    assert node.killed == ["f"]
    assert [end.mode for end in node.scene.ended] == [EndMode.ASK, EndMode.KILL]


def test_those_that_were_asked_have_some_time_to_end() -> None:
    node = Node()
    node.runs("was here")
    node.runs("f")
    node.scene.give_back("was here")
    for _ in range(4):
        node.look(used=9.6)
    assert node.killed == []
    node.look(used=9.6)
    assert node.killed == ["f"]


def test_an_idle_worker_that_has_worked_since_it_refused_is_asked_again() -> None:
    node = Node()
    node.runs("was here")
    idle = node.scene.granted["was here"].worker_id
    for _ in range(2):
        node.scene.give_back("was here")
        node.look(used=9.6)
        node.scene.do(lambda now_s: node.scene.manager.worker_refused_to_end(idle, now_s))
        node.scene.ask("was here")
        node.look(used=9.0)
    assert [end.mode for end in node.scene.ended] == [EndMode.ASK, EndMode.ASK]


def test_an_idle_worker_that_has_refused_is_asked_again_after_a_while() -> None:
    node = Node()
    node.runs("was here")
    idle = node.scene.granted["was here"].worker_id
    node.scene.give_back("was here")
    for after_s in (0.25, 0.25, 5.0, 0.25):
        node.look(used=9.6, after_s=after_s)
        node.scene.do(lambda now_s: node.scene.manager.worker_refused_to_end(idle, now_s))
    assert [end.mode for end in node.scene.ended] == [EndMode.ASK, EndMode.ASK]


def test_an_idle_worker_that_uses_little_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mono.raylet.memory_guard.IDLE_BYTES_MIN", GIB + 1)
    node = Node()
    node.runs("was here")
    node.scene.give_back("was here")
    node.look(used=9.6)
    assert node.scene.ended == []


def test_its_state_says_what_is_used_and_how_many_were_killed() -> None:
    node = Node()
    assert node.guard.describe()["of"] == "not known"
    node.runs("f")
    node.look(used=9.6)
    assert node.guard.describe() == {
        "of": "cgroup /a",
        "used_bytes": int(9.6 * GIB),
        "limit_bytes": 10 * GIB,
        "threshold": 0.95,
        "workers_killed_by_job": {JOB_A.hex(): 1},
    }


def test_where_memory_cannot_be_read_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.runs("f")
    node.fault = OSError(24, "Too many open files")
    for _ in range(10):
        node.look(used=9.6)
    assert not node.killed and caplog.text.count("Too many open files") == 1
    node.fault = None
    node.look(used=9.6)
    assert node.killed == ["f"]


def test_jobs_whose_workers_were_killed_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_mono.raylet.memory_guard.JOBS_MAX", 1)
    node = Node()
    for number, job in enumerate([JOB_A, JOB_B, JOB_A]):
        node.runs(f"f{number}", job=job)
        node.look(used=9.6)
        node.ends(f"f{number}")
        node.look(used=0)
    # The third counts as the first of its job.
    assert [warning.job_id for warning in node.told] == [JOB_A, JOB_B, JOB_A]
    assert "so far" not in node.told[2].message

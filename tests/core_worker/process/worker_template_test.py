"""The template with real forks, through the launcher that raylets use."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_mono.common.background import BackgroundTasks
from ray_mono.common.lifeline import LIFELINE_SUFFIX
from ray_mono.common.node_time import NS_PER_S
from ray_mono.common.process import is_alive
from ray_mono.protobuf import raylet_pb2
from ray_mono.raylet.worker.launcher import TemplateLauncher, WorkerExit, WorkerOrder
from ray_mono.rpc.framing import prefixed
from tests.waiting import until, wait_until

ROOT = Path(__file__).absolute().parent.parent.parent.parent
WORKERS = "tests.core_worker.template_workers"
BOUND_S = 60.0


class Scene:
    """A launcher with its template, and what it told."""

    def __init__(self, launcher: TemplateLauncher, directory: Path) -> None:
        self.launcher = launcher
        self.directory = directory
        self.exits: dict[int, WorkerExit] = {}
        self._changed = asyncio.Event()

    def on_exit(self, exit_: WorkerExit) -> None:
        assert exit_.startup_token not in self.exits
        self.exits[exit_.startup_token] = exit_
        self._changed.set()

    async def exit_of(self, token: int) -> WorkerExit:
        async with asyncio.timeout(BOUND_S):
            while token not in self.exits:
                self._changed.clear()
                await self._changed.wait()
        return self.exits[token]

    async def facts_of(self, token: int) -> dict[str, Any]:
        """What a worker wrote about itself."""
        path = self.directory / f"{token}.json"
        await until(path.exists)
        facts: dict[str, Any] = json.loads(path.read_text())
        return facts

    @property
    def template_pid(self) -> int:
        (template,) = psutil.Process().children()
        return template.pid


@pytest.fixture(autouse=True)
def python_path(monkeypatch: pytest.MonkeyPatch, session_base: Path) -> Iterator[None]:
    paths = [str(ROOT), *(path for path in sys.path if path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield


@asynccontextmanager
async def scene(
    directory: Path, worker: str, exit_grace_s: float = 5.0, silent_s: float = BOUND_S
) -> AsyncIterator[Scene]:
    (directory / "logs").mkdir()
    command = [
        sys.executable,
        "-m",
        "ray_mono.core_worker.process.worker_template",
        "--raylet-socket",
        str(directory / "raylet"),
    ]
    command += ["--gcs-address", "host:1", "--session-dir", str(directory), "--node-host", "10.0.0.7"]
    command += ["--worker-module", f"{WORKERS}:{worker}"]
    launcher = TemplateLauncher(
        command,
        "logs/worker-",
        exit_grace_s,
        silent_s=silent_s,
        lifeline_path=f"{directory}/raylet{LIFELINE_SUFFIX}",
    )
    failures: list[BaseException] = []
    tasks = BackgroundTasks(lambda error, name: failures.append(error))
    made = Scene(launcher, directory)
    await launcher.open(made.on_exit, tasks)
    try:
        yield made
    finally:
        await launcher.close()
        await tasks.close()
    assert failures == []


@pytest.fixture
def thread_in_every_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a tracer, or a line in a .pth file, may start one."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(1e6,), daemon=True, name='agent').start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def order(token: int) -> WorkerOrder:
    return WorkerOrder(token, token.to_bytes(28, "big"))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), BOUND_S))


def test_a_child_is_a_process_of_its_own(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            facts = await it.facts_of(1)
            assert facts["parent"] == it.template_pid
            assert facts["group"] == facts["pid"]
            assert facts["title"] == "ray_mono::IDLE"
            assert facts["worker_id"] == (1).to_bytes(28, "big").hex()
            assert (facts["raylet_socket"], facts["node_host"]) == (f"{session_base}/raylet", "10.0.0.7")
            assert facts["stdin"] == "/dev/null"
            assert facts["threads"] == 1 and facts["collects"]
            name = f"{session_base}/logs/worker-{facts['worker_id']}-{facts['pid']}"
            lifeline = f"{session_base}/raylet{LIFELINE_SUFFIX}"
            assert facts["descriptors"] == sorted(["/dev/null", f"{name}.err", f"{name}.out", lifeline])
            await until(lambda: Path(f"{name}.out").read_text() == "to stdout\n")
            assert Path(f"{name}.err").read_text() == "to stderr\n"

    run(test)


def test_children_draw_different_random_numbers(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            for token in (1, 2):
                it.launcher.start(order(token))
            draws = [*(await it.facts_of(1))["draws"], *(await it.facts_of(2))["draws"]]
            assert len(set(draws)) == 4

    run(test)


def test_exits_are_told_with_code_or_signal(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "exit_with_token") as it:
            for token in (1, 2, 3, 7):
                it.launcher.start(order(token))
            ends = [await it.exit_of(token) for token in (1, 2, 3, 7)]
            assert [(end.exit_code, end.signal) for end in ends] == [
                (0, 0), (1, 0), (0, signal.SIGSEGV), (7, 0)
            ]  # fmt: skip
            assert ends[3].message == f"worker pid {ends[3].pid} exited with code 7"
            assert ends[2].message == f"worker pid {ends[2].pid} was killed by signal 11 (SIGSEGV)"
            [log] = session_base.glob(f"logs/worker-*-{ends[1].pid}.err")
            assert "RuntimeError: a worker that raises" in log.read_text()

    run(test)


def test_a_worker_can_be_ended_before_and_after_it_was_forked(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            it.launcher.start(order(2))
            it.launcher.kill(1, force=False)
            assert it.exits == {}  # told later, never from inside the call
            assert (await it.exit_of(1)).pid == 0
            await it.facts_of(2)
            it.launcher.kill(2, force=False)
            assert (await it.exit_of(2)).signal == signal.SIGTERM
            it.launcher.kill(2, force=True)

    run(test)


def test_what_a_dead_worker_left_in_its_group_is_killed_and_the_rest_at_the_end(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "deaf", exit_grace_s=0.1) as it:
            it.launcher.start(order(1))
            facts = await it.facts_of(1)
            it.launcher.kill(1, force=True)
            await it.exit_of(1)
            await until(lambda: not is_alive(facts["near"]))
            assert psutil.Process(facts["far"]).ppid() == it.template_pid
            it.launcher.start(order(2))
            second = await it.facts_of(2)
        pids = [facts["far"], *second.values()]
        assert [pid for pid in pids if is_alive(pid)] == []

    run(test)


@pytest.mark.parametrize("end", ["by somebody else", "asked", "at the launcher's end"])
def test_workers_go_on_without_their_template_and_another_takes_over(session_base: Path, end: str) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            worker = (await it.facts_of(1))["pid"]
            os.kill(it.template_pid, signal.SIGSTOP)
            it.launcher.start(order(2))
            os.kill(it.template_pid, signal.SIGKILL)
            assert (await it.exit_of(2)).message == "the worker template was killed by signal 9 (SIGKILL)"
            it.launcher.start(order(3))
            assert (await it.facts_of(3))["parent"] == it.template_pid
            assert is_alive(worker) and 1 not in it.exits
            assert it.launcher.cpu_time_s(1) is not None
            if end == "by somebody else":
                os.kill(worker, signal.SIGKILL)
            elif end == "asked":
                it.launcher.kill(1, force=False)
            if end != "at the launcher's end":
                assert (await it.exit_of(1)).message.startswith(f"worker pid {worker} ")
                assert it.launcher.cpu_time_s(1) is None
        assert not is_alive(worker)

    run(test)


def test_a_worker_whose_end_the_dead_template_was_told_ends_all_the_same(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            worker = (await it.facts_of(1))["pid"]
            os.kill(it.template_pid, signal.SIGSTOP)
            it.launcher.kill(1, force=True)
            os.kill(it.template_pid, signal.SIGKILL)
            assert (await it.exit_of(1)).pid == worker
            assert not is_alive(worker)

    run(test)


def test_a_worker_whose_template_died_before_it_told_of_the_fork_goes_on(
    session_base: Path,
) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            await it.facts_of(1)
            template = it.template_pid
            os.kill(template, signal.SIGSTOP)
            it.launcher.start(order(2))
            it.launcher.start(order(3))
            with subprocess.Popen(["sleep", "60"], start_new_session=True) as forked:
                it.launcher.registered(2, forked.pid)
                os.kill(template, signal.SIGKILL)
                await it.exit_of(3)
                assert 2 not in it.exits and is_alive(forked.pid)
                it.launcher.kill(2, force=True)
                assert (await it.exit_of(2)).pid == forked.pid

    run(test)


def test_a_stopped_template_is_killed_and_another_takes_over(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report", silent_s=0.2) as it:
            it.launcher.start(order(1))
            await it.facts_of(1)
            os.kill(it.template_pid, signal.SIGSTOP)
            it.launcher.start(order(2))
            assert (await it.exit_of(2)).message == "the worker template was killed by signal 9 (SIGKILL)"
            it.launcher.start(order(3))
            await it.facts_of(3)
            assert 1 not in it.exits

    run(test)


def test_a_template_that_cannot_start_fails_the_orders_that_wait_for_it(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "no_such_function") as it:
            it.launcher.start(order(1))
            assert (await it.exit_of(1)).message == "the worker template exited with code 1"

    run(test)


def test_workers_are_killed_when_the_time_of_their_node_is_over(
    session_base: Path,
) -> None:
    async def test() -> None:
        async with scene(session_base, "deaf") as it:
            it.launcher.start(order(1))
            facts = await it.facts_of(1)
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            it.launcher.lease_ends(now_ns, now_ns + 1000 * NS_PER_S)
            it.launcher.lease_ends(now_ns + 1000 * NS_PER_S, 0)
            it.launcher.lease_ends(now_ns, 0)
            assert (await it.exit_of(1)).signal == signal.SIGKILL
            await until(lambda: not any(map(is_alive, facts.values())))

    run(test)


def test_nor_have_they_a_grace_period_then(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "deaf", exit_grace_s=1000.0) as it:
            it.launcher.start(order(1))
            facts = await it.facts_of(1)
            it.launcher.lease_ends(time.clock_gettime_ns(time.CLOCK_BOOTTIME) + NS_PER_S // 5, 0)
        assert not any(map(is_alive, facts.values()))

    run(test)


def test_workers_are_killed_at_once_when_the_raylet_is_dead(session_base: Path) -> None:
    """They may not run for a grace period: the head starts their actors elsewhere."""
    (session_base / "logs").mkdir()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "ray_mono.core_worker.process.worker_template"]
    command += ["--raylet-socket", "/r", "--gcs-address", "host:1", "--session-dir", str(session_base)]
    command += ["--command-fd", str(theirs.fileno()), "--exit-grace-s", "1000"]
    command += ["--worker-module", f"{WORKERS}:deaf"]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as template, ours:
        theirs.close()
        fork = raylet_pb2.TemplateCommand.Fork(startup_token=1, worker_id=b"w" * 28, log_prefix="logs/w")
        ours.sendall(prefixed(raylet_pb2.TemplateCommand(fork=fork).SerializeToString()))
        path = session_base / "1.json"
        wait_until(path.exists, "the worker runs")
        ours.close()
        assert template.wait(BOUND_S) == 0
        assert not any(map(is_alive, json.loads(path.read_text()).values()))


def test_many_workers_start_together(session_base: Path) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            for token in range(1, 31):
                it.launcher.start(order(token))
            pids = {(await it.facts_of(token))["pid"] for token in range(1, 31)}
            assert len(pids) == 30

    run(test)


def test_a_template_that_may_not_fork_starts_interpreters(
    session_base: Path, thread_in_every_interpreter: None, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            for token in (1, 2):
                it.launcher.start(order(token))
            for token in (1, 2):
                facts = await it.facts_of(token)
                assert facts["parent"] == it.template_pid
                assert (facts["group"], facts["title"]) == (facts["pid"], "ray_mono::IDLE")
                assert facts["threads"] >= 2 and facts["collects"]
                assert facts["worker_id"] == token.to_bytes(28, "big").hex()
                assert (facts["raylet_socket"], facts["node_host"]) == (f"{session_base}/raylet", "10.0.0.7")
                name = f"{session_base}/logs/worker-{facts['worker_id']}-{facts['pid']}"
                lifeline = f"{session_base}/raylet{LIFELINE_SUFFIX}"
                expected = ["/dev/null", f"{name}.err", f"{name}.out", lifeline]
                assert facts["descriptors"] == sorted(expected)
            it.launcher.kill(1, force=True)
            assert (await it.exit_of(1)).signal == signal.SIGKILL

    run(test)
    assert capfd.readouterr().err.count("something started threads in this one (1: agent)") == 1


def test_a_start_that_fails_in_an_interpreter_of_its_own_fails_alone(
    session_base: Path, thread_in_every_interpreter: None
) -> None:
    async def test() -> None:
        async with scene(session_base, "report") as it:
            logs = (session_base / "logs").rename(session_base / "elsewhere")
            it.launcher.start(order(1))
            assert (await it.exit_of(1)).exit_code == 1
            logs.rename(session_base / "logs")
            it.launcher.start(order(2))
            assert (await it.facts_of(2))["parent"] == it.template_pid

    run(test)


def test_a_template_for_which_there_is_no_process_is_told_and_started_when_there_is(
    session_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = subprocess.Popen, [BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))]

    def start(*arguments: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", start)

    async def test() -> None:
        async with scene(session_base, "report") as it:
            it.launcher.start(order(1))
            told = (await it.exit_of(1)).message
            assert "the worker template could not be started: Resource temporarily unavailable" in told
            it.launcher.start(order(2))
            assert (await it.facts_of(2))["parent"] == it.template_pid

    run(test)


def test_a_template_that_is_never_ready_is_given_up_and_its_orders_are_told(session_base: Path) -> None:
    async def test() -> None:
        launcher = TemplateLauncher(
            [sys.executable, "-c", "import signal; signal.pause()"], "logs/w-", 5.0, ready_timeout_s=0.2
        )
        tasks = BackgroundTasks(lambda error, name: None)
        made = Scene(launcher, session_base)
        await launcher.open(made.on_exit, tasks)
        try:
            launcher.start(order(1))
            assert "the worker template was killed" in (await made.exit_of(1)).message
        finally:
            await launcher.close()
            await tasks.close()

    run(test)

"""A worker process's whole life, over a scene's wire: it joins, becomes its first task's job's, and ends."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import TaskCancelledError
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process import current, registration, termination, worker, worker_exit
from ray_mono.core_worker.process.worker import load_function, run_worker
from ray_mono.core_worker.process.worker_config import WorkerConfig
from ray_mono.core_worker.values import serialization
from ray_mono.protobuf import common_pb2, core_worker_pb2, gcs_pb2, object_manager_pb2, raylet_pb2
from ray_mono.rpc import auth
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import JOB_ID, NODE_ID, Served, Wire, tells_of_first_head
from tests.core_worker.worker_scene import CALLER, CODE, code_reply

GONE = RpcError(StatusCode.INTERNAL, "it is gone")


class Gone(BaseException):
    """The process ended."""


class Life:
    """One worker's. `tasks` are pushed to it as soon as its raylet knows it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "sockets").mkdir()
        self.directory = directory
        self.wire = wire = Wire()
        self.core: CoreWorker
        self.registration: registration.Registration | None = None
        self.steps: list[Any] = []
        self.tasks: list[tuple[Callable[..., Any], dict[str, Any]]] = []
        self.calls: list[Served] = []
        self.job: dict[str, Any] = {}
        node = common_pb2.NodeInfo(node_id=NODE_ID, host="here", store_socket="/store")
        self.node = raylet_pb2.RegisterClientReply(node=node)
        wire.replies.update(
            RegisterClient=self._registered,
            ConnectClient=lambda request: object_manager_pb2.ConnectClientReply(node_id=NODE_ID),
            GetJob=lambda request: common_pb2.JobInfo(
                namespace="the job's", config_json=json.dumps(self.job) if self.job else ""
            ),
            KvKeys=lambda request: gcs_pb2.KvKeysReply(),
            KvGet=code_reply,
        )
        wire.heard = tells_of_first_head
        life = self

        class Joining(registration.Registration):
            def channel(self, address: str, peer_name: str = "") -> Any:
                life.registration = self
                return wire.connect(address)

        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(
            "ray_mono.core_worker.task_execution.process_title.setproctitle", lambda title: None
        )
        monkeypatch.setattr(worker, "Registration", Joining)
        monkeypatch.setattr(worker.signal_handlers, "install", lambda reactor, interrupts: lambda: None)
        monkeypatch.setattr(worker.faulthandler, "enable", lambda *args, **more: None)
        monkeypatch.setattr(auth, "find_secret", lambda given, directory: "")
        monkeypatch.setattr(worker_exit.process_end, "run", lambda: self.steps.append("the end of a process"))
        monkeypatch.setattr(os, "_exit", self._exit)
        monkeypatch.setattr(termination, "die", lambda: self._exit(-signal.SIGTERM))
        monkeypatch.setattr(sys, "path", [*sys.path])

    def _registered(self, request: Any) -> Any:
        assert self.registration is not None
        for number, (function, fields) in enumerate(self.tasks):
            key = b"life %d" % number
            CODE[key] = function
            python = common_pb2.PythonFunctionDescriptor(function_name="f", function_hash=key)
            spec = common_pb2.TaskSpec(
                name="f",
                type=common_pb2.NORMAL_TASK,
                num_returns=1,
                job_id=JOB_ID,
                caller=CALLER,
                function=common_pb2.FunctionDescriptor(python=python),
                max_calls=int(number + 1 == len(self.tasks)),
                **fields,
            )
            call = Served()
            self.calls.append(call)
            request = core_worker_pb2.PushTaskRequest(template_id=1, task_id=b"%d" % number * 24, spec=spec)
            with self.registration.reactor.lock:
                self.registration.servicer.PushTask(request, call)  # type: ignore[arg-type]
        return self.node

    def cancel(self, task_id: bytes) -> None:
        """Somebody cancels a task of its."""
        assert self.registration is not None
        with self.registration.reactor.lock:
            request = core_worker_pb2.CancelTaskRequest(task_id=task_id)
            self.registration.servicer.CancelTask(request, Served())  # type: ignore[arg-type]

    def _exit(self, status: int) -> None:
        self.steps.append(status)
        raise Gone

    def live(self, *tasks: Callable[..., Any], **fields: Any) -> list[Served]:
        """The last task's answer ends it."""
        self.tasks = [(task, fields) for task in tasks]
        config = WorkerConfig("/raylet", "unix:/gcs", str(self.directory), b"w" * 28, startup_token=5)
        with pytest.raises(Gone):
            run_worker(config)
        return self.calls

    def values(self, *tasks: Callable[..., Any], **fields: Any) -> list[Any]:
        answers = [call.answer for call in self.live(*tasks, **fields)]
        return [
            serialization.deserialize(serialization.PLAIN, each.plain)
            if each.HasField("plain")
            else serialization.deserialize(each.returns[0].value.metadata, each.returns[0].value.data)
            for each in answers
        ]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Life]:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    environment = dict(os.environ)
    made = Life(tmp_path, monkeypatch)
    yield made
    current.set(None)
    for name, handler in before.items():
        signal.signal(name, handler)
    os.environ.clear()
    os.environ.update(environment)
    if made.registration is not None and not made.registration.reactor.is_closed:
        with made.registration.reactor.lock:
            made.registration.server.close()
        made.registration.reactor.close()


def test_a_worker_that_loses_its_store_ends_after_its_raylet_could_tell_of_that(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration.time, "sleep", life.steps.append)

    def lose_store() -> None:
        assert life.registration is not None
        with life.registration.reactor.lock:
            life.wire.end("unix:/store")

    with contextlib.suppress(Gone):
        life.live(lose_store)
    assert life.steps[:2] == [registration.RAYLET_ENDS_S, 1]


def test_a_worker_joins_runs_what_came_already_and_ends(life: Life) -> None:
    assert life.values(lambda: 1, lambda: 2) == [1, 2]
    assert life.steps == ["the end of a process", 0]
    asked = life.wire.last("RegisterClient", "unix:/raylet").request
    assert (asked.type, asked.startup_token, asked.worker_id) == (common_pb2.WORKER, 5, b"w" * 28)
    assert asked.board_fd > 0 and life.wire.last("NotifyLeaving", "unix:/raylet")


def test_a_worker_listens_to_signals_before_it_runs_anything(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed: list[Any] = []
    monkeypatch.setattr(
        worker.signal_handlers, "install", lambda reactor, interrupts: installed.append((reactor, interrupts))
    )
    caplog.set_level(logging.INFO)

    def look() -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        handlers = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]
        return [handler in (signal.default_int_handler, signal.SIG_DFL) for handler in handlers]

    assert life.values(look) == [[False, False]]
    assert life.registration is not None and installed == [(life.registration.reactor, False)]
    assert f'"worker_id": "{(b"w" * 28).hex()}"' in caplog.text


def test_a_worker_becomes_its_first_tasks_jobs_once(life: Life, capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> Any:
        core = current.require()
        return core.job_id, core.namespace, core.default_actor_lifetime, json.loads(core.runtime_env)

    life.job = {
        "default_actor_lifetime": "detached",
        "runtime_env": {"env_vars": {"A": "job", "B": "job"}, "pip": ["x"]},
    }
    own = json.dumps({"env_vars": {"B": "own"}, "working_dir": "/d"})
    merged = {"env_vars": {"A": "job", "B": "own"}, "pip": ["x"], "working_dir": "/d"}
    assert life.values(look, look, runtime_env=own) == [(JOB_ID, "the job's", "detached", merged)] * 2
    assert len(life.wire.all("GetJob")) == 1 and life.wire.last("GetJob").request.job_id == JOB_ID
    said = capsys.readouterr()
    assert said.out.count(f":job_id:{JOB_ID.hex()}\n") == said.err.count(f":job_id:{JOB_ID.hex()}\n") == 1


def test_a_job_that_the_gcs_does_not_tell_of_fails_the_task_and_the_next_one_asks_again(life: Life) -> None:
    answers = [life.wire.replies["GetJob"]]

    def refuse_once(request: Any) -> Any:
        if answers:
            life.wire.replies["GetJob"] = answers.pop()
            raise GONE
        raise AssertionError

    life.wire.replies["GetJob"] = refuse_once
    failed, fine = life.values(lambda: 1, lambda: 2)
    assert "it is gone" in str(failed) and fine == 2


def test_what_a_job_sets_is_set_before_its_first_task_and_its_own_variables_win(life: Life) -> None:
    os.environ["HERE"] = "node's"
    last = sys.path[0]
    num_before = sys.path.count(last)
    life.job = {
        "sys_path": ["/first", "/second"],
        "sys_path_last": ["/last", last],
        "env_vars": {"A": "job", "B": "job", "C": "${HERE}/${NOWHERE_AT_ALL}x"},
        "setup": ["tests.core_worker.process.worker_test:set_up"],
    }
    own = json.dumps({"env_vars": {"B": "own"}})

    def look() -> Any:
        return sys.path[:2], sys.path[-1], sys.path.count(last), [os.environ[name] for name in "ABC"]

    (told,) = life.values(look, runtime_env=own)
    assert told == (["/first", "/second"], "/last", num_before, ["job", "own", "node's/x"])
    assert SET_UP == [life.job]


SET_UP: list[Any] = []


def set_up(job_config: dict[str, Any]) -> None:
    SET_UP.append(job_config)


def test_what_every_worker_of_the_job_runs_is_learned_when_it_joins_and_published(life: Life) -> None:
    ran: list[str] = []
    CODE[b"early"] = lambda info: ran.append("early") or info["worker"]
    CODE[b"late"] = lambda info: ran.append("late")
    life.wire.replies["KvKeys"] = lambda request: gcs_pb2.KvKeysReply(keys=[request.prefix + b"early"])

    def publish() -> None:
        subscribed = life.wire.last("Subscribe")
        assert {(each.channel, *each.keys) for each in subscribed.request.channels} == {
            (gcs_pb2.RUN_ON_WORKERS, JOB_ID),
            (gcs_pb2.COLLECT_EVENTS, b"w" * 28),
        }
        ran.append("first task")
        subscribed.part(gcs_pb2.PubMessage(channel=gcs_pb2.RUN_ON_WORKERS, payload=JOB_ID + b"late"))

    life.live(publish, lambda: ran.append("second task"))
    assert ran == ["early", "first task", "late", "second task"]


def test_events_are_collected_when_the_gcs_asks(life: Life) -> None:
    def ask() -> None:
        life.wire.last("Subscribe").part(
            gcs_pb2.PubMessage(channel=gcs_pb2.COLLECT_EVENTS, payload=b"collection")
        )

    life.live(ask)
    assert life.wire.all("AddTaskEvents")[0].request.collection == b"collection"


def test_a_worker_that_cannot_join_says_so_and_ends(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(request: Any) -> Any:
        raise GONE

    life.wire.replies["RegisterClient"] = refuse
    life.live()
    assert life.steps == [1] and "could not join the cluster at unix:/raylet" in caplog.text
    assert not list((life.directory / "sockets").iterdir())


def test_a_worker_dies_with_its_raylet(life: Life) -> None:
    def lose() -> None:
        life.wire.channels["unix:/raylet"].close("killed")

    life.live(lose)
    assert life.steps[0] == 1


def test_a_terminals_ctrl_c_is_the_drivers_and_a_cancel_interrupts(life: Life) -> None:
    def stopped() -> None:
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=life.cancel, args=(current.require().context.task_id(),))
        thread.start()
        while True:
            time.sleep(0.01)

    (error,) = life.values(stopped)
    assert isinstance(error.cause, TaskCancelledError) and "in stopped" in str(error)


def test_a_sigterm_ends_a_task_without_an_answer_and_the_worker_by_that_signal(life: Life) -> None:
    def struck() -> None:
        signal.raise_signal(signal.SIGTERM)

    first, waits = life.live(struck, lambda: 1)
    assert not first.replies and waits.answer.status == core_worker_pb2.PushTaskReply.NOT_STARTED
    assert life.steps == ["the end of a process", -signal.SIGTERM]
    assert not life.wire.all("NotifyLeaving")


def test_a_worker_that_a_debugger_asks_writes_its_state(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    life.live(lambda: signal.raise_signal(signal.SIGUSR1))
    assert f'"worker_id": "{(b"w" * 28).hex()}"' in caplog.text


def test_a_worker_is_started_by_hand_with_what_its_command_line_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs: list[WorkerConfig] = []
    titles: list[str] = []
    monkeypatch.setattr(worker, "run_worker", configs.append)
    monkeypatch.setattr("setproctitle.setproctitle", titles.append)
    given = {
        "--raylet-socket": "/raylet", "--gcs-address": "host:1", "--session-dir": "/session",
        "--node-host": "10.0.0.7", "--log-level": "error",
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["worker", *(each for pair in given.items() for each in pair)])
    worker.main()
    (config,) = configs
    assert len(config.worker_id) == 28 and titles == ["ray_mono::IDLE"]
    assert config == WorkerConfig(
        "/raylet", "host:1", "/session", config.worker_id, log_level="error", node_host="10.0.0.7"
    )
    assert config.startup_token == 0, "nobody ordered it"


def test_a_function_is_named_by_module_and_name() -> None:
    assert load_function("tests.core_worker.process.worker_test:set_up").__name__ == "set_up"
    with pytest.raises(AttributeError):
        load_function("os:no_such_function")

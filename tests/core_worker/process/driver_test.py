"""A driver on its way into a cluster that is going."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.core_worker.process import driver, registration
from ray_mono.core_worker.process.driver import DriverConfig, connect_driver
from ray_mono.core_worker.task_submission.function_manager import FunctionManager
from ray_mono.protobuf import common_pb2, gcs_pb2, raylet_pb2


class Gone:
    """A connection that ended after the answer, before anybody listened."""

    is_closed = False

    def on_close(self, told: Any) -> None:
        told("it was killed")


class CutOff(registration.Registration):
    """Whoever it talks to goes at once."""

    made: list[CutOff] = []

    def channel(self, address: str, peer_name: str) -> Any:
        self.made.append(self)
        return Gone()

    def close(self) -> None:
        with self.reactor.lock:
            self.server.close()
        self.reactor.close()


def test_a_raylet_that_goes_while_a_driver_joins_is_told_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sockets").mkdir()
    core = SimpleNamespace(
        is_leaving=False,
        reactor=SimpleNamespace(is_closed=False),
        session_dir=str(tmp_path),
        tasks=SimpleNamespace(pending={}),
        on_shutdown=[],
    )
    raylet = SimpleNamespace(RegisterClient=lambda request, timeout_s: raylet_pb2.RegisterClientReply())
    quiet = SimpleNamespace(subscribe=lambda: None, flush=None, stop=None)
    for module, name, stand_in in (
        (driver, "Registration", CutOff),
        (registration, "RayletServiceStub", lambda channel: raylet),
        (registration, "CoreWorker", lambda **_: core),
        (driver, "DriverMessages", lambda *_: quiet),
        (driver, "_add_job", lambda *_: b"job"),
        (driver.signal_handlers, "install", lambda reactor, interrupts: lambda: None),
    ):
        monkeypatch.setattr(module, name, stand_in)
    try:
        joined = connect_driver(DriverConfig("/none", "unix:/none", str(tmp_path), secret=""))
        assert joined is core  # type: ignore[comparison-overlap]
        assert "The node's raylet is gone (it was killed)" in caplog.text
    finally:
        CutOff.made.pop().close()
        CutOff.made.clear()


def test_a_command_line_with_a_files_name_that_is_not_utf8_joins() -> None:
    jobs: list[common_pb2.JobInfo] = []

    def add_job(request: gcs_pb2.AddJobRequest, timeout_s: float) -> gcs_pb2.AddJobReply:
        jobs.append(request.job)
        return gcs_pb2.AddJobReply(job_id=b"job")

    config = DriverConfig("/none", "unix:/none", "/none", secret="", entrypoint="prog.py caf\udce9.txt")
    member: Any = SimpleNamespace(address=common_pb2.Address())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "GcsServiceStub", lambda channel: SimpleNamespace(AddJob=add_job))
        assert driver._add_job(config, member, None) == b"job"  # type: ignore[arg-type]
    assert jobs[0].entrypoint == "prog.py caf\\udce9.txt"


def test_a_function_of_a_script_whose_files_name_is_not_utf8_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def function() -> None: ...

    function.__module__, function.__qualname__ = "__main__", "caf\udce9"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/caf\udce9.py", raising=False)
    gcs = SimpleNamespace(KvPut=lambda request, timeout_s: None)
    core: Any = SimpleNamespace(job_id=b"job", gcs=gcs)
    told = FunctionManager(core).export(function, "function").descriptor.python
    assert (told.module_name, told.function_name) == ("caf\\udce9", "caf\\udce9")

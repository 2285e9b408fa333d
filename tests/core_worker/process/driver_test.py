"""A driver on its way into a cluster, and out of it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_mono.common.exceptions import LocalRayletDiedError, RaySystemError
from ray_mono.core_worker.core_worker import CoreWorker
from ray_mono.core_worker.process import driver, registration
from ray_mono.core_worker.process.driver import DriverConfig, connect_driver
from ray_mono.protobuf import common_pb2, gcs_pb2, object_manager_pb2, raylet_pb2
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.core_worker.scene import NODE_ID, Scene, SceneChannel, Wire, tells_of_first_head

GONE = RpcError(StatusCode.INTERNAL, "it is gone")


class Cluster:
    """What a driver talks to, over a scene's wire, and the drivers that joined it."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "sockets").mkdir()
        self.directory = directory
        self.wire = wire = Wire()
        self.registrations: list[registration.Registration] = []
        self.raylet_closes: list[str] = []
        node = common_pb2.NodeInfo(node_id=NODE_ID, host="here", store_socket="/store")
        wire.replies.update(
            AddJob=lambda request: gcs_pb2.AddJobReply(job_id=b"job1"),
            RegisterClient=lambda request: raylet_pb2.RegisterClientReply(node=node),
            ConnectClient=lambda request: object_manager_pb2.ConnectClientReply(node_id=NODE_ID),
            MarkJobFinished=lambda request: common_pb2.Empty(),
        )
        wire.heard = tells_of_first_head
        cluster = self

        class Joining(registration.Registration):
            def channel(self, address: str, peer_name: str = "") -> Any:
                cluster.registrations.append(self)
                return wire.connect(address)

        monkeypatch.setattr(driver, "Registration", Joining)
        monkeypatch.setattr(driver.signal_handlers, "install", lambda reactor, interrupts: lambda: None)

    def join(self, **more: Any) -> CoreWorker:
        return connect_driver(DriverConfig("/raylet", "unix:/gcs", str(self.directory), secret="", **more))

    def said(self) -> list[str]:
        return [each.method for each in self.wire.said if each.method != "AwaitHead"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path, monkeypatch)
    yield made
    for each in made.registrations:
        with each.reactor.lock:
            each.server.close()
        each.reactor.close()


def test_a_driver_adds_its_job_then_registers_then_takes_its_store(cluster: Cluster) -> None:
    core = cluster.join(namespace="mine", default_actor_lifetime="detached", runtime_env='{"a": 1}')
    assert cluster.said()[:3] == ["AddJob", "RegisterClient", "ConnectClient"]
    asked = cluster.wire.last("RegisterClient", "unix:/raylet").request
    assert (asked.type, asked.job_id) == (common_pb2.DRIVER, b"job1")
    assert asked.address.unix_path.startswith(str(cluster.directory)) and asked.address.port
    assert cluster.wire.last("ConnectClient", "unix:/store")
    assert (core.job_id, core.namespace, core.default_actor_lifetime) == (b"job1", "mine", "detached")
    assert core.runtime_env == '{"a": 1}' and core.is_driver and core.node_host == "here"
    core.shutdown()


def test_its_peers_know_its_whole_address(cluster: Cluster) -> None:
    core = cluster.join()
    registered = cluster.wire.last("RegisterClient").request.address
    registered.node_id = NODE_ID
    assert core.env.address == registered
    core.shutdown()


def test_a_driver_that_leaves_finishes_its_job(cluster: Cluster) -> None:
    core = cluster.join()
    core.shutdown()
    assert cluster.wire.last("MarkJobFinished").request.job_id == b"job1"
    assert all(channel.is_closed for channel in cluster.wire.channels.values())


def test_an_interrupt_is_the_reactors_until_the_driver_has_left(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def install(reactor: Any, interrupts: bool) -> Callable[[], None]:
        seen.append((reactor, interrupts))
        return lambda: seen.append("as before")

    monkeypatch.setattr(driver.signal_handlers, "install", install)
    core = cluster.join()
    assert seen == [(core.env.reactor, True)]
    core.shutdown()
    assert seen[1:] == ["as before"]


def test_a_gcs_that_does_not_hear_of_the_jobs_end_holds_up_nothing(cluster: Cluster) -> None:
    def refuse(request: Any) -> Any:
        raise GONE

    cluster.wire.replies["MarkJobFinished"] = refuse
    cluster.join().shutdown()


@pytest.mark.parametrize(
    ("method", "told"),
    [("AddJob", "the cluster at unix:/gcs did not take this driver"), ("RegisterClient", "could not join")],
)
def test_who_does_not_answer_is_told_and_what_listened_is_closed(
    cluster: Cluster, method: str, told: str
) -> None:
    def refuse(request: Any) -> Any:
        raise GONE

    cluster.wire.replies[method] = refuse
    with pytest.raises(RaySystemError, match=told) as caught:
        cluster.join()
    assert "it is gone" in str(caught.value)
    assert cluster.registrations[0].reactor.is_closed
    assert not list((cluster.directory / "sockets").iterdir())


def test_a_raylet_that_goes_while_a_driver_joins_is_told_to_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended after the answer, before anybody listened."""
    plain = SceneChannel.on_close

    def on_close(channel: SceneChannel, told: Callable[[str], None]) -> None:
        plain(channel, told)
        if channel.address == "unix:/raylet":
            told("it was killed")

    monkeypatch.setattr(SceneChannel, "on_close", on_close)
    core = cluster.join()
    assert (
        "The node's raylet is gone (it was killed)" in caplog.text and str(cluster.directory) in caplog.text
    )
    core.shutdown()


def test_what_waits_fails_when_the_raylet_goes(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    core = cluster.join()
    ref = Scene.submit(as_scene(core))
    with core.env.lock:
        cluster.wire.channels["unix:/raylet"].close("it was killed")
    with pytest.raises(LocalRayletDiedError, match=rf"\(it was killed\).*{cluster.directory}"):
        core.get([ref], 10)
    core.shutdown()


def test_what_waits_is_told_why_the_node_ended_where_that_is_known(cluster: Cluster) -> None:
    core = cluster.join(why_node_ended=lambda: "raylet (7) ended: killed by SIGKILL")
    ref = Scene.submit(as_scene(core))
    with core.env.lock:
        cluster.wire.channels["unix:/raylet"].close("it ended the connection")
    with pytest.raises(LocalRayletDiedError, match="killed by SIGKILL"):
        core.get([ref], 10)
    later = Scene.submit(as_scene(core))
    with pytest.raises(LocalRayletDiedError, match="nothing can run any more"):
        core.get([later], 10)
    core.shutdown()


def as_scene(core: CoreWorker) -> Any:
    scene = Scene()
    scene.core = core
    return scene


def test_a_driver_that_leaves_is_not_told_that_its_raylet_goes(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cluster.join().shutdown()
    assert "raylet is gone" not in caplog.text


def test_a_command_line_with_a_files_name_that_is_not_utf8_joins(cluster: Cluster) -> None:
    cluster.join(entrypoint="prog.py caf\udce9.txt", job_config={"sys_path": ["/a"]}).shutdown()
    job = cluster.wire.last("AddJob").request.job
    assert (job.entrypoint, json.loads(job.config_json)["sys_path"]) == ("prog.py caf\\udce9.txt", ["/a"])


def test_a_function_of_a_script_whose_files_name_is_not_utf8_is_exported(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function() -> None: ...

    function.__module__, function.__qualname__ = "__main__", "caf\udce9"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/caf\udce9.py", raising=False)
    cluster.wire.replies["KvPut"] = lambda request: gcs_pb2.KvPutReply()
    core = cluster.join()
    told = core.export(function, "function").descriptor.python
    assert (told.module_name, told.function_name) == ("caf\\udce9", "caf\\udce9")
    # The workers of the job are told, too.
    config = json.loads(cluster.wire.last("AddJob").request.job.config_json)
    assert config["script"] == "caf\udce9"
    core.shutdown()

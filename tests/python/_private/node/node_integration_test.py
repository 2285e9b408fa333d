"""Whole nodes of real services, by the launcher and the command line, until nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ray_mono._private.node.bootstrap import find_cluster
from ray_mono._private.node.local_node import find_local_node, get_cluster_info
from ray_mono._private.node.node import Node
from ray_mono._private.node.parameter import RayParams
from ray_mono._private.node.reaper_client import ServiceStartError
from ray_mono.rpc.framed import FramedTransport
from ray_mono.rpc.surface import RpcError, StatusCode
from tests.gcs.redis_servers import RedisProcess
from tests.python._private.node.stand_in import reaper_environment, wait_until_gone

STORE_BYTES = 32 << 20
COMMAND_TIMEOUT_S = 90.0


def small(**more: object) -> RayParams:
    params = RayParams(num_cpus=1, num_prestart_workers=0, object_store_memory=STORE_BYTES)
    params.update(**more)
    return params


def ray_mono(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray_mono.scripts", *arguments]


def run(*arguments: str, status: int = 0) -> str:
    """What the command printed, after it ended with `status`."""
    done = subprocess.run(
        ray_mono(*arguments),
        env=reaper_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def start_head(*more: str) -> str:
    """Starts a cluster on loopback; returns its address."""
    shown = run(
        *("start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=1"),
        *(f"--object-store-memory={STORE_BYTES}", *more),
    )
    match = re.search(r"A cluster runs at (\S+) ", shown)
    assert match, shown
    return match[1]


def test_a_head_runs_until_its_node_is_told_to_end(session_base: Path) -> None:
    node = Node(small(resources={"A": 2}), head=True)
    info = node.address_info
    assert info["gcs_address"].startswith("127.0.0.1:")
    assert Path(info["raylet_socket_name"]) == Path(info["session_dir"], "sockets", "raylet")
    assert info["node_id"] == node.node_id
    assert get_cluster_info(node.gcs_address, node.secret).session_dir == node.session_dir
    row = find_local_node(node.gcs_address, node.secret)
    assert row.node_id.hex() == node.node_id and row.total.amounts["A"] == 20000
    assert row.object_manager_port and row.node_manager_port

    driver = Node(RayParams(gcs_address=node.gcs_address), connect_only=True, session_dir=node.session_dir)
    assert driver.address_info == node.address_info
    driver.kill_all_processes()
    assert node.dead_processes() == []

    node.kill_all_processes()
    with pytest.raises(ConnectionError):
        get_cluster_info(node.gcs_address, node.secret, timeout_s=5)
    # Nothing of a cluster of init()'s is found by those that look for one of start's.
    assert find_cluster(None) is None


def test_the_node_ends_with_any_of_its_services(session_base: Path) -> None:
    node = Node(small(), head=True)
    assert node.record is not None
    os.kill(node.record.services["raylet"]["pid"], signal.SIGKILL)
    assert node.until_ended(COMMAND_TIMEOUT_S)
    (how,) = [line for line in node.dead_processes() if line.startswith("raylet")]
    assert "killed by SIGKILL" in how
    node.kill_all_processes()


def test_a_service_that_does_not_start_is_told_with_its_log(session_base: Path) -> None:
    with pytest.raises(ServiceStartError, match=r"(?s)gcs_server ended.*no setting 'nonsense'.*logs are in"):
        Node(small(system_config={"gcs": {"nonsense": 1}}), head=True)


def test_no_listening_socket_lets_a_stranger_in(session_base: Path) -> None:
    async def is_refused(address: str, secret: str) -> bool:
        try:
            (await FramedTransport(secret).connect(address, 10.0)).close()
        except RpcError as error:
            return error.code is StatusCode.UNAUTHENTICATED
        return False

    node = Node(small(), head=True)
    addresses = []
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                addresses.append(f"{connection.laddr.ip}:{connection.laddr.port}")
    assert len(addresses) >= 3
    for address in addresses:
        for secret in ("", "wrong"):
            assert asyncio.run(is_refused(address, secret)), f"{address} let {secret!r} in"
    node.kill_all_processes()


def test_objects_are_spilled_where_the_command_line_says_and_stop_leaves_nothing(
    session_base: Path, tmp_path: Path
) -> None:
    start_head(f"--object-spilling-directory={tmp_path}/spilled")
    (directory,) = (tmp_path / "spilled").iterdir()
    assert directory.name.startswith("ray_spilled_objects_")
    run("stop")
    assert not directory.exists()


def test_a_cluster_of_the_command_line_from_start_to_stop(session_base: Path) -> None:
    address = start_head('--resources={"A": 1}')
    assert "Nodes: 1 alive" in run("status")
    run("healthcheck")
    run("healthcheck", f"--address={address}")
    refused = run("status", f"--address={address}", "--redis-password=wrong", status=1)
    assert "another secret" in refused

    run("start", f"--address={address}", "--num-cpus=2", f"--object-store-memory={STORE_BYTES}")
    shown = run("status", f"--address=localhost:{address.rpartition(':')[2]}")
    assert "Nodes: 2 alive" in shown
    assert "0 of 3 CPU" in shown
    assert len(list(session_base.glob("session_*"))) == 1

    assert "Stopped 2 nodes" in run("stop")
    assert "no cluster of this user's" in run("status", status=1)
    assert "Nothing runs" in run("stop")


def test_a_cluster_on_its_own_redis(session_base: Path) -> None:
    start_head("--redis-embedded")
    run("healthcheck")
    run("stop")


@pytest.mark.parametrize("where", ["option", "variable"])
def test_a_cluster_on_a_redis_of_its_user_keeps_the_password_off_the_command_lines(
    session_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    users = ["user default off", "user me on >the-password ~ray_mono:* +@all"]
    options = {"username": "me", "password": "the-password"}
    server = RedisProcess(str(tmp_path / "redis"), users, client_options=options)
    server.start()
    try:
        address = f"redis://:the-password@{server.address}/0"
        if where == "variable":
            monkeypatch.setenv("RAY_MONO_REDIS_ADDRESS", address)
        more = ["--redis-username=me", "--redis-namespace=mine"]
        start_head(*more, *([f"--redis-address={address}"] if where == "option" else []))
        shown = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"])]
        run("healthcheck")
        run("stop")
        assert "the-password" not in str(shown)
        assert server.ask("HGET", "ray_mono:{mine}:head", "released") == b"1"
    finally:
        server.kill()


def test_a_port_in_use_is_an_error_that_says_what_to_do(session_base: Path) -> None:
    port = start_head().rpartition(":")[2]
    shown = run("start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", status=1)
    assert f"port {port} of 127.0.0.1 is in use by process" in shown
    assert "--port" in shown
    run("stop")


def start_blocked() -> tuple[subprocess.Popen[str], dict[str, int]]:
    """A `start --head --block`, and the pids of its services."""
    arguments = ("--port=0", "--node-ip-address=127.0.0.1", f"--object-store-memory={STORE_BYTES}", "--block")
    starter = subprocess.Popen(
        ray_mono("start", "--head", *arguments),
        env=reaper_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    for line in starter.stdout:
        if "Ctrl-C ends the node" in line:
            break
    below = psutil.Process(starter.pid).children(recursive=True)
    return starter, {str(process): process.pid for process in below}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_blocked_start_takes_everything_with_it(session_base: Path, signal_number: signal.Signals) -> None:
    starter, pids = start_blocked()
    assert len(pids) >= 4
    with starter:
        os.killpg(starter.pid, signal_number)
        status = starter.wait(COMMAND_TIMEOUT_S)
    assert status == (-signal.SIGKILL if signal_number == signal.SIGKILL else 0)
    for pid in pids.values():
        wait_until_gone(pid)

"""The secret of a cluster: where it lies and where not, what those are told who do not have it, and a cluster
without one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.rpc.auth import HOW_TO_PASS
from tests.integration.clusters import CommandLineCluster, run_command, run_python
from tests.integration.listeners import session_processes
from tests.integration.titles import title_of
from tests.other_user import OTHER_UID, needs_another_user, run_as_other


@pytest.fixture(scope="module")
def cluster(shared_base: Path) -> Iterator[CommandLineCluster]:
    """Two nodes, on which something has run."""
    cluster = CommandLineCluster(shared_base, num_cpus=1)
    try:
        cluster.add_node(num_cpus=1, resources={"there": 1})
        program = PROGRAM.format(arguments=f"{cluster.address!r}")
        assert run_python("-c", program).out == "works\n"
        yield cluster
    finally:
        cluster.stop()


PROGRAM = """
import ray_mono
ray_mono.init({arguments})
print(ray_mono.get(ray_mono.remote(lambda: "works").remote(), timeout=60))
"""


# ---------------------------------------------------------------- files and command lines


def test_files_of_the_session_are_their_users_alone(cluster: CommandLineCluster, shared_base: Path) -> None:
    assert stat.S_IMODE(os.stat(cluster.session_dir).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(cluster.session_dir / "auth_token").st_mode) == 0o600
    for record in (cluster.session_dir / "nodes").iterdir():
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert stat.S_IMODE(os.stat(cluster.head.store_file).st_mode) == 0o600
    assert len(cluster.secret) >= 32


def test_the_secret_stands_in_no_command_line_and_in_no_log(
    cluster: CommandLineCluster, shared_base: Path
) -> None:
    secret = cluster.secret.encode()
    for process in session_processes(shared_base):
        assert cluster.secret not in title_of(process), process
    files = [path for path in cluster.session_dir.rglob("*") if path.is_file() and path.name != "auth_token"]
    assert len(files) > 8
    for path in files:
        assert secret not in path.read_bytes(), path


# ---------------------------------------------------------------- what users see


def test_commands_and_drivers_with_another_secret_are_told_what_to_do(cluster: CommandLineCluster) -> None:
    address = f"--address={cluster.address}"
    for command in (["start", address], ["status", address], ["healthcheck", address]):
        done = run_command(*command, "--redis-password=wrong")
        assert done.status == 1 and HOW_TO_PASS in done.error, done
        assert "Traceback" not in done.error
    program = f"import ray_mono; ray_mono.init({cluster.address!r}, _redis_password='wrong')"
    done = run_python("-c", program)
    assert done.status == 1 and HOW_TO_PASS in done.error, done.error
    # With nothing said, a driver of the same user finds the session's.
    program = f"import ray_mono; print(len(ray_mono.init({cluster.address!r})['node_id']))"
    assert run_python("-c", program).out == "56\n"


@needs_another_user
def test_a_cluster_is_not_started_where_another_user_could_replace_its_files(session_base: Path) -> None:
    his = f"{session_base}/his"
    session_base.chmod(0o1777)
    run_as_other("import os, sys; os.mkdir(sys.argv[1]); os.chmod(sys.argv[1], 0o1777)", his)
    for arguments in (["start", "--head", "--port=0", "--temp-dir", his], ["stop", "--temp-dir", his]):
        done = run_command(*arguments)
        assert done.status == 1 and f"{his} belongs to user id {OTHER_UID}" in done.error, done
        assert "Traceback" not in done.error
    program = PROGRAM.format(arguments=f"address='local', num_cpus=1, _temp_dir={his!r}")
    done = run_python("-c", program)
    assert done.status == 1 and f"{his} belongs to user id {OTHER_UID}" in done.error, done.error
    assert os.listdir(his) == []


def test_an_empty_password_is_announced_and_works(session_base: Path) -> None:
    done = run_command(
        "start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--redis-password=", "--num-cpus=1"
    )
    assert done.status == 0 and "no authentication" in done.error, done
    try:
        program = PROGRAM.format(arguments="address='auto'")
        done = run_python("-c", program)
        assert done.out == "works\n", done.error
    finally:
        run_command("stop")
    done = run_python("-c", PROGRAM.format(arguments="address='local', num_cpus=1, _redis_password=''"))
    assert done.out == "works\n" and "no authentication" in done.error, done.error


def test_a_cluster_of_a_driver_listens_on_loopback_only(session_base: Path) -> None:
    program = """
import sys
import ray_mono
from pathlib import Path
from tests.integration.listeners import tcp_listeners
ray_mono.init(address="local", num_cpus=1)
assert ray_mono.get(ray_mono.remote(lambda: 1).remote(), timeout=60) == 1
print(*{listener.host for listener in tcp_listeners(Path(sys.argv[1]))})
"""
    done = run_python("-c", program, str(session_base))
    assert done.out == "127.0.0.1\n", done.error

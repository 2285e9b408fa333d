"""The command line before anything is started: what it accepts, and how it says no."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ray_mono
from ray_mono._private.compat import ray_command
from ray_mono._private.node import session
from ray_mono._private.node.process_identity import ProcessIdentity
from ray_mono._private.node.session import NodePaths, NodeRecord
from ray_mono.protobuf import common_pb2, gcs_pb2
from ray_mono.scripts.scripts import cli
from ray_mono.scripts.status import Snapshot, render
from tests.python._private.node import stand_in


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize("command", ["start", "stop", "status", "healthcheck"])
def test_every_command_has_help(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "--address" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start"], "give --head"),
        (["start", "--head", "--address=h:1"], "give one of them"),
        (["start", "--head", "--port=x"], "Invalid value for '--port': 'x'"),
        (["start", "--head", "--port=70000"], "Invalid value for '--port': 70000"),
        (["start", "--head", "--num-cpus=-1"], "Invalid value for '--num-cpus'"),
        (["start", "--head", "--system-config=[1]"], "'[1]' is no JSON object; accepted is"),
        (["start", "--address=a:1", "--system-config={}"], "--system-config belongs to --head"),
        (["start", "--head", "--resources=A=1"], "Invalid value for '--resources': 'A=1' is not JSON"),
        (["start", "--head", "--resources=[1]"], "accepted is an object of whole numbers"),
        (["start", "--head", '--resources={"A": 1.5}'], "must be a whole number of at least 0, got 1.5"),
        (["start", "--head", '--resources={"CPU": 1}'], "use num_cpus instead"),
        (["start", "--head", "--num-cpus=1.5"], "Invalid value for '--num-cpus': '1.5'"),
        (["start", "--head", "--labels={"], "Invalid value for '--labels'"),
        (["start", "--head", "--labels=a=b,"], "'a=b,' does not read as labels"),
        (["start", "--head", f"--labels-file={os.devnull}"], "must be a dict from strings to strings, got"),
        (
            ["start", "--head", "--dashboard-port=8265"],
            "--dashboard-port 8265: the dashboard is not part of this version",
        ),
        (
            ["start", "--head", "--dashboard-host=h"],
            "--dashboard-host h: the dashboard is not part of this version",
        ),
        (
            ["start", "--head", "--ray-client-server-port=1"],
            "the client server (ray://) is not part of this version",
        ),
        (["start", "--head", "--include-dashboard=true"], "--include-dashboard true"),
        (["start", "--address=h:1", "--port=1"], "--port belongs to --head"),
        (["start", "--address=h:1", "--redis-embedded"], "--redis-embedded belongs to --head"),
        (["start", "--address=local"], "names no cluster to join"),
        (["stop", "--grace-period=-1"], "Invalid value for '--grace-period'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    session_base: Path, arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start", "--address=nonsense"], "address must be host:port"),
        (["start", "--address=auto"], "no cluster of this user's runs on this machine"),
        (["start", "--address=127.0.0.1:1", "--redis-password=x"], "no cluster answers at 127.0.0.1:1"),
        (["start", "--address=127.0.0.1:1"], "no cluster answers at 127.0.0.1:1: nothing listens there"),
        (["start", "--head", "--node-ip-address=192.0.2.1"], "cannot use port 6379 of 192.0.2.1"),
        (["status"], "no cluster of this user's runs on this machine"),
        (["healthcheck", "--address=127.0.0.1:1", "--redis-password=x"], "no cluster answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_done_is_one_message(session_base: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_stop_with_nothing_to_stop_is_content(session_base: Path) -> None:
    done = run("stop")
    assert (done.exit_code, done.output) == (0, "Nothing runs.\n")


# Has a command line's program show what others see of it.
SHOWN = """
from ray_mono.scripts import scripts
scripts.cli.main = lambda *, prog_name: print(open("/proc/self/cmdline").read().replace(chr(0), " "))
"""
# Of Ray's name: what programs under compat start.
PROGRAMS = {"ray-mono": "scripts.main()", "ray": ray_command.program("2.60.0")}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_password_on_the_command_line_is_hidden_before_anything_else_is_done(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOWN + PROGRAMS[program], "start", "--block", "--redis-password", "hunter2"],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "start --block --redis-password *******" in done.stdout and "hunter2" not in done.stdout


def make_node(base: Path, reaper: ProcessIdentity) -> tuple[NodePaths, NodeRecord]:
    paths = NodePaths(session.create_session(base), "ab" * 28, True)
    owned = paths.session.sockets / "raylet"
    owned.touch()
    record = NodeRecord(
        node_id=paths.node_id,
        is_head=True,
        session_dir=str(paths.session.path),
        node_ip_address="127.0.0.1",
        gcs_address="127.0.0.1:7000",
        raylet_socket=str(owned),
        store_socket="",
        store_file=paths.store_file,
        reaper_pid=reaper.pid,
        reaper_start_ticks=reaper.start_ticks,
        owned_files=[
            *(str(owned), str(paths.record), "/etc/hostname", f"{paths.session.path}/../outside"),
            str(base / f"ray_spilled_objects_{paths.node_id}"),
            str(base / "ray_spilled_objects_of_another"),
        ],
    )
    record.write(paths.record)
    return paths, record


def test_stop_ends_what_the_record_names_and_nothing_else(session_base: Path) -> None:
    program = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(program) as meant, subprocess.Popen(program) as reused:
        identities = [ProcessIdentity.of(process.pid) for process in (meant, reused)]
        assert identities[0] is not None and identities[1] is not None
        make_node(session_base, identities[0])
        # The pid of a reaper that has ended, given to another process since.
        make_node(session_base, ProcessIdentity(reused.pid, identities[1].start_ticks - 1))
        done = run("stop", "--grace-period=20")
        assert (done.exit_code, done.output) == (0, "Stopped 1 node.\n")
        assert meant.wait() == -signal.SIGTERM
        assert reused.poll() is None
        reused.kill()


def test_stop_removes_what_a_killed_reaper_left_and_only_that(session_base: Path) -> None:
    outside = session_base / "outside"
    outside.touch()
    paths, record = make_node(session_base, ProcessIdentity(os.getpid(), 1))
    spilled, others = [Path(name) for name in record.owned_files[-2:]]
    for directory in (spilled, others):
        directory.mkdir()
        (directory / "0").touch()
    done = run("stop")
    assert (done.exit_code, done.output) == (0, "Nothing runs.\n")
    assert not spilled.exists() and (others / "0").exists()
    assert not Path(record.raylet_socket).exists()
    assert not paths.record.exists()
    assert outside.exists()


@pytest.mark.parametrize("arguments", [[], ["--force"]])
def test_stop_ends_a_node_whose_reaper_was_suspended(session_base: Path, arguments: list[str]) -> None:
    reaper = stand_in.launch(session_base)
    reaper.start(stand_in.spec("service", stand_in.SERVE, session_base))
    reaper.wait_ready("service", stand_in.READY_TIMEOUT_S)
    make_node(session_base, reaper.identity)
    os.kill(reaper.identity.pid, signal.SIGSTOP)
    assert run("stop", *arguments).exit_code == 0
    assert ProcessIdentity.of(reaper.identity.pid) is None
    reaper.shutdown()


def test_status_shows_what_there_is_and_what_is_missing() -> None:
    node = common_pb2.NodeInfo(node_id=b"a" * 28, host="10.0.0.1", node_manager_port=5, is_head=True)
    dead = common_pb2.NodeInfo(
        node_id=b"b" * 28, state=common_pb2.NODE_DEAD, death_cause=common_pb2.DeathCause(message="unplugged")
    )
    total, free = (
        {"CPU": 40000, "memory": 10000 << 30, "node:10.0.0.1": 10000},
        {"CPU": 10000, "memory": 10000 << 30},
    )
    resources = common_pb2.NodeResources(
        node_id=node.node_id,
        total=common_pb2.ResourceSet(amounts=total),
        available=common_pb2.ResourceSet(amounts=free),
        queued=[common_pb2.ResourceDemand(resources=common_pb2.ResourceSet(amounts={"GPU": 10000}), count=3)],
    )
    actors = [
        common_pb2.ActorInfo(state=common_pb2.ALIVE),
        common_pb2.ActorInfo(
            state=common_pb2.PENDING_CREATION, class_name="Big", pending_reason="no node has 9 CPU"
        ),
    ]
    info = gcs_pb2.ClusterInfo(
        host="10.0.0.1", port=6379, version="1", python_version="3.11.2", start_time_s=100
    )
    text = render(Snapshot(info, [node, dead], [resources], actors, [common_pb2.JobInfo()]), now_s=160)
    for part in (
        "Cluster at 10.0.0.1:6379, up 60 s",
        "Nodes: 1 alive, 1 dead",
        "10.0.0.1:5  CPU 3/4  head",
        "dead: unplugged",
        "3 of 4 CPU",
        "0.00 GiB of 1.00 GiB memory",
        "3 × {GPU: 1}",
        "Actors: 1 alive, 1 pending creation",
        "Big waits: no node has 9 CPU",
        "Jobs: 1 running, 0 finished",
    ):
        assert part in text, text
    assert "node:10.0.0.1" not in text


def test_status_shows_which_nodes_are_drained_and_until_when() -> None:
    drains = [
        common_pb2.NodeDrain(
            reason=common_pb2.DRAIN_NODE_REASON_PREEMPTION,
            reason_message="spot",
            deadline_timestamp_ms=190_000,
        ),
        common_pb2.NodeDrain(reason=common_pb2.DRAIN_NODE_REASON_IDLE_TERMINATION, reason_message="unused"),
    ]
    nodes = [
        common_pb2.NodeInfo(node_id=bytes([number]) * 28, drain=drain) for number, drain in enumerate(drains)
    ]
    text = render(Snapshot(gcs_pb2.ClusterInfo(), nodes, [], [], []), now_s=160)
    assert "draining: PREEMPTION, spot (ends in 30 s)" in text
    assert "draining: IDLE_TERMINATION, unused (no deadline)" in text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--reason=BORED", "--reason-message=-"], "'BORED' is not one of"),
        (["--reason=DRAIN_NODE_REASON_PREEMPTION"], "--reason-message"),
        (
            [
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message=-",
                "--deadline-remaining-seconds=-1",
            ],
            "must be at least 0",
        ),
    ],
)
def test_drain_node_says_what_is_wrong_with_its_options(options: list[str], named: str) -> None:
    done = run("drain-node", *options)
    assert done.exit_code == 2 and named in done.output


def test_a_checkout_without_generated_code_says_in_one_line_what_to_run(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(ray_mono.__file__).parent, tmp_path / "python" / "ray_mono", ignore=ignore)
    shutil.copytree(Path(ray_mono.__path__[-1], "common"), tmp_path / "src" / "common", ignore=ignore)
    paths = [str(tmp_path / "python"), *(path for path in sys.path if "site-packages" in path)]
    done = subprocess.run(
        # -S: an editable install of another checkout would lend its generated code.
        [sys.executable, "-S", "-m", "ray_mono.scripts", "start", "--head"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install -e ." in line and "./bazelw run //:ray_mono" in line

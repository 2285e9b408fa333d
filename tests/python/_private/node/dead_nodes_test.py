"""What a node has left whose reaper was killed goes with the start of the next one; all else stays."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from pathlib import Path

import psutil

from ray_mono._private.node.dead_nodes import remove_dead_nodes, remove_left_store_files
from ray_mono._private.node.session import NodeRecord, create_session
from tests.integration.clusters import CommandLineCluster, processes_of_node, runs
from tests.waiting import wait_until

DEAD_TICKS = 1
"""This process was not the first of the machine."""


def write_record(base: Path, raylet_socket: str = "") -> tuple[Path, Path]:
    """Of a node whose reaper is gone. Returns a file of its own, and the record."""
    session = create_session(base)
    owned, path = session.path / "owned", session.nodes / "node.json"
    owned.touch()
    NodeRecord(
        node_id="ab" * 28,
        is_head=False,
        session_dir=str(session.path),
        node_ip_address="127.0.0.1",
        gcs_address="127.0.0.1:7000",
        raylet_socket=raylet_socket or str(session.sockets / "raylet"),
        store_socket="",
        store_file="",
        reaper_pid=os.getpid(),
        reaper_start_ticks=DEAD_TICKS,
        owned_files=[str(owned), str(path)],
    ).write(path)
    remove_dead_nodes([session])
    return owned, path


def test_what_a_dead_node_left_goes(session_base: Path) -> None:
    owned, record = write_record(session_base)
    assert not owned.exists() and not record.exists()


def test_a_node_of_another_container_keeps_what_it_has(session_base: Path) -> None:
    """Its processes cannot be seen from here, but it listens."""
    path = session_base / "raylet"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        owned, record = write_record(session_base, str(path))
    path.unlink()
    assert owned.exists() and record.exists()


def test_a_record_that_cannot_be_read_stops_nothing(session_base: Path) -> None:
    session = create_session(session_base)
    record = session.nodes / "node.json"
    record.write_text("{")
    remove_dead_nodes([session])
    assert record.exists()


def test_the_next_start_removes_what_is_left_of_a_node_whose_reaper_was_killed(session_base: Path) -> None:
    cluster = CommandLineCluster(session_base, num_cpus=1)
    try:
        lost = cluster.add_node(num_cpus=1)
        processes = processes_of_node(lost)
        psutil.Process(lost.reaper_pid).send_signal(signal.SIGKILL)
        wait_until(lambda: not any(map(runs, processes)), "the end of the node's processes")
        left = [Path(name) for name in lost.owned_files]
        assert any(path.exists() for path in left)
        cluster.add_node(num_cpus=1)
        assert not any(path.exists() for path in left)
        assert Path(cluster.head.store_file).exists()
    finally:
        cluster.stop()


def test_store_files_without_a_record_go_where_their_object_managers_are_gone(tmp_path: Path) -> None:
    names = ("ray_mono.session_1.dead", "ray_mono.session_1.living", "ray_mono.session_2.new", "of_another")
    dead, living, new, other = (tmp_path / name for name in names)
    for path in (dead, living, new, other):
        path.write_bytes(b"objects")
    for path in (dead, living, other):
        os.utime(path, (0, 0))
    with living.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_left_store_files(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([living, new, other])

"""What a node leaves behind it, and what only looks like that."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mono._private.node.remains import remove_stale_sockets

LISTENS = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
sys.stdin.readline()
"""


def test_sockets_of_nobody_go_and_all_else_stays(session_base: Path) -> None:
    (session_base / "file").touch()
    for name in ("dead", "living"):
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(session_base / name))
        if name == "dead":
            made.close()
    assert remove_stale_sockets(str(session_base))
    assert sorted(path.name for path in session_base.iterdir()) == ["file", "living"]
    made.close()
    assert not remove_stale_sockets(str(session_base))
    assert [path.name for path in session_base.iterdir()] == ["file"]


def test_a_socket_of_another_network_namespace_stays_while_somebody_listens(session_base: Path) -> None:
    path = session_base / "elsewhere"
    command = ["unshare", "--net", sys.executable, "-c", LISTENS, str(path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None and other.stdout is not None
    if other.stdout.readline() != "listens\n":
        other.communicate()
        pytest.skip("this machine makes no network namespaces")
    remove_stale_sockets(str(session_base))
    assert path.exists()
    other.communicate("end\n")
    remove_stale_sockets(str(session_base))
    assert not path.exists()

"""Ports that are reserved for a server that is still starting."""

from __future__ import annotations

import os
import re
import socket

import pytest

from ray_mono._private.node.ports import PortInUseError, reserve_port
from ray_mono.rpc import sockets


def test_a_server_takes_a_reservation_over() -> None:
    with reserve_port("127.0.0.1") as holder:
        port = holder.getsockname()[1]
        with sockets.listen_tcp("127.0.0.1", port):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                assert client.getpeername()[1] == port


def test_a_port_that_is_taken_is_refused_with_who_has_it() -> None:
    with sockets.listen_tcp("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        who = re.escape(f"port {port} of 127.0.0.1 is in use by process {os.getpid()}")
        with pytest.raises(PortInUseError, match=who):
            reserve_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="cannot use port 0 of 192.0.2.1"):
        reserve_port("192.0.2.1")

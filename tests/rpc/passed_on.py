"""Who has taken a port that others call, does not know the secret, and passes on what is said there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from ray_mono.rpc.sockets import parse_address


@contextlib.contextmanager
def passed_on(address: str) -> Iterator[str]:
    """The address of another port; who calls it speaks to the server at `address`."""
    server = parse_address(address)
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                outer, _ = listener.accept()
                inner = socket.create_connection((server.host, server.port))  # type: ignore[union-attr]
                ends.extend((outer, inner))
                for pair in ((outer, inner), (inner, outer)):
                    threads.append(threading.Thread(target=carry, args=pair))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in ends:
                end.close()

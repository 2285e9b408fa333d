"""A network of this machine's own that can be cut: a namespace, and a cable to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEAR_IP, FAR_IP = "10.213.77.1", "10.213.77.2"


class FarNetwork:
    """What runs inside has FAR_IP, everybody else here is reached at NEAR_IP."""

    def __init__(self) -> None:
        self.name = f"rm{os.getpid()}"
        self._near_end, self._far_end = f"{self.name}n", f"{self.name}f"

    def inside(self, own: Path) -> list[str]:
        """What goes before a command that shall run inside. own: a directory of which it has one of its own:
        sockets in the file system are of one network, too."""
        mount = 'mount -t tmpfs -o mode=700 none "$0" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "sh", "-c", mount, str(own)]

    def lay(self) -> None:
        """Raises CalledProcessError, OSError where this machine allows none."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._near_end, "type", "veth", "peer", "name", self._far_end, "netns", self.name)
        _ip("addr", "add", f"{NEAR_IP}/30", "dev", self._near_end)
        _ip("link", "set", self._near_end, "up")
        _ip("-n", self.name, "addr", "add", f"{FAR_IP}/30", "dev", self._far_end)
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.mend()

    def cut(self) -> None:
        """Nothing comes through, in either direction, and nobody is told."""
        _ip("-n", self.name, "link", "set", self._far_end, "down")

    def mend(self) -> None:
        _ip("-n", self.name, "link", "set", self._far_end, "up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def far_network() -> Iterator[FarNetwork | str]:
    """The network; or why this machine allows none."""
    network = FarNetwork()
    try:
        network.lay()
    except (OSError, subprocess.CalledProcessError) as error:
        network.remove()
        said = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else error
        yield f"this machine allows no network namespaces: {said}"
        return
    try:
        yield network
    finally:
        network.remove()

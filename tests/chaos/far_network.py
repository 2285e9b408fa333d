"""Networks of this machine's own that can be cut: a namespace and a cable to it, or two and a hub."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

NEAR_IP, FAR_IP = "10.213.77.1", "10.213.77.2"
HUB_IP, FAR_IPS = "10.213.78.1", ("10.213.78.2", "10.213.78.3")


class FarNetwork:
    """What runs inside has FAR_IP, everybody else here is reached at NEAR_IP."""

    def __init__(self) -> None:
        self.name = f"rm{os.getpid()}"
        self._near_end, self._far_end = f"{self.name}n", f"{self.name}f"

    def inside(self, own: Path) -> list[str]:
        """What goes before a command that shall run inside. own: a directory of which it has one of its own:
        sockets in the file system are of one network, too."""
        return _inside(self.name, own)

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


class FarNetworks:
    """Two of them. What runs in one has its own of FAR_IPS, everybody else here is reached at HUB_IP. They
    can be cut from each other."""

    def __init__(self) -> None:
        self._hub = f"rm{os.getpid()}h"
        self._names = [f"rm{os.getpid()}f{number}" for number in range(len(FAR_IPS))]
        self._is_cut = False

    def inside(self, number: int, own: Path) -> list[str]:
        """See FarNetwork."""
        return _inside(self._names[number], own)

    def lay(self) -> None:
        """Raises CalledProcessError, OSError where this machine allows none."""
        _ip("link", "add", self._hub, "type", "bridge")
        _ip("addr", "add", f"{HUB_IP}/29", "dev", self._hub)
        _ip("link", "set", self._hub, "up")
        for name, ip in zip(self._names, FAR_IPS, strict=True):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}n", "type", "veth", "peer", "name", f"{name}f", "netns", name)
            _ip("link", "set", f"{name}n", "master", self._hub)
            _ip("link", "set", f"{name}n", "up")
            _ip("-n", name, "addr", "add", f"{ip}/29", "dev", f"{name}f")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", f"{name}f", "up")

    def cut(self) -> None:
        """The first says nothing to the second any more, not even that it hears it; nobody is told."""
        _ip("-n", self._names[0], "route", "add", "blackhole", f"{FAR_IPS[1]}/32")
        self._is_cut = True

    def mend(self) -> None:
        if self._is_cut:
            _ip("-n", self._names[0], "route", "del", "blackhole", f"{FAR_IPS[1]}/32")
            self._is_cut = False

    def remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._hub], check=False, capture_output=True)


T = TypeVar("T", FarNetwork, FarNetworks)


def _inside(name: str, own: Path) -> list[str]:
    mount = 'mount -t tmpfs -o mode=700 none "$0" && exec "$@"'
    return ["ip", "netns", "exec", name, "sh", "-c", mount, str(own)]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def far_network() -> Iterator[FarNetwork | str]:
    """The network; or why this machine allows none."""
    with _laid(FarNetwork()) as network:
        yield network


@contextmanager
def far_networks() -> Iterator[FarNetworks | str]:
    """Likewise."""
    with _laid(FarNetworks()) as networks:
        yield networks


@contextmanager
def _laid(network: T) -> Iterator[T | str]:
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

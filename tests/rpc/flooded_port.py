"""A TCP port that strangers flood, as who comes to it sees it."""

from __future__ import annotations

import pytest

from ray_mono.rpc import auth
from ray_mono.rpc.tcp_door import Stranger


def send_away(monkeypatch: pytest.MonkeyPatch, lost: int) -> list[Stranger]:
    """The first `lost` who come to a port of this process are sent away before they are read, and clients
    come again at once. Returns those who have come, and goes on to fill it."""
    monkeypatch.setattr(auth, "SHAKE_AGAIN_S", 0.001)
    read, came = Stranger.read, list[Stranger]()

    def read_late(stranger: Stranger) -> None:
        came.append(stranger)
        if len(came) > lost:
            read(stranger)
        else:
            stranger._door.dismiss(stranger)

    monkeypatch.setattr(Stranger, "read", read_late)
    return came

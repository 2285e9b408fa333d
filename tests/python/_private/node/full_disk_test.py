"""A node that cannot start for want of room says where there is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_mono._private.node.full_disk import full_disk_explained
from ray_mono._private.node.reaper_client import ServiceStartError
from ray_mono._private.node.session import SessionError

FULL = SimpleNamespace(f_bavail=3, f_frsize=4096, f_files=100, f_favail=50)
NO_FILES = SimpleNamespace(f_bavail=1 << 20, f_frsize=4096, f_files=100, f_favail=0)


@pytest.mark.parametrize("space", [FULL, NO_FILES])
@pytest.mark.parametrize("failed", [ConnectionResetError(104, "reset"), ServiceStartError("exit status 1")])
def test_what_failed_first_on_a_full_disk_names_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: SimpleNamespace, failed: Exception
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: space)
    with pytest.raises(SessionError, match=f"no space is left in {tmp_path}, .* another directory") as told:
        with full_disk_explained(tmp_path):
            raise failed
    assert str(failed) in str(told.value)


def test_a_write_without_room_is_told_and_everything_else_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no space is left"):
        with full_disk_explained(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    for failed in (ConnectionResetError("reset"), ServiceStartError("exit status 1"), ValueError("a port")):
        with pytest.raises(type(failed)) as told:
            with full_disk_explained(tmp_path):
                raise failed
        assert told.value is failed

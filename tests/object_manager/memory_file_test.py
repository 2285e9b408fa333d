"""The file in /dev/shm: it is there for its life only, pages come before they are needed, and a lack of them
is no crash."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.object_manager import memory_file
from ray_mono.object_manager.memory_file import MemoryFile, MemoryFileError

MIB = 1 << 20


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path(f"/dev/shm/ray_mono_test_{uuid.uuid4().hex}")
    yield path
    path.unlink(missing_ok=True)


def test_the_file_is_private_mapped_and_gone_at_the_end(path: Path) -> None:
    memory = MemoryFile(str(path), MIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert memory.extend(4096)
    memory.view(100, 5)[:] = b"hello"
    with path.open("rb") as file:
        file.seek(100)
        assert file.read(5) == b"hello"
    memory.close()
    assert not path.exists()
    memory.close()


def test_pages_are_there_before_they_are_granted(path: Path) -> None:
    memory = MemoryFile(str(path), 8 * MIB)
    try:
        assert path.stat().st_size == 8 * MIB and path.stat().st_blocks == 0
        assert memory.extend(MIB) and memory.extend(3 * MIB) and memory.extend(2 * MIB)
        assert path.stat().st_blocks * 512 == 3 * MIB == memory.backed_bytes
        assert memory.extend(100 * MIB)
        assert memory.backed_bytes == 8 * MIB
    finally:
        memory.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_a_system_without_memory_is_an_answer_not_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    memory = MemoryFile(str(path), 8 * MIB)

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    try:
        memory.extend(MIB)
        with monkeypatch.context() as patch:
            patch.setattr(memory_file.os, "posix_fallocate", refuse)
            assert not memory.extend(2 * MIB)
        assert memory.backed_bytes == MIB
        assert memory.extend(2 * MIB)
    finally:
        memory.close()


def test_a_store_larger_than_the_file_system_is_refused_with_what_to_do(path: Path) -> None:
    with pytest.raises(
        MemoryFileError, match=r"does not fit into /dev/shm.*--object-store-memory.*--shm-size"
    ):
        MemoryFile(str(path), 1 << 50)
    assert not path.exists()


def test_a_file_that_a_dead_process_left_is_replaced(path: Path) -> None:
    program = "import os, sys; from ray_mono.object_manager.memory_file import MemoryFile;"
    program += f"MemoryFile({str(path)!r}, 4096).extend(4096); os._exit(9)"
    left = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert left.returncode == 9 and path.exists()
    inode = path.stat().st_ino
    memory = MemoryFile(str(path), MIB)
    try:
        assert path.stat().st_ino != inode
    finally:
        memory.close()


def test_a_file_in_use_is_not_taken(path: Path) -> None:
    memory = MemoryFile(str(path), MIB)
    try:
        with pytest.raises(MemoryFileError, match="in use by another object manager"):
            MemoryFile(str(path), MIB)
        assert path.exists()
    finally:
        memory.close()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(MemoryFileError, match="cannot be opened"):
        MemoryFile(str(path), MIB)
    assert victim.read_text() == "precious"


def test_closing_removes_only_its_own_file(path: Path) -> None:
    memory = MemoryFile(str(path), MIB)
    path.unlink()
    path.write_text("another's")
    memory.close()
    assert path.read_text() == "another's"


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(MemoryFileError, match="/dev/shm/no/such"):
        MemoryFile("/dev/shm/no/such/file", MIB)

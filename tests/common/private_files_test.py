"""What another user put somewhere, or could replace, is told from what is ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.common import private_files
from ray_mono.common.private_files import UntrustedPathError, open_directory, open_file
from tests.other_user import OTHER_UID, give_away, needs_another_user


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    return place


def opened(path: Path) -> Path:
    """Where open_directory arrives."""
    descriptor = open_directory(path)
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_path_of_ours_is_trusted_through_its_links_as_well(place: Path, tmp_path: Path) -> None:
    (place / "absolute").symlink_to(tmp_path)
    (tmp_path / "relative").symlink_to("a/../a/b")
    for path, real in (
        (place, place),
        (place / "absolute" / "a", tmp_path / "a"),
        (tmp_path / "relative", place),
        (place / ".." / "b", place),
    ):
        assert opened(path) == real
    with pytest.raises(FileNotFoundError):
        open_directory(place / "missing")
    (place / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_directory(place / "file")
    (place / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels"):
        open_directory(place / "round")


def test_a_directory_that_everybody_writes_is_trusted_only_where_it_is_sticky(place: Path) -> None:
    place.parent.chmod(0o777)
    with pytest.raises(UntrustedPathError, match=f"{place.parent}: it is not sticky"):
        open_directory(place)
    place.parent.chmod(0o1777)
    assert opened(place) == place


@needs_another_user
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
@pytest.mark.parametrize("level", [0, 1])
def test_another_users_directory_is_not_trusted_wherever_it_is_on_the_way(
    place: Path, mode: int, level: int
) -> None:
    his = (place, place.parent)[level]
    his.chmod(mode)
    give_away(his)
    with pytest.raises(UntrustedPathError, match=f"{his} belongs to user id {OTHER_UID}"):
        open_directory(place)


@needs_another_user
def test_another_users_link_is_not_followed_even_to_what_is_ours(place: Path) -> None:
    link = place / "link"
    link.symlink_to(place.parent)
    give_away(link)
    with pytest.raises(UntrustedPathError, match=f"{link} belongs to"):
        open_directory(link)


def test_users_without_a_number_are_taken_for_root_on_the_way_only(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = place.stat()
    strange = os.stat_result((*status[:4], 65534, *status[5:]))
    monkeypatch.setattr(private_files, "_is_unmapped", lambda uid: uid == 65534)
    private_files.check_on_the_way(place, strange)
    assert not private_files.is_trusted_owner(65534)


def test_a_file_is_opened_only_where_it_is_one_and_ours(place: Path) -> None:
    path = place / "file"
    path.write_text("text")
    with open(open_file(path)) as file:
        assert file.read() == "text"
    (place / "link").symlink_to(path)
    with pytest.raises(OSError, match="Too many levels"):
        open_file(place / "link")
    os.close(open_file(place / "link", follow=True))
    path.chmod(0o606)
    with pytest.raises(UntrustedPathError, match="every user can write"):
        open_file(path)
    # Nobody writes to it: who opened it as a file would wait for ever.
    os.mkfifo(place / "pipe")
    with pytest.raises(UntrustedPathError, match="no regular file"):
        open_file(place / "pipe")


@needs_another_user
def test_another_users_file_is_not_opened(place: Path) -> None:
    (place / "his").touch()
    give_away(place / "his")
    with pytest.raises(UntrustedPathError, match=f"belongs to user id {OTHER_UID}"):
        open_file(place / "his", os.O_RDWR)

"""What another user put somewhere, or could replace, is told from what is ours."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_mono.common import private_files
from ray_mono.common.private_files import UntrustedPathError, make_directory, open_directory, open_file
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
def test_a_directory_whose_group_can_write_it_is_trusted_where_that_is_roots_or_our_own(place: Path) -> None:
    above = place.parent
    (place / "file").touch(0o600)
    for path, mode in ((above, 0o775), (place / "file", 0o660)):
        os.chown(path, -1, OTHER_UID)
        path.chmod(mode)
    with pytest.raises(UntrustedPathError, match=f"each member of group {OTHER_UID} can replace .*{above}"):
        open_directory(place)
    with pytest.raises(UntrustedPathError, match="other users can write"):
        open_file(place / "file")
    above.chmod(0o1775)
    assert opened(place) == place
    for path, mode in ((above, 0o775), (place / "file", 0o660)):
        os.chown(path, -1, 0)
        path.chmod(mode)
    assert opened(place) == place
    os.close(open_file(place / "file"))


@pytest.mark.parametrize(
    ("uid", "egid", "gid", "is_refused"),
    [(7, 7, 7, False), (7, 7, 8, True), (7, 8, 7, True), (7, 8, 8, True), (7, 7, 0, False)],
)
def test_a_group_is_ones_own_where_it_has_the_users_number(
    place: Path, monkeypatch: pytest.MonkeyPatch, uid: int, egid: int, gid: int, is_refused: bool
) -> None:
    place.chmod(0o770)
    status = place.stat()
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: egid)
    given = os.stat_result((*status[:5], gid, *status[6:]))
    descriptor = os.open(place, os.O_PATH)
    assert bool(private_files.who_else_can_write(given, descriptor)) == is_refused
    os.close(descriptor)


@pytest.mark.parametrize("gid", [0, -1])
def test_whoever_an_access_list_names_can_replace_what_is_in_a_directory(place: Path, gid: int) -> None:
    """The group's bits show what they may, also where the group is root's or our own."""
    above, path = place.parent, place / "file"
    path.touch()
    # Version 2; (tag, rights, user): the owner, another, the group, the most that is granted, everybody else.
    entries = ((1, 7, -1), (2, 7, OTHER_UID), (4, 0, -1), (16, 7, -1), (32, 0, -1))
    access_list = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    for listed in (above, path):
        if os.getuid() == 0:
            os.chown(listed, -1, gid)
        try:
            os.setxattr(listed, "system.posix_acl_access", access_list)
        except OSError as error:
            pytest.skip(f"no access lists there: {error}")
    with pytest.raises(UntrustedPathError, match=f"whoever its access list names can replace .*{above}"):
        open_directory(place)
    with pytest.raises(UntrustedPathError, match="other users can write"):
        open_file(path)
    above.chmod(0o1770)
    assert opened(place) == place
    # What they are granted goes with the group's bits.
    for listed in (above, path):
        listed.chmod(0o700)
    assert opened(place) == place
    os.close(open_file(path))


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
    # Nor is anything made where he says.
    with pytest.raises(UntrustedPathError, match=f"{link} belongs to"):
        make_directory(link / "new" / "newer")
    assert not (place.parent / "new").exists()


def test_a_directory_is_made_with_those_above_it_and_left_where_it_is_there(place: Path) -> None:
    for _ in range(2):
        make_directory(place / "c" / "d" / "e")
    modes = [(place / path).stat().st_mode & 0o777 for path in ("c", "c/d", "c/d/e")]
    assert modes == [0o755, 0o755, 0o700]


def test_users_without_a_number_are_taken_for_root_on_the_way_only(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = place.stat()
    strange = os.stat_result((*status[:4], 65534, *status[5:]))
    monkeypatch.setattr(private_files, "_is_unmapped", lambda uid: uid == 65534)
    private_files.check_on_the_way(place, strange, -1)
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
    with pytest.raises(UntrustedPathError, match="other users can write"):
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

"""Directories and files that no other user can have put there: how one is told from one that somebody else
prepared.

Who may rename an entry of a directory decides what a path through it means: the directory's owner, and
whoever may write it, unless it is sticky. So a path is trusted when each directory and each link on its way
belongs to us or to root, and nobody else can write it (who_else_can_write), or it is sticky. Then the path
means the same thing later on, too, whatever other users do: it was walked once, by descriptors, and may be
used by its name from then on. What is opened in a directory that others may write, like /dev/shm, is looked
at through its descriptor before it is believed.

In a user namespace some owners have no number of their own; the kernel shows one number for them all. On the
way to a file they are taken for root, who made /tmp; at its end they are strangers.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections import deque
from pathlib import Path

LINKS_MAX = 40


class UntrustedPathError(Exception):
    """Another user could have put this there, or can replace it. The message names it and its owner."""


def open_directory(path: str | Path) -> int:
    """A descriptor of a directory whose whole path is trusted; for *at() calls. Raises UntrustedPathError,
    OSError."""
    parts = deque(Path(os.path.abspath(path)).parts[1:])
    links = 0
    shown = Path("/")
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        while parts:
            name = parts.popleft()
            there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                status = os.fstat(there)
                check_on_the_way(shown / name, status, there)
                if not stat.S_ISLNK(status.st_mode):
                    here, there, shown = there, here, shown / name
                    continue
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                target = Path(os.readlink("", dir_fd=there))
            finally:
                os.close(there)
            if target.is_absolute():
                os.close(here)
                here, shown = os.open("/", os.O_PATH | os.O_CLOEXEC), Path("/")
            parts.extendleft(reversed([part for part in target.parts if part != "/"]))
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def make_directory(path: str | Path, mode: int = 0o700) -> None:
    """Makes a directory, and those above it that are missing (0755): each in one whose path is trusted, so
    that nobody else says where. One that is there by then is left as it is. Raises UntrustedPathError,
    OSError."""
    path = Path(os.path.abspath(path))
    if not os.path.lexists(path.parent):
        make_directory(path.parent, 0o755)
    parent = open_directory(path.parent)
    try:
        os.mkdir(path.name, mode, dir_fd=parent)
    except FileExistsError:
        pass
    finally:
        os.close(parent)


def check_on_the_way(path: Path, status: os.stat_result, descriptor: int) -> None:
    """Raises UntrustedPathError unless only we and root decide what a directory's entries are, or where a
    link leads."""
    if not is_trusted_owner(status.st_uid) and not _is_unmapped(status.st_uid):
        raise UntrustedPathError(f"{path} belongs to user id {status.st_uid}, who can replace what is in it")
    if stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_ISVTX:
        others = who_else_can_write(status, descriptor)
        if others:
            raise UntrustedPathError(f"{others} can replace what is in {path}: it is not sticky")


def open_file(
    path: str | Path, flags: int = os.O_RDONLY, dir_fd: int | None = None, follow: bool = False
) -> int:
    """A descriptor of a regular file of ours or root's that no other can write. Never waits, and follows no
    link but where asked to.

    Raises UntrustedPathError, OSError (ELOOP for a link).
    """
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, 0o600, dir_fd=dir_fd)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedPathError(f"{path} is no regular file")
        if not is_trusted_owner(status.st_uid):
            raise UntrustedPathError(
                f"{path} belongs to user id {status.st_uid}: it must be ours ({os.getuid()}) or root's"
            )
        if who_else_can_write(status, descriptor):
            raise UntrustedPathError(f"other users can write {path}: it is not trusted")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def who_else_can_write(status: os.stat_result, descriptor: int) -> str:
    """Who besides us and root may write it, for people; empty for nobody. Group 0 is root's, and a group with
    our own number is ours alone, as systems that give each user a group make it. Where there is an access
    list, the group's bits stand for all whom it names."""
    if status.st_mode & stat.S_IWOTH:
        return "every user"
    if not status.st_mode & stat.S_IWGRP:
        return ""
    if _has_access_list(descriptor):
        return "whoever its access list names"
    is_of_own_group = status.st_gid == os.getuid() == os.getegid()
    return "" if status.st_gid == 0 or is_of_own_group else f"each member of group {status.st_gid}"


def _has_access_list(descriptor: int) -> bool:
    try:
        # By its name in /proc, since an O_PATH descriptor has no attributes.
        os.getxattr(f"/proc/self/fd/{descriptor}", "system.posix_acl_access")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    return True


def is_trusted_owner(uid: int) -> bool:
    return uid in (os.getuid(), 0)


@functools.cache
def _is_unmapped(uid: int) -> bool:
    """Whether this number stands for users that our namespace has no numbers for."""
    try:
        if uid != int(Path("/proc/sys/fs/overflowuid").read_text()):
            return False
        ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    return not any(int(first) <= uid < int(first) + int(count) for first, _, count in ranges)

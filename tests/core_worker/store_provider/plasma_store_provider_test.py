"""The store's file, which lies where all users may make files, is mapped only where it is ours: its bytes are unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.store_provider.plasma_store_provider import PlasmaStoreProvider
from ray_mono.protobuf import object_manager_pb2
from tests.other_user import give_away, needs_another_user


class Channel:
    """To a store that has this file."""

    reactor = SimpleNamespace(wake=lambda: None)

    def __init__(self, path: Path) -> None:
        self._hello = object_manager_pb2.ConnectClientReply(store_file=str(path), capacity_bytes=4096)

    def unary_unary(self, *_: Any, **__: Any) -> Callable[..., Any]:
        return lambda *_, **__: self._hello

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(start=lambda *_: None)


def client_of(path: Path) -> PlasmaStoreProvider:
    return PlasmaStoreProvider(Channel(path), b"w" * 28, lambda object_id: False)  # type: ignore[arg-type]


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.write_bytes(b"value".ljust(4096))
    return path


FOUND = object_manager_pb2.ObjectFound(object_id=b"o" * 28, size_bytes=5)


def test_our_own_is_read_and_written(store_file: Path) -> None:
    client = client_of(store_file)
    assert bytes(client.view(FOUND)) == b"value"
    client._writable()


@needs_another_user
def test_one_that_another_user_put_in_its_place_is_neither_read_nor_written(store_file: Path) -> None:
    give_away(store_file)
    client = client_of(store_file)
    for use in (lambda: client.view(FOUND), client._writable):
        with pytest.raises(RaySystemError, match="belongs to user id"):
            use()


def test_a_link_in_its_place_is_not_followed(store_file: Path) -> None:
    link = store_file.with_name("link")
    link.symlink_to(store_file)
    with pytest.raises(RaySystemError, match="Too many levels"):
        client_of(link).view(FOUND)


def test_one_that_is_gone_is_told_as_that(store_file: Path) -> None:
    client = client_of(store_file)
    store_file.unlink()
    for use in (lambda: client.view(FOUND), client._writable):
        with pytest.raises(RaySystemError, match="cannot be opened"):
            use()

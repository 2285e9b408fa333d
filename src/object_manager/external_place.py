"""A storage elsewhere in which files of spilled objects lie: what fsspec reaches, S3 above all.

    <uri>/ray_spilled_objects_<node id>/<number>

fsspec and the package of the storage's protocol are loaded only if a node is told such a storage. They take
credentials and the endpoint from where they always do (for S3: the environment, ~/.aws).

A file is one object of the storage, uploaded in parts, so that no copy of it is held. It is there when all
of it is, or not at all. What is read are ranges.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from typing import Any

from ray_mono.common.store_messages import SPILL_DIRECTORY_PREFIX, ExternalStorageError
from ray_mono.object_manager.spill_places import AlteredFileError, Stamp

_S3 = ("s3", "s3a")
_S3_OPTIONS = {"config_kwargs": {"retries": {"max_attempts": 1}}}
"""fsspec tries again itself, five times."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The package's own extra for a protocol."""


class ExternalPlace:
    """Implements SpillPlace."""

    def __init__(self, uri: str, node_id_hex: str, part_bytes: int, retry_s: float) -> None:
        """Loads what it takes, and asks nobody yet. Raises ExternalStorageError."""
        self.uri = uri
        self.retry_s = retry_s
        self._part_bytes = part_bytes
        self._protocol = uri.partition("://")[0]
        self._files, path = _reach(uri, self._protocol)
        self._folder = f"{path.rstrip('/')}/{SPILL_DIRECTORY_PREFIX}{node_id_hex}"

    def check(self) -> None:
        """Writes a little, reads it and removes it. Raises OSError."""
        key, content = f"{self._folder}/check", b"ray_mono"
        with _as_os_error(self.uri):
            self._files.pipe_file(key, content)
            if self._files.cat_file(key, start=4, end=8) != content[4:8]:
                raise OSError(errno.EIO, "what was written is not what is read", self.uri)
            self._files.rm_file(key)

    def path(self, number: int) -> str:
        return ""

    def name(self, number: int) -> str:
        return f"{self._protocol}://{self._key(number)}"

    def check_room(self, wanted_bytes: int) -> None:
        pass

    @contextlib.contextmanager
    def writing(self, number: int) -> Iterator[Callable[[list[memoryview]], None]]:
        key = self._key(number)
        with _as_os_error(self.name(number)):
            file = self._files.open(key, "wb", block_size=self._part_bytes, autocommit=False)
            try:
                yield lambda parts: _write_all(file, parts)
                file.close()
                file.commit()
            except BaseException:
                with contextlib.suppress(Exception):
                    file.discard()
                file.closed = True  # else it would upload the rest when it is collected
                raise

    @contextlib.contextmanager
    def reading(self, number: int, offset: int, count: int) -> Iterator[Callable[[memoryview, int], None]]:
        def read(target: memoryview, at: int) -> None:
            if not len(target):
                return
            end = at + len(target)
            try:
                with _as_os_error(self.name(number)):
                    content = self._files.cat_file(self._key(number), start=at, end=end)
            except FileNotFoundError:
                raise
            except OSError:
                self._check_size(number, end)
                raise
            if len(content) != len(target):
                raise AlteredFileError(self.name(number), "it is shorter than what was written")
            target[:] = content

        yield read

    def _check_size(self, number: int, size_bytes: int) -> None:
        """Raises AlteredFileError where a read could not give so much."""
        with contextlib.suppress(Exception):
            if self._files.size(self._key(number)) >= size_bytes:
                return
            raise AlteredFileError(self.name(number), "it is shorter than what was written")

    def make(self, number: int, size_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "clients write no files there", self.uri)

    def map(self, number: int, size_bytes: int) -> memoryview:
        raise OSError(errno.EOPNOTSUPP, "nobody maps files there", self.uri)

    def remove(self, number: int) -> None:
        with _as_os_error(self.name(number)), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._key(number))

    def flush(self, number: int) -> Stamp:
        return self.stamp(number)

    def stamp(self, number: int) -> Stamp:
        raise OSError(errno.EOPNOTSUPP, "clients write no files there", self.uri)

    def remove_all(self) -> None:
        """Nothing of the node is left, half an upload neither. Raises OSError."""
        with _as_os_error(self.uri):
            self._abort_uploads()
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(self._folder, recursive=True)

    def _abort_uploads(self) -> None:
        """Of processes that were killed: S3 keeps the parts until somebody says that no more will come."""
        if self._protocol not in _S3:
            return
        bucket, _, prefix = self._folder.partition("/")
        found = self._files.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
        for upload in found.get("Uploads", ()):
            with contextlib.suppress(FileNotFoundError):  # it has ended
                self._files.call_s3(
                    "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )

    def _key(self, number: int) -> str:
        return f"{self._folder}/{number}"


def _reach(uri: str, protocol: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        options = _S3_OPTIONS if protocol in _S3 else {}
        files, path = url_to_fs(uri, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        install = f"pip install 'ray_mono[{extra}]'" if extra else "install it beside fsspec"
        raise ExternalStorageError(
            f"objects cannot be spilled to {uri}: a package is missing ({error}): {install}"
        ) from error
    except Exception as error:
        raise ExternalStorageError(f"objects cannot be spilled to {uri}: {error}") from error
    if not re.search("[^/]", path):
        raise ExternalStorageError(f"objects cannot be spilled to {uri}: it names no bucket")
    return files, path


@contextlib.contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    """fsspec's storages raise what they like."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or isinstance(error, FileNotFoundError) or error.errno is not None:
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", name) from error
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", name) from error


def _write_all(file: Any, parts: list[memoryview]) -> None:
    for part in parts:
        file.write(part)

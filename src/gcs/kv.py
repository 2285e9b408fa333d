"""The key-value store of the cluster, and with it the function table.

Bytes by namespace and key, held in memory and written through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ray_mono.common.ids import JobID
from ray_mono.common.our_bug import known
from ray_mono.gcs.storage.table_storage import Table

CODE_NAMESPACES = (b"fun", b"run")
"""The function table: keys there begin with a job's id and go with the job."""


class RowWriter(Protocol):
    """Where changes are written: WriteThrough."""

    def put(self, table: Table, key: bytes, value: bytes) -> None: ...

    def delete(self, table: Table, key: bytes) -> None: ...


class StoreIsFull(Exception):
    """Says how full it is, and how much was to be added."""


class KeyValueStore:
    """All namespaces."""

    def __init__(self, writer: RowWriter, bytes_max: int) -> None:
        """bytes_max: of keys and values; more are refused."""
        self._writer = writer
        self._bytes_max = bytes_max
        self._num_bytes = 0
        self._namespaces: dict[bytes, dict[bytes, bytes]] = {}

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Takes over the rows of an earlier GCS."""
        for row_key, value in rows.items():
            namespace, key = split_row_key(row_key)
            self._namespaces.setdefault(namespace, {})[key] = value
            self._num_bytes += len(key) + len(value)

    def put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        """Writes, unless the key exists and `overwrite` is false. Returns whether the key is new.

        Raises StoreIsFull.
        """
        values = self._namespaces.get(namespace, {})
        is_new = key not in values
        if is_new or overwrite:
            more_bytes = len(value) + (len(key) if is_new else -len(values[key]))
            if more_bytes > 0 and self._num_bytes + more_bytes > self._bytes_max:
                raise StoreIsFull(
                    f"the GCS keeps {self._num_bytes} bytes of keys and values already; with {more_bytes} "
                    f"more it would be above kv_bytes_max, {self._bytes_max}"
                )
            self._num_bytes += more_bytes
            self._namespaces.setdefault(namespace, values)[key] = value
            self._writer.put(Table.KV, join_row_key(namespace, key), value)
        return is_new

    def get(self, namespace: bytes, key: bytes) -> bytes | None:
        return self._namespaces.get(namespace, {}).get(key)

    def delete(self, namespace: bytes, key: bytes, by_prefix: bool) -> int:
        """Deletes the key, or every key that begins with it. Returns how many there were."""
        values = self._namespaces.get(namespace, {})
        doomed = self.keys(namespace, key) if by_prefix else [key] if key in values else []
        for one in doomed:
            self._num_bytes -= len(one) + len(values.pop(one))
            self._writer.delete(Table.KV, join_row_key(namespace, one))
        if not values:
            self._namespaces.pop(namespace, None)
        return len(doomed)

    def delete_code(self, job_id: JobID) -> None:
        """The job is over: nobody needs its functions any more."""
        for namespace in CODE_NAMESPACES:
            self.delete(namespace, job_id.binary(), by_prefix=True)

    def jobs_with_code(self) -> list[JobID]:
        jobs = {
            known(job_of_code(namespace, key), "the job of a function")
            for namespace in CODE_NAMESPACES
            for key in self._namespaces.get(namespace, {})
        }
        return sorted(jobs)

    def keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        """The keys that begin with `prefix`, sorted."""
        return sorted(key for key in self._namespaces.get(namespace, {}) if key.startswith(prefix))

    def summary(self) -> dict[str, dict[str, int]]:
        """Keys and bytes by namespace, for a dump of the state."""
        return {
            namespace.decode(errors="replace"): {
                "keys": len(values),
                "size_bytes": sum(len(key) + len(value) for key, value in values.items()),
            }
            for namespace, values in sorted(self._namespaces.items())
        }


def job_of_code(namespace: bytes, key: bytes) -> JobID | None:
    """The job that a key of the function table belongs to; None for other keys."""
    if namespace not in CODE_NAMESPACES:
        return None
    return JobID(key[: JobID.SIZE].ljust(JobID.SIZE))


def join_row_key(namespace: bytes, key: bytes) -> bytes:
    """The row's key in the store. Namespaces and keys may hold any byte, so a length comes first."""
    return len(namespace).to_bytes(4, "big") + namespace + key


def split_row_key(row_key: bytes) -> tuple[bytes, bytes]:
    end = 4 + int.from_bytes(row_key[:4], "big")
    return row_key[4:end], row_key[end:]

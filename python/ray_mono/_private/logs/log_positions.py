"""How far a log monitor has passed on what workers wrote, in a file beside theirs. When it dies its successor
goes on from there, so that no line is lost, and none is shown twice.

The file is a journal. Before a batch of lines is published, a record of it is appended:

    lengths, CRC ── JSON: {file: offset up to which it is passed on with this batch; sequence, job} ── batch

So of the batches on record all but the last have been published. The last one may have been, or not. The
successor publishes it once more, under the same number; drivers that have had it leave it out. A record that
is not whole was not published. When the journal is long it is written anew, with where each file stands.

A process that dies leaves what it wrote with the kernel. What the machine's end leaves does not matter: the
workers end with it.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

_HEAD = Struct("<III")
"""Of the JSON and of the batch the lengths, and the CRC of both."""
BYTES_MAX = 4 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InDoubt:
    """The batch that was about to be published last."""

    job_id: bytes
    payload: bytes


class LogPositions:
    """Of one logs directory. Its reader has the lock on that."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offsets: dict[str, int] = {}
        """By the names of the workers' files."""
        self.sequence = 0
        """The number of the last batch."""
        self.in_doubt: InDoubt | None = None
        self._size = 0
        self._fd = -1

    def open(self) -> None:
        """Reads what an earlier monitor has left."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        data = self._path.read_bytes()
        while (end := self._read_record(data, self._size)) is not None:
            self._size = end
        # What follows is half a record.
        os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)

    def passed_on(self, name: str, offset: int, sequence: int, job_id: bytes, payload: bytes) -> None:
        """The next batch is about to be published: after it this file is passed on up to the offset. The one
        before has been."""
        self.offsets[name], self.sequence = offset, sequence
        if self._size > BYTES_MAX:
            self._write_anew()
        stands = {"offsets": {name: offset}, "sequence": sequence, "job": job_id.hex()}
        self._append(stands, payload)

    def forget(self, name: str) -> None:
        """The file is gone."""
        self.offsets.pop(name, None)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _read_record(self, data: bytes, start: int) -> int | None:
        """Returns its end; None where there is none, or half of one."""
        if start + _HEAD.size > len(data):
            return None
        stands_bytes, payload_bytes, crc = _HEAD.unpack_from(data, start)
        body = data[start + _HEAD.size : start + _HEAD.size + stands_bytes + payload_bytes]
        if len(body) < stands_bytes + payload_bytes or zlib.crc32(body) != crc:
            return None
        stands = json.loads(body[:stands_bytes])
        self.offsets.update(stands["offsets"])
        self.sequence = stands["sequence"]
        self.in_doubt = InDoubt(bytes.fromhex(stands["job"]), body[stands_bytes:]) if stands["job"] else None
        return start + _HEAD.size + len(body)

    def _append(self, stands: dict[str, object], payload: bytes) -> None:
        text = json.dumps(stands).encode()
        body = text + payload
        record = _HEAD.pack(len(text), len(payload), zlib.crc32(body)) + body
        try:
            self._size += os.write(self._fd, record)
        except OSError as error:  # the disk is full: lines are worth more than where they stand
            logger.warning("what was passed on is not noted in %s: %s", self._path, error.strerror)

    def _write_anew(self) -> None:
        old, old_size = self._fd, self._size
        new = self._path.with_suffix(".new")
        try:
            self._fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._size = 0
            self._append({"offsets": self.offsets, "sequence": self.sequence - 1, "job": ""}, b"")
            os.replace(new, self._path)
            os.close(old)
        except OSError as error:
            logger.warning("%s is not written anew: %s", self._path, error.strerror)
            self._fd, self._size = old, old_size

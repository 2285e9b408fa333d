"""A server that speaks S3, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.waiting import wait_until

BUCKET = "bucket"
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class _Door:
    """A port whose connections lead to another, while it is open."""

    def __init__(self, inner_port: int) -> None:
        self._inner_port = inner_port
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._serve()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._serve()

    def shut(self) -> None:
        for end in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets = []

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                outer, _ = listener.accept()
                try:
                    inner = socket.create_connection(("127.0.0.1", self._inner_port))
                except OSError:
                    outer.close()
                    continue
                self._sockets += [outer, inner]
                for source, target in ((outer, inner), (inner, outer)):
                    threading.Thread(target=_carry, args=(source, target), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 20):
            target.sendall(content)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


class S3Server:
    """It has one bucket. What is in it ends with the process."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._door = _Door(self._port)
        self.url = f"http://127.0.0.1:{self._door.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self._port}",
            region_name=_KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"max_attempts": 0}),
        )

    def start(self, **env: str) -> None:
        """With an empty bucket."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            env={**os.environ, **env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "the S3 server answers")

    def close(self) -> None:
        self._door.shut()
        self.stop()

    def stop(self) -> None:
        """And it forgets everything."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile it takes connections, and answers nobody."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Meanwhile nobody listens there, and connections have ended."""
        self._door.shut()
        try:
            yield
        finally:
            self._door.open()

    def keys(self) -> list[str]:
        return [row["Key"] for row in self._client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]

    def sizes(self) -> list[int]:
        return [row["Size"] for row in self._client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]

    def num_parts(self, key: str) -> int:
        """In which it was uploaded."""
        head = self._client.head_object(Bucket=BUCKET, Key=key)
        return int(head["ETag"].strip('"').partition("-")[2] or 1)

    def uploads(self) -> list[str]:
        """Those that nobody has ended."""
        return [row["Key"] for row in self._client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]

    def begin_upload(self, key: str) -> None:
        self._client.create_multipart_upload(Bucket=BUCKET, Key=key)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def _answers(self) -> bool:
        try:
            self._client.create_bucket(Bucket=BUCKET)
        except Exception:
            return False
        return True


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The environment names it, and has its credentials."""
    server = S3Server()
    for name, value in {**_KEYS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        yield server
    finally:
        server.close()

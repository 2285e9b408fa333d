"""The answer to the creation of this worker's actor. The GCS that asked for it may be gone before it is
there, and the next GCS asks once more. The constructor runs once all the same, and the last is answered.
"""

from __future__ import annotations

from typing import Any

from ray_mono.rpc.reactor_server import ServerCall


class CreationAnswer:
    """A ServerCall of whoever asked last. Lock held."""

    def __init__(self, task_id: bytes, call: ServerCall) -> None:
        self.task_id = task_id
        self._call = call
        self._payload: bytes | None = None

    def asked_again(self, call: ServerCall) -> None:
        self._call = call
        if self._payload is not None:
            call.reply_bytes(self._payload)

    @property
    def connection(self) -> Any:
        return self._call.connection

    def reply(self, message: Any, rings: bool = True) -> None:
        self.reply_bytes(message.SerializeToString(), rings)

    def reply_bytes(self, payload: bytes, rings: bool = True) -> None:
        self._payload = payload
        self._call.reply_bytes(payload, rings)

    def send_bytes(self, payload: bytes) -> None:
        self._payload = payload
        self._call.send_bytes(payload)

"""The base of all errors, and the error of a call to a service: what the transport knows of them. exceptions.py is the whole list.

Services import this, and nothing that they would hold in memory for it.
"""

from __future__ import annotations

import pickle
import traceback


class RayError(Exception):
    """Whatever ray_mono raises about the cluster, a task, an actor or an object."""

    def to_bytes(self) -> bytes:
        """For from_bytes, here or in another process of the same version."""
        from ray_mono.common import code_pickler

        text = "".join(traceback.format_exception(self))
        return pickle.dumps((code_pickler.dumps(self), text))

    @staticmethod
    def from_bytes(b: bytes) -> RayError:
        """The error that to_bytes was called on; where that cannot be loaded here, an UnserializableException with its text."""
        from ray_mono.common.task_error import UnserializableException

        packed, text = pickle.loads(b)
        try:
            error: RayError = pickle.loads(packed)
        except Exception:  # whatever unpickling raises, or a module that is not here
            return UnserializableException(text)
        return error


class RpcError(RayError):
    """A service did not do what it was asked.

    Args:
        message: the service's reason.
        rpc_code: the number of the status, as gRPC counts them.
    """

    def __init__(self, message: str, rpc_code: int | None = None) -> None:
        super().__init__(message, rpc_code)
        self.message = message
        self.rpc_code = rpc_code

    def __str__(self) -> str:
        return self.message

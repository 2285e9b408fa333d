"""The base of all errors, what stands for one that could not travel, and the error of a call to a service.
exceptions.py is the whole list.

Services import this. It brings nothing else that they would hold in memory.
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
        """The error that to_bytes was called on; an UnserializableException with its text where that cannot
        be loaded here."""
        packed, text = pickle.loads(b)
        try:
            error: RayError = pickle.loads(packed)
        except Exception:  # whatever unpickling raises, or a module that is not here
            return UnserializableException(text)
        return error


class UnserializableException(RayError):
    """Stands for an exception that could not travel.

    Args:
        original_stack_trace: the text of the original exception.
    """

    def __init__(self, original_stack_trace: str) -> None:
        super().__init__(original_stack_trace)
        self._original_stack_trace = original_stack_trace

    def __str__(self) -> str:
        return "The exception itself could not be brought here; its text is:\n" + self._original_stack_trace


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

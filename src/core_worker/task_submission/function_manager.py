"""Functions and classes on their way to the workers. They are pickled once, kept in the GCS's function table,
and loaded once in each worker.

A key of the table (KV namespace "fun") is the job's id and a hash of the pickle. A function that is defined
again has another pickle with another hash, so that workers never run stale code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.output import utf8
from ray_mono.core_worker.context import WorkerContext
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.reference_counting.unpickled_references import UnpickledReferences
from ray_mono.core_worker.task_submission.job_code import JobCode
from ray_mono.core_worker.values import serialization, unpicklable
from ray_mono.protobuf import common_pb2

logger = logging.getLogger(__name__)

FUNCTIONS = b"fun"
WARN_BYTES = 10 << 20
"""Ray's FUNCTION_SIZE_WARN_THRESHOLD. A larger function probably captures a large object by accident."""
MAX_BYTES = 95 << 20
"""Ray's FUNCTION_SIZE_ERROR_THRESHOLD."""


@dataclass(frozen=True)
class Exported:
    """Code in the function table, and the references that it captured. Every call counts these as
    arguments."""

    descriptor: common_pb2.FunctionDescriptor
    captured: tuple[ObjectRef[Any], ...] = ()


class FunctionManager:
    """The functions of one process, exported and loaded."""

    def __init__(self, context: WorkerContext, unpickled: UnpickledReferences, job_code: JobCode) -> None:
        self._context = context
        self._unpickled = unpickled
        self._job_code = job_code
        self.loaded: dict[bytes, Any] = {}
        """What was loaded here and captured no references, by its hash."""
        self._code_with_references: dict[bytes, bytes] = {}

    def export(self, target: Any, kind: str) -> Exported:
        """Puts a function or class into the function table.

        Raises TypeError, which names what does not pickle, and ValueError above MAX_BYTES. Warns above
        WARN_BYTES.
        """
        name = utf8(getattr(target, "__qualname__", type(target).__name__))
        try:
            code, captured = serialization.serialize_code(target)
        except Exception as error:
            what = (
                f"the {kind} {name!r} cannot be sent to workers, since something it uses does not pickle:"
                f" {error}"
            )
            raise TypeError(f"{what}{unpicklable.where(target)}. Make it inside of what uses it.") from error
        self._check_size(kind, name, len(code))
        digest = hashlib.blake2b(code, digest_size=28).digest()
        self._job_code.export(FUNCTIONS, self._context.job.job_id + digest, code)
        is_class = isinstance(target, type)
        descriptor = common_pb2.FunctionDescriptor(
            python=common_pb2.PythonFunctionDescriptor(
                module_name=utf8(module_name(target, self._context.job.script)),
                class_name=name if is_class else "",
                function_name="__init__" if is_class else name,
                function_hash=digest,
            )
        )
        return Exported(descriptor, tuple(captured))

    def _check_size(self, kind: str, name: str, size_bytes: int) -> None:
        advice = "put large objects into the object store with ray_mono.put() and pass the reference"
        if size_bytes > MAX_BYTES:
            raise ValueError(
                f"the {kind} {name!r} is {size_bytes >> 20} MiB when pickled; at most {MAX_BYTES >> 20} MiB"
                f" are accepted: {advice}"
            )
        if size_bytes > WARN_BYTES:
            logger.warning(
                "The %s %r is %d MiB when pickled, and every worker loads it: it captures a large object,"
                " perhaps by accident; %s.",
                kind, name, size_bytes >> 20, advice,
            )  # fmt: skip

    def load(
        self,
        job_id: bytes,
        descriptor: common_pb2.FunctionDescriptor,
        caller: common_pb2.Address,
        is_kept: bool = False,
    ) -> Any:
        """The function or class of a descriptor. Raises what unpickling raises, e.g. ModuleNotFoundError.

        It is loaded once in a process, unless it captured references. To keep it would keep those alive, so
        then it is unpickled for each call.

        is_kept: this process can export it again, if nobody else is left who could.
        """
        digest = descriptor.python.function_hash
        loaded = self.loaded.get(digest)
        if loaded is not None:
            return loaded
        code = self._code_with_references.get(digest)
        if code is None:
            key = job_id + digest
            code = self._job_code.fetch(FUNCTIONS, key, caller)
            if code is None:
                name = descriptor.python.function_name
                raise RaySystemError(
                    f"the code of {name!r} is not in the cluster's function table (key {key.hex()})"
                )
            if is_kept:
                self._job_code.keep(FUNCTIONS, key, code)
        num_before = self._unpickled.count
        loaded = pickle.loads(code)
        if self._unpickled.count == num_before:
            self.loaded[digest] = loaded
        else:
            self._code_with_references[digest] = code
        return loaded


def script_name() -> str:
    """The name of the file that this program is; empty for a prompt."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.splitext(os.path.basename(file))[0] if file else ""


def module_name(target: Any, script: str) -> str:
    """The name of a function's or class's module, for people. What the driver's script defines, whose module
    is `__main__`, goes by the script's name."""
    name = getattr(target, "__module__", "") or ""
    return script if name == "__main__" and script else name

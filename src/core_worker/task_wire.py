"""How the usual push of a task, and its usual answer, are written: by hand, as the bytes of their messages.

Both are what `PushTaskRequest` and `PushTaskReply` (core_worker.proto) parse to, and whoever parses them so is
right. But to make a message, fill it and serialize it takes ten times as long as to put the same bytes one
after another, and this happens twice for every call.

    usual push     a template that the peer knows, the task's id, and arguments in one short pickle
                   template_id, depth (both constant: `push_head`), task_id, flat_args
    usual answer   DONE, one small value without references inside, of at most SHORT_MAX bytes
                   run_us, plain

Fields come in this order, so that a receiver can tell a usual answer by its bytes (`is_usual`).
"""

from __future__ import annotations

from struct import Struct

from ray_mono.protobuf import core_worker_pb2

SHORT_MAX = 127
"""The longest `bytes` field whose length is one byte."""
_LENGTH_DELIMITED = 2
_FIXED32 = 5


def _tag(message: type, field: str, wire_type: int) -> bytes:
    return bytes((message.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type,))  # type: ignore[attr-defined]


_TASK_ID = _tag(core_worker_pb2.PushTaskRequest, "task_id", _LENGTH_DELIMITED)
_FLAT_ARGS = _tag(core_worker_pb2.PushTaskRequest, "flat_args", _LENGTH_DELIMITED)
RUN_US = _tag(core_worker_pb2.PushTaskReply, "run_us", _FIXED32)
PLAIN = _tag(core_worker_pb2.PushTaskReply, "plain", _LENGTH_DELIMITED)

FLAT_ARGS = tuple(_FLAT_ARGS + bytes((size,)) for size in range(SHORT_MAX + 1))
"""What stands before arguments of so many bytes."""

USUAL_ANSWER = Struct("<cIcB")
"""What stands before the value: tag, run_us, tag, the value's size."""


def push_head(template_id: int, depth: int, id_bytes: int) -> bytes:
    """What stands before a task's id in the pushes of one template."""
    request = core_worker_pb2.PushTaskRequest(template_id=template_id, depth=depth)
    return request.SerializeToString() + _TASK_ID + bytes((id_bytes,))


def usual_answer(run_us: int, plain: bytes) -> bytes:
    """plain: at most SHORT_MAX bytes."""
    return USUAL_ANSWER.pack(RUN_US, run_us, PLAIN, len(plain)) + plain

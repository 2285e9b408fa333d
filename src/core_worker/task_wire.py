"""The usual push of a task, and its usual answer. They are written by hand, as the bytes of their messages.

They are a `PushTaskRequest` and a `PushTaskReply` (core_worker.proto), and a receiver may parse them as that.
But to make a message, fill it and serialize it takes ten times as long as to put the same bytes one after
another, and each call has one of both.

    usual push     a template that the peer knows, the task's id, and arguments in one short pickle
                   template_id, depth (both constant: `push_head`), task_id, flat_args
    usual answer   DONE, one small value without references inside, of at most SHORT_MAX bytes
                   run_us, plain

An item of a generator is written as a part of an answer that has just this item: bytes of parts, one behind
the other, are the part that has the items of all of them.

The fields come in this order, so that a receiver can tell both by their bytes, and read them by hand, too
(`PushReader`; USUAL_ANSWER in the submitters). Everything else is read as the message that it is.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from ray_mono.common.ids import TaskID
from ray_mono.protobuf import core_worker_pb2

SHORT_MAX = 127
"""The longest `bytes` field whose length is one byte."""
_LENGTH_DELIMITED = 2
_FIXED32 = 5


def _tag(message: type, field: str, wire_type: int) -> bytes:
    number = message.DESCRIPTOR.fields_by_name[field].number  # type: ignore[attr-defined]
    return bytes((number << 3 | wire_type,))


_TASK_ID = _tag(core_worker_pb2.PushTaskRequest, "task_id", _LENGTH_DELIMITED)
_FLAT_ARGS = _tag(core_worker_pb2.PushTaskRequest, "flat_args", _LENGTH_DELIMITED)
RUN_US = _tag(core_worker_pb2.PushTaskReply, "run_us", _FIXED32)
PLAIN = _tag(core_worker_pb2.PushTaskReply, "plain", _LENGTH_DELIMITED)

FLAT_ARGS = tuple(_FLAT_ARGS + bytes((size,)) for size in range(SHORT_MAX + 1))
"""What stands before the arguments, by their size in bytes."""

USUAL_ANSWER = Struct("<cIcB")
"""What stands before the value: tag, run_us, tag, and the value's size in bytes."""


ITEM_HEAD_BYTES_MAX = 1000
"""Of an item's data. Larger ones take as long to copy as their message to make."""


@lru_cache(maxsize=ITEM_HEAD_BYTES_MAX)
def _item_head(metadata: bytes, size_bytes: int) -> bytes:
    """What stands before an item's data."""
    with_zeros = _item_message(metadata, bytes(size_bytes))
    return with_zeros[: len(with_zeros) - size_bytes]


def _item_message(metadata: bytes, data: bytes) -> bytes:
    item = core_worker_pb2.StreamedItem(metadata=metadata, data=data)
    return core_worker_pb2.PushTaskReply(items=[item]).SerializeToString()


def streamed_item(metadata: bytes, data: bytes) -> bytes:
    """A PushTaskReply that is a part with this item."""
    if 0 < len(data) <= ITEM_HEAD_BYTES_MAX:
        return _item_head(metadata, len(data)) + data
    return _item_message(metadata, data)


UsualPush: TypeAlias = tuple[int, int, bytes, bytes]
"""A usual push as its receiver has it: (template_id, depth, task_id, flat_args)."""

_USUAL_ID = _TASK_ID + bytes((TaskID.SIZE,))
_ID_START = len(_USUAL_ID)
_ID_END = _ID_START + TaskID.SIZE
_ARGS_TAG = _FLAT_ARGS[0]
_HEAD_BYTES_MAX = 12
"""Of a template's number and a depth: a tag and at most five bytes each."""
_SEARCHED_BYTES = _HEAD_BYTES_MAX + len(_USUAL_ID)
_HEADS_MAX = 10_000


# What stands before a task's id: (template_id, depth).
_heads: dict[bytes, tuple[int, int]] = {}


class PushReader:
    """Reads pushes. A server has it in place of the request's type."""

    @staticmethod
    def FromString(payload: bytes) -> UsualPush | core_worker_pb2.PushTaskRequest:
        """Raises DecodeError as the message's does."""
        head_end = payload.find(_USUAL_ID, 0, _SEARCHED_BYTES)
        if head_end > 0:
            head = payload[:head_end]
            known = _heads.get(head) or _read_head(head)
            if known is not None:
                template_id, depth = known
                id_end = head_end + _ID_END
                num_left = len(payload) - id_end
                if not num_left:
                    return template_id, depth, payload[head_end + _ID_START :], b""
                if num_left > 2 and payload[id_end] == _ARGS_TAG and payload[id_end + 1] == num_left - 2:
                    return (
                        template_id,
                        depth,
                        payload[head_end + _ID_START : id_end],
                        payload[id_end + 2 :],
                    )
        return core_worker_pb2.PushTaskRequest.FromString(payload)


def _read_head(head: bytes) -> tuple[int, int] | None:
    """(template_id, depth), if these bytes have nothing else."""
    try:
        request = core_worker_pb2.PushTaskRequest.FromString(head)
    except DecodeError:
        return None
    template_id, depth = request.template_id, request.depth
    plain = core_worker_pb2.PushTaskRequest(template_id=template_id, depth=depth)
    if not template_id or request != plain:
        return None
    if len(_heads) >= _HEADS_MAX:
        _heads.clear()
    _heads[head] = template_id, depth
    return template_id, depth


def push_head(template_id: int, depth: int, id_bytes: int) -> bytes:
    """What stands before a task's id in the pushes of one template."""
    request = core_worker_pb2.PushTaskRequest(template_id=template_id, depth=depth)
    return request.SerializeToString() + _TASK_ID + bytes((id_bytes,))


def shared_push(template_id: int, depth: int, task_ids: Sequence[bytes], items: list[Any]) -> bytes:
    """A PushTasksRequest: calls of one template and depth, each with one item for an argument."""
    request = core_worker_pb2.PushTasksRequest(
        template_id=template_id,
        depth=depth,
        task_ids=b"".join(task_ids),
        items=pickle.dumps(items, 5),
    )
    return request.SerializeToString()


def task_ids_of(request: Any) -> list[bytes]:
    """Of a PushTasksRequest."""
    joined = request.task_ids
    return [joined[start : start + TaskID.SIZE] for start in range(0, len(joined), TaskID.SIZE)]


def shared_answers(first: int, plains: list[bytes], run_us: int) -> core_worker_pb2.PushTasksReply:
    """Usual answers of calls that came together, from this one on. Many are one and the same object, which
    their receiver then has once, too."""
    return core_worker_pb2.PushTasksReply(first=first, plains=pickle.dumps(plains, 5), run_us=run_us)


def plains_of(answers: core_worker_pb2.PushTasksReply) -> list[bytes]:
    """Empty where there is an answer of another kind."""
    return pickle.loads(answers.plains) if answers.plains else []


def usual_answer(run_us: int, plain: bytes) -> bytes:
    """plain: at most SHORT_MAX bytes."""
    return USUAL_ANSWER.pack(RUN_US, run_us, PLAIN, len(plain)) + plain

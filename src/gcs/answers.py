"""Answers that may have been lost on their way. A caller that lost the head asks the next one once more; what
must not be done twice is answered from here then, as it was answered first.

Most calls need nothing of this, since doing them again changes nothing: each is about an id that its caller
chose, or only reads. Those that do carry a `request_id` (gcs.proto). Its answer is stored with what the call
did, in one commit. It goes when the caller says, with a later call, that it has it, and with the caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from ray_mono.gcs.storage.table_storage import Table
from ray_mono.protobuf import gcs_pb2

Reply = TypeVar("Reply", bound=Any)


class RowWriter(Protocol):
    """What is put and deleted is durable when its caller is answered."""

    def put(self, table: Table, key: bytes, value: bytes) -> None: ...

    def delete(self, table: Table, key: bytes) -> None: ...


class Answers:
    """By caller and number."""

    def __init__(self, writer: RowWriter, callers_max: int, answers_max: int) -> None:
        """answers_max: of one caller. Beyond the limits the oldest go."""
        self._writer = writer
        self._callers_max = callers_max
        self._answers_max = answers_max
        # Of those who asked, the latest last: what they may not have got.
        self._kept: OrderedDict[bytes, dict[int, bytes]] = OrderedDict()

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Takes over the rows of an earlier GCS."""
        for caller, row in rows.items():
            self._kept[caller] = dict(gcs_pb2.KeptAnswers.FromString(row).answers)

    def once(self, request_id: gcs_pb2.RequestId, answer: Callable[[], Reply], kind: type[Reply]) -> Reply:
        """What answer() returns, or returned when this request was first heard. It is kept unless it raises;
        then it has done nothing."""
        caller, number = request_id.caller, request_id.number
        if not caller:
            return answer()
        known = self._kept.get(caller, {}).get(number)
        if known is not None:
            return kind.FromString(known)
        reply = answer()
        missing = self._kept.get(caller, {}).items()
        kept = {each: payload for each, payload in missing if each >= request_id.answered_below}
        kept[number] = reply.SerializeToString()
        while len(kept) > self._answers_max:
            del kept[min(kept)]
        self._kept[caller] = kept
        self._kept.move_to_end(caller)
        self._writer.put(Table.ANSWER, caller, gcs_pb2.KeptAnswers(answers=kept).SerializeToString())
        while len(self._kept) > self._callers_max:
            self.forget(next(iter(self._kept)))
        return reply

    def forget(self, caller: bytes) -> None:
        """It is gone, and asks nothing again."""
        if self._kept.pop(caller, None) is not None:
            self._writer.delete(Table.ANSWER, caller)

    def count(self) -> int:
        return sum(len(answers) for answers in self._kept.values())

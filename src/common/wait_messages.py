"""The messages of what waits, as owner, worker, raylet and head answer them (docs/internals/explain.md)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from ray_mono.common.explanation import WaitCode
from ray_mono.common.scheduling.bundle_resources import nearest
from ray_mono.common.scheduling.node_snapshot import NodeSnapshot
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.protobuf import common_pb2

Subject = common_pb2.WaitSubject

SUBJECTS_TOLD_MAX = 16
"""That one waits for."""
NODES_TOLD_MAX = 8
NODES_ASKED_MAX = 64
"""Who holds something there."""


# A string to its end; anything else but a number to the end of the line.
_EXIT = re.compile(
    r"""SystemExit\((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?!-?\d+\)|None\)|True\)|False\)).*)\)"""
)

THE_HEAD = Subject(kind=Subject.HEAD, name="the head")
"""Nobody may change it."""


def reason_of(
    code: WaitCode,
    text: str,
    waits_for: Iterable[common_pb2.WaitSubject] = (),
    is_any: bool = False,
    unblock: str = "",
    shortages: Iterable[common_pb2.Shortage] = (),
    num_needed: int = 0,
    times_out: bool = False,
    node_ids: Iterable[bytes] = (),
    num_others: int = 0,
    is_unsure: bool = False,
) -> common_pb2.WaitReason:
    """is_any: so many of waits_for as are needed are enough, one where that is not said. times_out: it goes
    on by itself when a time is over. node_ids: whose stores have it. num_others: so many more
    it waits for; negative is none."""
    return common_pb2.WaitReason(
        code=code,
        text=text,
        waits_for=waits_for,
        any=is_any,
        unblock=unblock,
        shortages=shortages,
        num_needed=num_needed,
        times_out=times_out,
        node_ids=node_ids,
        num_others=max(0, num_others),
        unsure=is_unsure,
    )


def node_subject(node: NodeSnapshot, needs: ResourceSet) -> common_pb2.WaitSubject:
    """Who holds such resources there?"""
    at = common_pb2.Address(node_id=node.node_id, host=node.host, port=node.port)
    return Subject(kind=Subject.NODE, id=node.node_id, at=at, needs=needs.to_proto())


def shortages(required: ResourceSet, nodes: Iterable[NodeSnapshot]) -> list[common_pb2.Shortage]:
    """What is missing on each, of so many as are told."""
    return [_shortage(required, node) for node in islice(nodes, NODES_TOLD_MAX)]


def _shortage(required: ResourceSet, node: NodeSnapshot) -> common_pb2.Shortage:
    needs = nearest(required, node.total, node.available)
    names = [name for name, _ in needs.items()]
    return common_pb2.Shortage(
        node_id=node.node_id,
        missing=needs.missing_from(node.available).to_proto(),
        available=node.available.only(*names).to_proto(),
        total=node.total.only(*names).to_proto(),
    )


def looked_at(num: int) -> str:
    """Goes on behind "5000 objects", where so many subjects are too many."""
    return f", of which {SUBJECTS_TOLD_MAX} were looked at" if num > SUBJECTS_TOLD_MAX else ""


def with_history(reason: common_pb2.WaitReason, history: str) -> common_pb2.WaitReason:
    """history: a clause that says how earlier attempts ended; empty where there were none."""
    reason.MergeFrom(common_pb2.WaitReason(history=history))
    return reason


def told_to_anybody(message: str) -> str:
    """A clause without what a program has left with: whoever asks may be of another job."""
    return _EXIT.sub("SystemExit(…)", clause(message))


def clause(message: str) -> str:
    """What of it goes into a sentence: its first line. The others are what a process wrote last."""
    return message.partition("\n")[0].rstrip(". ")

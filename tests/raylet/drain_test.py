"""What holds when a node is to be drained more than once."""

from __future__ import annotations

import pytest

from ray_mono.protobuf import common_pb2
from ray_mono.raylet.drain import joined

IDLE = common_pb2.DRAIN_NODE_REASON_IDLE_TERMINATION
PREEMPTION = common_pb2.DRAIN_NODE_REASON_PREEMPTION


@pytest.mark.parametrize(
    ("first_ms", "second_ms", "left_ms"), [(0, 0, 0), (0, 7, 7), (7, 0, 7), (7, 5, 5), (5, 7, 5)]
)
def test_the_earlier_deadline_holds_and_none_is_later_than_all(
    first_ms: int, second_ms: int, left_ms: int
) -> None:
    first = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="a", deadline_timestamp_ms=first_ms)
    second = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="b", deadline_timestamp_ms=second_ms)
    assert joined(first, second) == common_pb2.NodeDrain(
        reason=PREEMPTION, reason_message="a", deadline_timestamp_ms=left_ms
    )


def test_a_preemption_outweighs_an_idle_termination_whichever_came_first() -> None:
    idle = common_pb2.NodeDrain(reason=IDLE, reason_message="idle")
    preemption = common_pb2.NodeDrain(reason=PREEMPTION, reason_message="spot")
    assert joined(idle, preemption) == joined(preemption, idle) == preemption

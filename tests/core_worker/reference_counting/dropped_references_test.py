"""References that finalizers leave to be counted: whoever counts is woken, however many threads come at
once."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from ray_mono.core_worker.reference_counting.dropped_references import DroppedReferences
from tests.core_worker.scene import Scene

WAIT_S = 30.0


class Woken:
    """A reactor that only counts how often it was woken."""

    def __init__(self) -> None:
        self.count = 0

    def serve_queues(self, queues: Any, drain: Any) -> None: ...

    def wake(self) -> None:
        self.count += 1


def dropped_by(reactor: Woken) -> DroppedReferences:
    parts = Scene(is_driver=False).parts
    return DroppedReferences(reactor, parts.references, parts.plasma)  # type: ignore[arg-type]


def test_the_first_one_wakes_whoever_counts_and_the_others_find_it_awake() -> None:
    reactor = Woken()
    dropped = dropped_by(reactor)
    for object_id in (b"1" * 28, b"2" * 28, b"3" * 28):
        dropped.drop(object_id)
    assert reactor.count == 1
    dropped.drain()
    assert not any(dropped.queues)
    dropped.drop(b"4" * 28)
    assert reactor.count == 2


def test_of_threads_that_drop_at_the_same_time_one_wakes_whoever_counts() -> None:
    """Both are in the queue before either of them looks into it."""
    reactor = Woken()
    dropped = dropped_by(reactor)
    both = threading.Barrier(2)

    def drop(object_id: bytes) -> None:
        has_met = False

        def stop_behind_append(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal has_met
            if frame.f_code is DroppedReferences.drop.__code__ and not has_met:
                if object_id in dropped.queues[0]:
                    has_met = True
                    both.wait(WAIT_S)
                return stop_behind_append
            return None

        sys.settrace(stop_behind_append)
        dropped.drop(object_id)

    threads = [threading.Thread(target=drop, args=(id * 28,)) for id in (b"1", b"2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reactor.count == 1 and len(dropped.queues[0]) == 2 and not both.broken

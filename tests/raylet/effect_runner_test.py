"""What is done with each thing that the machines decide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.our_bug import InternalError
from ray_mono.raylet.clients import Clients
from ray_mono.raylet.effect_runner import EffectRunner
from ray_mono.raylet.effects import (
    BundlesHeld,
    CollectGarbage,
    EndMode,
    EndWorker,
    Granted,
    ReclaimLease,
    Rejected,
    RejectionKind,
    SpilledBack,
    StartWorker,
    Unclaimed,
    WarnJob,
)


class Node:
    """Notes who is told what, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

        def note(who: str) -> Any:
            return lambda *what: self.told.append((who, what[0] if what else None))

        answers: Any = SimpleNamespace(answer=note("requester"))
        reclaims: Any = SimpleNamespace(tell=note("holder"))
        outbox: Any = SimpleNamespace(
            publish_error=lambda error: note("driver")(error.message),
            register_again=note("register again"),
            ask_for_garbage=note("garbage"),
            resources_changed=note("resources"),
        )
        launcher: Any = SimpleNamespace(start=lambda order: note("start")(order.worker_id))
        ender: Any = SimpleNamespace(end=lambda effect: note("end")(effect.worker_id))
        clock: Any = SimpleNamespace(wall_s=lambda: 1.0)
        self.runner = EffectRunner(
            Clients(), answers, reclaims, outbox, launcher, ender, clock, note("afterwards")
        )


def test_every_effect_reaches_whom_it_is_for_in_order_and_then_the_gcs_looks_at_the_resources() -> None:
    node = Node()
    reclaimed = ReclaimLease(b"lease", 3)
    node.runner.run(
        [
            StartWorker(1, b"w"),
            BundlesHeld(b"g"),
            EndWorker(b"v", 2, EndMode.KILL, "its job is over"),
            Rejected(b"a", RejectionKind.CANCELLED, "cancelled"),
            SpilledBack(b"b", b"n", "h", 1),
            WarnJob(b"job", "kind", "it waits"),
            Unclaimed(b"lease"),
            reclaimed,
            CollectGarbage(),
        ]
    )
    assert node.told == [
        ("start", b"w"),
        ("requester", b"g"),
        ("end", b"v"),
        ("requester", b"a"),
        ("requester", b"b"),
        ("driver", "it waits"),
        ("register again", None),
        ("holder", reclaimed),
        ("garbage", None),
        ("resources", None),
        ("afterwards", None),
    ]


def test_a_worker_that_is_not_connected_cannot_be_granted() -> None:
    with pytest.raises(InternalError, match="was granted and is not connected"):
        Node().runner.run([Granted(b"a", b"w" * 28, {})])

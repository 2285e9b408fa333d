"""wait: what ends it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.common.exceptions import RaySystemError
from ray_mono.core_worker.objects.object_wait import ObjectWait
from tests.core_worker.fake_core import FakeCore


@pytest.mark.parametrize("timeout_s", [None, 1e9])
def test_a_wait_that_ends_since_this_process_leaves_does_not_say_that_the_time_is_up(
    timeout_s: float | None,
) -> None:
    core: Any = FakeCore()
    core.reactor.raise_if_interrupted = lambda: None
    core.memory_store.expect(b"r" * 28)

    def wait_for(*_: Any) -> None:
        core.reactor.is_closed = True

    waits = ObjectWait(core, SimpleNamespace(wait_for=wait_for))  # type: ignore[arg-type]
    ref: Any = SimpleNamespace(_id=b"r" * 28)
    with pytest.raises(RaySystemError, match="disconnected from its cluster"):
        waits.wait([ref], 1, timeout_s, True)

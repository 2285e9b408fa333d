"""How many workers a raylet's descriptors are enough for."""

from __future__ import annotations

import errno
import resource

import pytest

from ray_mono.raylet.worker.room_for_workers import why_and_what_helps, why_no_more


@pytest.mark.parametrize(("limit", "num_max"), [(20, 1), (64, 12), (256, 108)])
def test_a_limit_is_told_before_it_is_reached(
    monkeypatch: pytest.MonkeyPatch, limit: int, num_max: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert why_no_more(num_max - 1) == ""
    assert f"only {limit} files, which is enough for {num_max} workers" in why_no_more(num_max)


def test_without_a_limit_there_may_be_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda what: (unlimited, unlimited))
    assert why_no_more(10**9) == ""


def test_where_no_process_can_be_made_it_is_said_what_helps() -> None:
    forked = str(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
    assert "the pids limit of the container" in why_and_what_helps(f"it could not be forked: {forked}")
    assert why_and_what_helps("worker pid 7 exited with code 1") == "worker pid 7 exited with code 1"

"""How many workers a raylet's descriptors are enough for."""

from __future__ import annotations

import resource

import pytest

from ray_mono.raylet.worker.room_for_workers import why_no_more


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

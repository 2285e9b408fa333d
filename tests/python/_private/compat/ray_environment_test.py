"""Ray's environment variables become ray_mono's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ray_mono._private.compat import ray_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for theirs, (ours, _) in ray_environment.VARIABLES.items():
        for name in (theirs, ours):
            monkeypatch.setenv(name, "")  # so that whatever is set meanwhile goes at the end
            monkeypatch.delenv(name)
    monkeypatch.setattr(ray_environment, "_written", {})
    yield


def test_each_is_given_under_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "host:1")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/x")
    ray_environment.take_over()
    assert os.environ["RAY_MONO_ADDRESS"] == "host:1"
    assert os.environ["RAY_MONO_TMPDIR"] == "/tmp/x/ray_mono"
    assert "RAY_MONO_NAMESPACE" not in os.environ


def test_our_own_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_NAMESPACE", "theirs")
    monkeypatch.setenv("RAY_MONO_NAMESPACE", "ours")
    ray_environment.take_over()
    assert os.environ["RAY_MONO_NAMESPACE"] == "ours"


def test_a_change_is_followed_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_NAMESPACE", "first")
    ray_environment.take_over()
    monkeypatch.setenv("RAY_NAMESPACE", "second")
    ray_environment.take_over()
    assert os.environ["RAY_MONO_NAMESPACE"] == "second"
    monkeypatch.delenv("RAY_NAMESPACE")
    ray_environment.take_over()
    assert "RAY_MONO_NAMESPACE" not in os.environ

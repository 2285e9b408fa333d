"""CUDA_VISIBLE_DEVICES around tasks: names where there are some, and as it was for who has no GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ray_mono.core_worker.task_execution.visible_devices import LEFT_ALONE_BY, VARIABLE, VisibleDevices


@pytest.mark.parametrize(
    ("before", "numbers", "told", "visible"),
    [
        (None, [0, 2], [0, 2], "0,2"),
        ("4,5,6", [0, 2], ["4", "6"], "4,6"),
        ("GPU-a,MIG-b", [1], ["MIG-b"], "MIG-b"),
        # The job's own environment names fewer than the node has.
        ("7", [3], ["7"], "7"),
        ("", [0], [], ""),
        ("NoDevFiles", [0], [], ""),
    ],
)
def test_a_task_with_gpus_sees_their_names_and_the_next_one_what_was_there(
    monkeypatch: pytest.MonkeyPatch, before: str | None, numbers: list[int], told: list[Any], visible: str
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    devices = VisibleDevices()
    for _ in range(2):
        given: dict[str, list[Any]] = {"GPU": list(numbers)}
        devices.show(given)
        assert (given["GPU"], os.environ[VARIABLE], devices.is_set) == (told, visible, True)
    devices.show({})
    assert (os.environ.get(VARIABLE), devices.is_set) == (before, False)


def test_the_variable_is_left_alone_where_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4,5,6")
    monkeypatch.setenv(LEFT_ALONE_BY, "1")
    given: dict[str, list[Any]] = {"GPU": [0, 2]}
    devices = VisibleDevices()
    devices.show(given)
    assert (given["GPU"], os.environ[VARIABLE], devices.is_set) == (["4", "6"], "4,5,6", False)

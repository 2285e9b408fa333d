"""The table of a call's steps names functions that there are."""

from __future__ import annotations

import importlib

import pytest

from bench import steps


@pytest.mark.parametrize("step", [*steps.CALLER, *steps.EXECUTOR], ids=lambda step: f"{step[1]}.{step[2]}")
def test_a_step_is_a_function_of_the_hot_path(step: tuple[str, str, str, str]) -> None:
    module, owner, name, _ = step
    assert callable(getattr(getattr(importlib.import_module(f"ray_mono.{module}"), owner), name))

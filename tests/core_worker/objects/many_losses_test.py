"""Many objects that are lost at once: the work for them grows as they do, counted in lines that run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from tests.core_worker.losses import make, places, report
from tests.core_worker.scene import ELSEWHERE, Scene, nodes


def lines_run(function: Callable[[], object]) -> int:
    """How many lines of the core worker a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not frame.f_globals["__name__"].startswith("ray_mono.core_worker."):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def lines_of_losing(scene: Scene, refs: list[ObjectRef[Any]]) -> int:
    def lose_all() -> None:
        for ref in refs:
            report(scene, ref.binary(), ELSEWHERE)
        with scene.env.lock:
            scene.wire.last("GetAllNodes").answer(nodes(ELSEWHERE))
        scene.turn()

    return lines_run(lose_all)


def test_a_thousand_losses_cost_ten_times_what_a_hundred_do() -> None:
    def cost(num_lost: int) -> int:
        scene = Scene()
        refs = [make(scene) for _ in range(num_lost)]
        lines = lines_of_losing(scene, refs)
        assert all(not places(scene, ref) for ref in refs)
        return lines

    few, many = cost(100), cost(1000)
    assert 1000 < few and many < 12 * few


def test_so_do_the_results_of_one_value_that_is_not_held_and_long_chains() -> None:
    def cost(num_users: int) -> int:
        scene = Scene()
        first = make(scene)
        refs = [make(scene, first) for _ in range(num_users)]
        last = first
        for _ in range(num_users):
            last = make(scene, last)
        refs.append(last)
        del first, last
        return lines_of_losing(scene, refs)

    few, many = cost(100), cost(1000)
    assert 1000 < few and many < 12 * few

"""A scene with tasks of a `map`."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from tests.core_worker.scene import Scene, value
from tests.core_worker.task_submission.tasks import AUTO, answer, short_tasks


def a_scene(max_retries: int = 1, **limits: Any) -> Scene:
    """Its worker is leased, knows the function, and is idle; the function is short."""
    scene = Scene(**limits)
    short_tasks(scene)
    first = scene.submit(max_retries=max_retries)
    scene.grant(number=7)
    answer(scene, first, value(0, run_us=1))
    return scene


def mapped(scene: Scene, items: Any, chunk: int = AUTO, **options: Any) -> list[ObjectRef[Any]]:
    """`f.map(items)`; with one retry each."""
    refs: list[ObjectRef[Any]] = []
    template = scene.template(**{"max_retries": 1, **options})
    scene.core.submit_tasks(template, list(items), chunk, refs)
    return refs

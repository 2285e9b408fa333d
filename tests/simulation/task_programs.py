"""What normal tasks of a simulation do: user code, which plays the script that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_mono.core_worker.options import TaskOptions
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, TaskScript
from tests.simulation.site import Site, site


def run_task(number: int) -> Any:
    """A TaskScript. Returns its id and the attempt, num_returns times."""
    here = site()
    script: TaskScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        here.sleep(script.compute_s)
        if task.attempt < script.dies_in_attempts:
            here.die("its task killed it")
        options = TaskOptions(resources=CHILD_RESOURCES, max_retries=CHILD_RETRIES)
        children = [here.submit(run_task, script.child, options=options) for _ in range(script.num_children)]
        if script.wait_s:
            slow = here.submit(run_task, TaskScript(script.wait_s), options=options)
            here.core.wait([slow], 1, script.wait_s / 2, False)
            children.append(slow)
        for child in children:
            here.result(child)
        here.sleep(script.compute_again_s)
    if script.keeps_s:
        here.keep(here.put(), script.keeps_s)
    value = task.task_id, task.attempt
    return value if script.num_returns == 1 else (value,) * script.num_returns


@dataclass(frozen=True)
class MapScript:
    """Tasks that are submitted in one pass."""

    scripts: tuple[TaskScript, ...]
    chunk: int = 0
    """How many travel together; 0: the core worker chooses."""


def play_map(here: Site, script: MapScript) -> None:
    """A driver's."""
    options = TaskOptions(resources=CHILD_RESOURCES, max_retries=CHILD_RETRIES)
    refs = here.submit_map(run_task, script.scripts, script.chunk, options)
    while refs:
        here.result(refs.pop(0))

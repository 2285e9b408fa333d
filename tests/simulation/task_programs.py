"""What normal tasks of a simulation do: user code, which plays the script that it gets."""

from __future__ import annotations

from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import TaskOptions
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, TaskScript
from tests.simulation.site import Site, site


def run_task(data: bytes) -> int:
    """A TaskScript. Returns the attempt."""
    here, script = site(), TaskScript.from_bytes(data)
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
        here.keep(here.core.put(task.task_id), script.keeps_s)
    return task.attempt


def submit_task(here: Site, script: TaskScript, options: TaskOptions) -> ObjectRef[Any]:
    return here.submit(run_task, script, options=options)  # type: ignore[no-any-return]

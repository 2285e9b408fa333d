"""What normal tasks of a simulation do: user code, which plays the script that it gets."""

from __future__ import annotations

from ray_mono.core_worker.options import TaskOptions
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, TaskScript
from tests.simulation.site import site


def run_task(number: int) -> tuple[bytes, int]:
    """A TaskScript. Returns its id and the attempt."""
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
    return task.task_id, task.attempt

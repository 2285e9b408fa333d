"""Generators of a simulation: a task that makes items, and whoever takes them: all, some and then no more,
quickly or slowly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import STREAMING_RETURNS, TaskOptions
from tests.simulation.scripts import CHILD_RESOURCES, CHILD_RETRIES, filler
from tests.simulation.site import Expected, Site, is_error, site
from tests.simulation.stream_checkers import StreamCheckFailed

LARGE_BYTES = 150_000


@dataclass(frozen=True)
class GeneratorScript:
    """What it makes, and how that is taken."""

    num_items: int = 10
    item_s: float = 0.0
    backpressure: int = 0
    """Items that may wait to be taken; 0: any number."""
    is_large: bool = False
    """Its items lie in stores."""
    dies_at: int = -1
    """Its worker dies in the first attempt when so many are made."""
    carries_references: bool = False
    rests_until_cancelled: bool = False
    """Whoever took `takes` items holds on to it, and waits for the end, which a cancel brings."""
    takes: int = -1
    """How many are taken before the generator is let go; -1: all."""
    pause_s: float = 0.0
    """Before each is taken."""
    cancelled_after_s: float = -1.0
    is_cancelled_by_force: bool = False


Item = tuple[bytes, int, bytes, list[ObjectRef[Any]]]


def make_items(number: int) -> Iterator[Item]:
    """The task."""
    here = site()
    script: GeneratorScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        for number in range(script.num_items):
            here.sleep(script.item_s)
            if number == script.dies_at and task.attempt == 0:
                here.die("its generator killed it")
            yield make_item(here, script, number)


def make_item(here: Site, script: GeneratorScript, number: int) -> Item:
    """The next one."""
    task_id = here.core.context.task_id()
    here.judge(here.journal.streams.made, task_id, number + 1, script.backpressure)
    refs = [here.put()] if script.carries_references else []
    content = filler(f"{task_id.hex()}/{number}", LARGE_BYTES) if script.is_large else b""
    return task_id, number, content, refs


def take_items(here: Site, script: GeneratorScript) -> None:
    """Its caller."""
    options = TaskOptions(
        num_returns=STREAMING_RETURNS,
        generator_backpressure_num_objects=script.backpressure,
        resources=CHILD_RESOURCES,
        max_retries=CHILD_RETRIES,
    )
    take_from(here, here.submit(make_items, script, options=options), script)


def take_from(here: Site, generator: Any, script: GeneratorScript) -> None:
    """Of a task or an actor."""
    task_id = generator.completed().task_id().binary()
    streams, num_taken, has_failed = here.journal.streams, 0, False
    while num_taken != script.takes:
        here.sleep(script.pause_s)
        ref = next(generator, None)
        if ref is None:
            break
        here.judge(streams.taken, task_id)
        value = here.get(ref)
        del ref
        if is_error(value) or isinstance(value, Expected):
            has_failed = True
            break
        if value[1] != num_taken:
            here.judge(_fail, f"item {value[1]} comes as item {num_taken}")
        num_taken += 1
        for inside in value[3]:
            here.get(inside)
    else:
        if script.rests_until_cancelled:
            here.get(generator.completed(), is_end=True)
        streams.dropped(task_id)
        return
    if num_taken != script.num_items and not has_failed:
        here.judge(_fail, f"{num_taken} of {script.num_items} items came, and then the end")
    streams.dropped(task_id)


def _fail(what: str) -> None:
    raise StreamCheckFailed(what)

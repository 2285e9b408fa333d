"""Actors of a simulation, plain, threaded and async, and who calls them: the process that creates one, and
tasks that get its handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from ray_mono.common.exceptions import RaySystemError
from ray_mono.common.scheduling.resources import ResourceSet
from ray_mono.core_worker.object_ref import ObjectRef
from ray_mono.core_worker.options import STREAMING_RETURNS, ActorOptions, CallRules, TaskOptions
from ray_mono.rpc.surface import RpcError
from tests.simulation.generator_programs import GeneratorScript, Item, make_item, take_from
from tests.simulation.scripts import CHILD_RETRIES, TaskScript
from tests.simulation.site import Expected, Site, is_error, site
from tests.simulation.task_programs import run_task

KEPT_MAX = 3
"""References that an actor keeps; the oldest go."""
CALLERS = TaskOptions(resources=ResourceSet(), max_retries=0)
"""Tasks that call an actor use no CPU: actors may hold all of them, and wait for their callers."""
AWAITED = TaskOptions(resources=ResourceSet(), max_retries=CHILD_RETRIES)
OWNER = b"owner"
"""Among callers."""
NUMBER_BYTES = 4
"""What a call is given begins with its number. The rest is the caller."""


Answer = tuple[bytes, list[ObjectRef[Any]]]


@dataclass(frozen=True)
class ActorScript:
    """What a simulated actor is and does, in virtual seconds."""

    construct_s: float = 0.01
    num_calls: int = 5
    """Of its owner, and of each other caller."""
    call_s: float = 0.01
    max_restarts: int = 0
    max_task_retries: int = 0
    constructor_raises: bool = False
    dies_in_constructors: int = 0
    """The processes of so many first incarnations die before the constructor returns."""
    dies_at_call: int = -1
    """The process dies of this call of its owner's when it runs for the first time."""
    cpus: float = 0.0
    """Held while it lives; to be placed it needs a CPU in any case."""
    is_killed_at_the_end: bool = False
    """By kill(), instead of going out of scope."""
    is_async: bool = False
    max_concurrency: int = 1
    carries_references: bool = False
    """Its constructor and its calls get references, it keeps some, and gives them back."""
    maps_calls: bool = False
    """Its calls are submitted in one pass, where they carry nothing."""
    waits_each: int = 0
    """Each so many-th call waits for an argument; 0: none."""
    cancels_each: int = 0
    """Each so many-th call is cancelled; 0: none."""
    generators: tuple[GeneratorScript, ...] = ()
    """Its owner has it run, after its other calls."""
    num_callers: int = 0
    """Tasks that call it, too."""
    call_cancelled_after_s: float = 0.01
    cancelled_after_s: float = -1.0
    is_cancelled_by_force: bool = False

    @property
    def is_named(self) -> bool:
        """Its constructor waits for an argument, and it has a name before that. Nothing is drawn for this: so
        most seeds stay what they were."""
        return self.is_killed_at_the_end and bool(self.waits_each)

    @property
    def is_ordered(self) -> bool:
        """Whether calls of one caller start in order: what waits for an argument is overtaken in others."""
        return not (self.waits_each and (self.is_async or self.max_concurrency > 1))

    @property
    def is_deadly(self) -> bool:
        return bool(self.dies_in_constructors) or self.dies_at_call >= 0 or self.constructor_raises


# ---- the actor


class PlainActor:
    """Its calls run on the main thread, or on threads of its own."""

    def __init__(self, number: int, refs: list[ObjectRef[Any]], awaited: Any = None) -> None:
        here = site()
        self.script: ActorScript = here.script(number)
        task = here.core.context.get()
        here.judge(
            here.journal.actors.constructor_began,
            task.kind.actor_id,
            here.core.worker_id,
            here.core.node_id,
            task.attempt,
        )
        here.sleep(self.script.construct_s)
        if task.attempt < self.script.dies_in_constructors:
            here.die("its constructor killed it")
        if self.script.constructor_raises:
            raise Expected
        self.kept = list(refs)

    def call(self, item: bytes, refs: list[ObjectRef[Any]] | None = None, awaited: Any = None) -> Answer:
        here = site()
        number, attempt = self._begins(here, item)
        here.sleep(self.script.call_s)
        return self._ends(here, number, attempt, refs)

    def _begins(self, here: Site, item: bytes) -> tuple[int, int]:
        """Returns the call's number and its attempt."""
        task = here.core.context.get()
        number, caller = int.from_bytes(item[:NUMBER_BYTES], "little"), item[NUMBER_BYTES:]
        here.judge(
            here.journal.actors.call_runs,
            task.kind.actor_id,
            here.core.worker_id,
            caller,
            number,
            task.attempt,
            self.script.max_task_retries,
            self.script.is_ordered,
        )
        return number, task.attempt

    def _ends(self, here: Site, number: int, attempt: int, refs: list[ObjectRef[Any]] | None) -> Answer:
        if number == self.script.dies_at_call and attempt == 0:
            here.die("its call killed it")
        given_back = self.kept[:1]
        self.kept = [*self.kept, *(refs or ())][-KEPT_MAX:]
        return here.core.context.task_id(), given_back

    def items(self, number: int) -> Iterator[Item]:
        """A generator."""
        here = site()
        script: GeneratorScript = here.script(number)
        for number in range(script.num_items):
            here.sleep(script.item_s)
            yield make_item(here, script, number)


class AsyncActor(PlainActor):
    """Its calls run on an event loop."""

    async def items(self, number: int) -> AsyncIterator[Item]:  # type: ignore[override]
        here = site()
        script: GeneratorScript = here.script(number)
        for number in range(script.num_items):
            await asyncio.sleep(script.item_s)
            yield make_item(here, script, number)

    async def call(  # type: ignore[override]
        self, item: bytes, refs: list[ObjectRef[Any]] | None = None, awaited: Any = None
    ) -> Answer:
        here = site()
        number, attempt = self._begins(here, item)
        await asyncio.sleep(self.script.call_s)
        return self._ends(here, number, attempt, refs)


# ---- who calls it


def live_with_actor(here: Site, script: ActorScript) -> None:
    """Creates an actor, makes its calls, and lets go of it. A process that has lost the GCS creates none."""
    try:
        _live_with_actor(here, script)
    except (RpcError, RaySystemError) as error:
        here.judge_error(b"", error)
        here.journal.actors.calls_failed += script.num_calls


def _live_with_actor(here: Site, script: ActorScript) -> None:
    awaited = _late(here) if script.is_named else None
    options = ActorOptions(
        class_name="Simulated",
        resources=ResourceSet.from_units({"CPU": script.cpus}),
        max_restarts=script.max_restarts,
        max_task_retries=script.max_task_retries,
        max_concurrency=script.max_concurrency,
        is_asyncio=script.is_async,
        rules=_rules(script),
        name=awaited.hex() if awaited is not None else "",
    )
    code = here.export_class(AsyncActor if script.is_async else PlainActor)
    arguments = [here.world.scripts.number_of(script), _references(here, script, 2), awaited]
    held = here.core.create_actor(code, options, [each for value in arguments for each in (None, value)])
    here.judge(here.journal.actors.registered, held.actor_id, script.max_restarts)
    handle = (held.actor_id, held.creation_ref)
    callers = [here.submit(call_actor, script, [handle], CALLERS) for _ in range(script.num_callers)]
    if awaited is not None and is_error(here.get(awaited)):
        here.judge(here.journal.actors.killed, held.actor_id)  # of that error
    make_calls(here, held, script, OWNER, script.num_calls)
    for generator in script.generators:
        take_items_of(here, held, generator, script.max_task_retries)
    for caller in callers:
        here.result(caller)
    if script.is_killed_at_the_end:
        here.kill_actor(held.actor_id)


def call_actor(number: int, handle: tuple[bytes, ObjectRef[Any]]) -> tuple[bytes]:
    """A task that has a handle of the actor."""
    here = site()
    script: ActorScript = here.script(number)
    task = here.core.context.get()
    with here.execution(task.task_id, task.attempt):
        held = here.core.hold_actor(*handle, _rules(script))
        make_calls(here, held, script, task.task_id, script.num_calls)
    return (task.task_id,)


def make_calls(here: Site, held: Any, script: ActorScript, caller: bytes, num_calls: int) -> None:
    """All at once; then their answers."""
    template = here.core.method_template("call", "Simulated", max_task_retries=script.max_task_retries)
    answers: list[ObjectRef[Any]] = []
    items = [number.to_bytes(NUMBER_BYTES, "little") + caller for number in range(num_calls)]
    if script.maps_calls and not script.carries_references:
        here.core.submit_actor_tasks(held, template, items, 0, answers)
    else:
        for number, item in enumerate(items):
            flat = [None, item, *_arguments(here, script, number)]
            answers += here.core.submit_actor_task(held, template, flat)
    for number in range(num_calls):
        is_cancelled = _is_each(number, script.cancels_each)
        here.called(answers[number], script.call_cancelled_after_s if is_cancelled else -1.0)
    journal = here.journal.actors
    while answers:
        value = here.get(answers.pop(0))
        if is_error(value) or isinstance(value, Expected):
            journal.calls_failed += 1
            if caller == OWNER and not (script.constructor_raises or here.says_job_is_over(value)):
                here.judge(journal.error_read, held.actor_id, script.max_task_retries, value)
            continue
        journal.calls_done += 1
        for ref in value[1]:
            here.get(ref)


def take_items_of(here: Site, held: Any, script: GeneratorScript, max_task_retries: int) -> None:
    """What a generator of an actor makes."""
    template = here.core.method_template(
        "items",
        "Simulated",
        max_task_retries=max_task_retries,
        num_returns=STREAMING_RETURNS,
        generator_backpressure_num_objects=script.backpressure,
    )
    flat = [None, here.world.scripts.number_of(script)]
    [generator] = here.core.submit_actor_task(held, template, flat)
    here.called(generator.completed(), script.cancelled_after_s)
    take_from(here, generator, script)


def _arguments(here: Site, script: ActorScript, number: int) -> list[Any]:
    refs = _references(here, script, 1)
    if _is_each(number, script.waits_each):
        return [None, refs, None, _late(here)]
    return [None, refs] if refs else []


def _late(here: Site) -> ObjectRef[Any]:
    """An argument that is not there yet."""
    return here.submit(run_task, TaskScript(0.05), options=AWAITED)


def _is_each(number: int, each: int) -> bool:
    return bool(each) and number % each == each - 1


def _references(here: Site, script: ActorScript, count: int) -> list[ObjectRef[Any]]:
    return [here.put() for _ in range(count if script.carries_references else 0)]


def _rules(script: ActorScript) -> CallRules:
    return CallRules(
        is_unordered=script.is_async or script.max_concurrency > 1,
        is_concurrent=script.is_async or script.max_concurrency > 1,
        waits_for_restart=script.max_task_retries != 0,
    )

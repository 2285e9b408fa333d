"""A driver whose wait lasts long is told why, if nothing that runs will end it. So is who interrupts it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ray_mono.common.exceptions import GetTimeoutError
from ray_mono.core_worker.objects import long_waits
from ray_mono.core_worker.options import STREAMING_RETURNS
from ray_mono.core_worker.task_submission import explainer
from ray_mono.protobuf import common_pb2
from ray_mono.protobuf.object_manager_pb2 import GetReply
from ray_mono.protobuf.object_manager_pb2 import ObjectFound as Found
from tests.core_worker.scene import ELSEWHERE, Scene, in_store, value
from tests.core_worker.scene_time import ended


@pytest.fixture(autouse=True)
def looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at long waits does so in its timer, and lets no time pass before he looks again."""
    monkeypatch.setattr(long_waits, "start", threading.Thread.run)
    monkeypatch.setattr(explainer, "AGAIN_S", 0.0)


def warnings_of(scene: Scene) -> list[str]:
    said = [each.request.message.payload for each in scene.wire.all("Publish")]
    return [common_pb2.ErrorInfo.FromString(payload).message for payload in said]


def infeasible(request: Any) -> common_pb2.WaitReason:
    return common_pb2.WaitReason(code="INFEASIBLE", text="f needs a moon", unblock="start one")


def stuck_scene(**options: Any) -> Scene:
    scene = Scene(wait_warning_s=1.0, **options)
    scene.wire.replies["Explain"] = infeasible
    return scene


def get(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    with contextlib.suppress(GetTimeoutError):
        scene.core.get([ref], timeout_s)


def wait(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    scene.core.wait([ref], 1, timeout_s, False)


def next_item(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    generator = made_generator(scene)
    generator._next_sync(timeout_s)


def group(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    scene.core.placement_groups.wait(b"g" * 18, timeout_s)


def result(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    with contextlib.suppress(concurrent.futures.TimeoutError):
        ref.future().result(timeout_s)


def exception(scene: Scene, ref: Any, timeout_s: float | None) -> None:
    with contextlib.suppress(concurrent.futures.TimeoutError):
        ref.future().exception(timeout_s)


def made_generator(scene: Scene) -> Any:
    (generator,) = scene.core.submit_task(scene.template("g", num_returns=STREAMING_RETURNS), [])
    return generator


Waits = Callable[[Scene, Any, float | None], None]
blocking = [get, wait, next_item, group]
of_driver = pytest.mark.parametrize("waits", [*blocking, result, exception])


@of_driver
def test_a_wait_that_nothing_will_end_is_told_at_each_doubling(waits: Waits) -> None:
    scene = stuck_scene()
    waits(scene, scene.submit(), 10.0)
    told = warnings_of(scene)
    assert [text.split(":")[0] for text in told] == [f"Waiting for more than {each} s" for each in (1, 2, 4)]
    assert "f needs a moon. To unblock it: start one." in told[0]
    scene.pass_time(100.0)
    assert len(warnings_of(scene)) == 3, "the wait is over"


def test_a_get_without_a_bound_is_told() -> None:
    scene = stuck_scene()
    ref = scene.submit()
    scene.reactor.call_later(0.5, lambda: scene.meanwhile(lambda: scene.finish(ref, value(1))))
    assert scene.core.get([ref], None) == [1]
    assert len(warnings_of(scene)) == 1


async def awaits(ref: Any, wanted: Any) -> None:
    await ref


async def awaits_future(ref: Any, wanted: Any) -> None:
    await asyncio.wrap_future(ref.future())


async def gathers(ref: Any, wanted: Any) -> None:
    await asyncio.gather(ref)


async def waits_on_loop(ref: Any, wanted: Any) -> None:
    await asyncio.wait([asyncio.ensure_future(awaits(ref, wanted))])


async def wants_items(ref: Any, generator: Any) -> None:
    await anext(generator)


async def tries(waits: Any, ref: Any, generator: Any, meanwhile: Callable[[], None]) -> None:
    """Waits in a coroutine of its own, in vain."""
    waiting = asyncio.ensure_future(waits(ref, generator))
    for _ in range(3):
        await asyncio.sleep(0)
    meanwhile()
    waiting.cancel()
    await asyncio.wait([waiting])


@pytest.mark.parametrize("waits", [awaits, awaits_future, gathers, waits_on_loop, wants_items])
def test_a_coroutine_that_waits_for_what_does_not_come_is_told(waits: Any) -> None:
    scene = stuck_scene()
    ref, generator = scene.submit(), made_generator(scene)
    asyncio.run(tries(waits, ref, generator, lambda: scene.pass_time(3.5)))
    assert [text.split(":")[0] for text in warnings_of(scene)] == [
        f"Waiting for more than {each} s" for each in (1, 2)
    ]
    scene.pass_time(100.0)
    assert len(warnings_of(scene)) == 2, "it was cancelled"


def test_a_future_that_is_done_in_time_is_not_asked_about() -> None:
    scene = stuck_scene()
    ref = scene.submit()
    future = ref.future()
    scene.finish(ref, value(1))
    assert ended(future).result() == 1
    scene.pass_time(100.0)
    assert not scene.wire.all("Explain") and not scene.reactor.timers


def test_a_future_for_which_nobody_waits_is_not_asked_about() -> None:
    scene = stuck_scene()
    future = scene.submit().future()
    future.add_done_callback(lambda future: None)
    assert not future.done()
    scene.pass_time(100.0)
    assert not scene.wire.all("Explain") and not scene.reactor.timers
    scene.core.shutdown()


@pytest.mark.parametrize("waits", ["result", "await"])
def test_a_wait_for_a_future_counts_from_its_begin(waits: str) -> None:
    scene = stuck_scene()
    future = scene.submit().future()
    scene.pass_time(50.0)

    async def awaits_it(ref: Any, wanted: Any) -> None:
        await asyncio.wrap_future(future)

    def wait_for(timeout_s: float) -> None:
        if waits == "await":
            asyncio.run(tries(awaits_it, None, None, lambda: scene.pass_time(timeout_s)))
        else:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                future.result(timeout_s)

    wait_for(0.9)
    assert not warnings_of(scene)
    if waits == "result":
        wait_for(1.1)
        assert len(warnings_of(scene)) == 1 and not future.done()
        scene.core.shutdown()


def told_with_id(request: Any) -> common_pb2.WaitReason:
    text = f"{request.subject.name} ({request.subject.id.hex()}) needs a moon"
    return common_pb2.WaitReason(code="INFEASIBLE", text=text, unblock="start one")


def test_what_differs_by_its_id_only_is_told_once() -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = told_with_id
    refs = [scene.submit(name=name, runtime_env=f"{number}") for number, name in enumerate("fffffg")]

    async def all_of_them(ref: Any, wanted: Any) -> None:
        await asyncio.gather(*refs)

    def and_another() -> None:
        """It is due a moment later than they are, and is looked at by itself."""
        scene.pass_time(1.1)
        get(scene, scene.submit(runtime_env="other"), 1.5)

    asyncio.run(tries(all_of_them, None, None, and_another))
    assert sorted(text.split("; ")[-1].split()[0] for text in warnings_of(scene)) == ["f()", "g()"]


@pytest.mark.parametrize("comes", [False, True])
def test_what_ended_as_another_wait_does_keeps_no_line_from_it(comes: bool) -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = told_with_id
    ref = scene.submit()
    if comes:
        scene.reactor.call_later(1.1, lambda: scene.finish(ref, value(1)))
    get(scene, ref, 1.2)
    assert len(warnings_of(scene)) == 1
    get(scene, scene.submit(), 1.2)
    assert len(warnings_of(scene)) == 2


@pytest.mark.parametrize("timeout_s", [0.0, 0.4])
@pytest.mark.parametrize("waits", [get, wait, next_item, awaits])
def test_a_program_that_waits_again_and_again_is_told_as_if_it_had_waited_once(
    waits: Any, timeout_s: float
) -> None:
    scene = stuck_scene()
    ref, generator = scene.submit(), made_generator(scene)
    with_same = {
        next_item: lambda: generator._next_sync(timeout_s),
        awaits: lambda: asyncio.run(tries(awaits, ref, None, lambda: None)),
    }
    told_at_s = []
    for _ in range(20):
        (with_same.get(waits) or (lambda: waits(scene, ref, timeout_s)))()
        if len(warnings_of(scene)) > len(told_at_s):
            told_at_s.append(scene.reactor.now_s - 1000.0)
        scene.pass_time(0.5 - timeout_s if waits is not awaits else 0.5)
    # As of the second look, by which it shows.
    assert len(told_at_s) == 3 and 1.5 <= told_at_s[0] <= 2.0 and 3.5 <= told_at_s[1] <= 4.0, told_at_s


def test_a_program_that_looks_seldom_but_again_and_again_is_told() -> None:
    scene = stuck_scene()
    ref = scene.submit()
    for _ in range(4):
        wait(scene, ref, 0.0)
        scene.pass_time(5.0)
    assert len(warnings_of(scene)) == 2


@pytest.mark.parametrize("num_looks", [1, 4])
def test_a_wait_after_a_look_or_a_few_long_before_is_one_of_its_own(num_looks: int) -> None:
    scene = stuck_scene()
    ref = scene.submit()
    for _ in range(num_looks):
        wait(scene, ref, 0.0)
        scene.pass_time(0.1)
    scene.pass_time(50.0)
    get(scene, ref, 0.9)
    assert not warnings_of(scene)


def test_a_program_that_looks_again_and_again_is_not_told_once_it_has_what_it_wants() -> None:
    scene = stuck_scene()
    ref, other = scene.submit(), scene.submit(name="other")
    wait(scene, ref, 0.9)
    scene.finish(ref, value(1))
    wait(scene, ref, 0.9)
    wait(scene, other, 0.9)
    assert not warnings_of(scene)


def test_only_the_latest_waits_in_vain_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_waits, "IN_VAIN_MAX", 10)
    for num_refs, num_told in ((10, 1), (11, 0)):
        scene = stuck_scene()
        refs = [scene.submit() for _ in range(num_refs)]
        for _ in range(3):
            for ref in refs:
                wait(scene, ref, 0.0)
            scene.pass_time(1.0)
        wait(scene, refs[0], 0.0)
        assert len(warnings_of(scene)) == num_told


@pytest.mark.parametrize("num_running", [0, 90])
def test_a_program_that_looks_at_many_in_turn_is_told_of_what_is_stuck_at_each_doubling(
    num_running: int,
) -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = told_by_name
    running = [scene.submit(name="g", runtime_env="other") for _ in range(num_running)]
    refs = [*running, *(scene.submit() for _ in range(1 if num_running else 1000))]
    for _ in range(10):
        for ref in refs:
            wait(scene, ref, 0.0)
        scene.pass_time(1.0)
    told = warnings_of(scene)
    assert len(told) == 3 and all("f needs a moon" in each for each in told), told


@of_driver
def test_whoever_interrupts_a_wait_is_told_what_it_waited_for(
    waits: Waits, capfd: pytest.CaptureFixture[str]
) -> None:
    scene = stuck_scene()
    for timeout_s in (None, 10.0):
        scene.meanwhile(scene.reactor.note_interrupt)
        with pytest.raises(KeyboardInterrupt):
            waits(scene, scene.submit(), timeout_s)
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("(ray_mono) Interrupted while it waited: ") and "f needs a moon" in line
    assert not warnings_of(scene)


def test_whoever_interrupts_a_wait_for_many_is_told_of_the_first_that_is_stuck(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each may cost seconds."""
    scene = stuck_scene()
    refs = [scene.submit(runtime_env=str(number)) for number in range(5)]
    scene.meanwhile(scene.reactor.note_interrupt)
    with pytest.raises(KeyboardInterrupt):
        scene.core.get(refs, None)
    assert "f needs a moon" in capfd.readouterr().err and len(scene.wire.all("Explain")) == 1


def test_an_interrupt_that_cannot_be_explained_is_an_interrupt(capfd: pytest.CaptureFixture[str]) -> None:
    scene = stuck_scene()
    scene.wire.replies["Explain"] = lambda request: 1 / 0
    scene.meanwhile(scene.reactor.note_interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(scene, scene.submit(), None)
    assert "cannot say why: division by zero" in capfd.readouterr().err


@pytest.mark.parametrize("waits", blocking)
def test_a_worker_tells_nothing(waits: Waits, capfd: pytest.CaptureFixture[str]) -> None:
    scene = stuck_scene(is_driver=False)
    waits(scene, scene.submit(), 10.0)
    future = scene.submit().future()
    scene.meanwhile(scene.reactor.note_interrupt)
    with pytest.raises(KeyboardInterrupt):
        waits(scene, scene.submit(), 10.0)
    assert not scene.wire.all("Explain") and not capfd.readouterr().err and not future.done()
    scene.core.shutdown()


def test_a_wait_for_what_runs_is_not_told() -> None:
    scene = Scene(wait_warning_s=1.0)
    scene.wire.replies["Explain"] = lambda request: common_pb2.WaitReason(code="RUNNING", text="f runs")
    get(scene, scene.submit(), 10.0)
    assert scene.wire.all("Explain") and not warnings_of(scene)


def test_a_short_wait_asks_nobody() -> None:
    scene = Scene(wait_warning_s=1.0)
    get(scene, scene.submit(), 0.5)
    assert not scene.wire.all("Explain")


def test_where_no_warning_is_wanted_nobody_is_asked() -> None:
    scene = Scene(wait_warning_s=float("inf"))
    get(scene, scene.submit(), 100.0)
    assert not scene.wire.all("Explain") and not scene.reactor.timers


def told_by_name(request: Any) -> common_pb2.WaitReason:
    """f is stuck, and other functions run."""
    name = request.subject.name
    return (
        infeasible(request) if name == "f()" else common_pb2.WaitReason(code="RUNNING", text=f"{name} runs")
    )


def test_a_get_of_several_is_told_of_the_one_that_is_stuck() -> None:
    scene = Scene(wait_warning_s=1.0)
    runs, stuck = scene.submit(name="g"), scene.submit()
    scene.wire.replies["Explain"] = told_by_name
    with pytest.raises(GetTimeoutError):
        scene.core.get([runs, stuck], 1.5)
    (told,) = warnings_of(scene)
    assert "(one of 2 that are missing): " in told and "f needs a moon" in told


def test_who_waits_for_what_somebody_may_do_is_told_that_it_may_be_in_vain() -> None:
    scene = Scene(wait_warning_s=1.0)
    ref = scene.submit()
    text = "f is in a process that cannot be asked"
    scene.wire.replies["Explain"] = lambda request: common_pb2.WaitReason(code="UNREACHABLE", text=text)
    get(scene, ref, 1.5)
    (told,) = warnings_of(scene)
    assert told.startswith("Waiting for more than 1 s, perhaps in vain: object") and text in told


def test_those_are_looked_at_first_whose_calls_no_worker_has(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_waits, "LOOKED_AT_MAX", 1)
    monkeypatch.setattr(long_waits, "INTERRUPTED_MAX", 1)
    scene = Scene(wait_warning_s=1.0)
    runs = scene.submit(name="g")
    scene.grant()
    stuck = scene.submit()
    scene.wire.replies["Explain"] = told_by_name
    with pytest.raises(GetTimeoutError):
        scene.core.get([runs, stuck], 1.5)
    assert len(warnings_of(scene)) == 1
    scene.meanwhile(scene.reactor.note_interrupt)
    with pytest.raises(KeyboardInterrupt):
        scene.core.get([runs, stuck], None)
    assert "f needs a moon" in capfd.readouterr().err


def test_a_get_of_very_many_is_told_how_many_of_them_are_looked_at() -> None:
    scene = Scene(wait_warning_s=1.0)
    refs = [scene.submit() for _ in range(long_waits.LOOKED_AT_MAX + 5)]
    scene.wire.replies["Explain"] = infeasible
    with pytest.raises(GetTimeoutError):
        scene.core.get(refs, 1.5)
    (told,) = warnings_of(scene)
    looked_at = f"of which {long_waits.LOOKED_AT_MAX} are looked at"
    assert f"(one of {len(refs)} that are missing, {looked_at}): " in told


def test_a_wait_for_one_of_several_is_not_told_while_another_runs() -> None:
    scene = Scene(wait_warning_s=1.0)
    stuck, runs, other = scene.submit(), scene.submit(name="g"), scene.submit(name="h")
    scene.wire.replies["Explain"] = told_by_name
    scene.core.wait([stuck, runs], 1, 1.5, False)
    assert not warnings_of(scene)
    scene.core.wait([other, stuck], 2, 1.5, False)
    assert len(warnings_of(scene)) == 1


@pytest.mark.parametrize("how", ["get", "wait"])
def test_a_wait_for_a_copy_that_does_not_come_is_told(how: str) -> None:
    scene = stuck_scene()
    ref = scene.submit()
    scene.finish(ref, in_store(ref.binary(), ELSEWHERE))
    if how == "get":
        not_here = GetReply(objects=[Found(object_id=ref.binary(), state=Found.NOT_HERE)])

        def when_it_is_long() -> None:
            scene.meanwhile(lambda: scene.pass_time(2.5))
            scene.meanwhile(lambda: scene.wire.open("Get")[0].answer(not_here))

        scene.reactor.call_later(1.0, when_it_is_long)
        with pytest.raises(GetTimeoutError):
            scene.core.get([ref], 3.5)
    else:
        assert scene.core.wait([ref], 1, 3.5, True) == ([], [ref])
    assert len(warnings_of(scene)) == 2 and "f needs a moon" in warnings_of(scene)[0]

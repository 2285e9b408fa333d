"""Nobody waits for what has happened:
the real reactor, whose threads pause at every step in turn (machine.py).

lead_test.py goes through all interleavings of a model, which holds lead.py. Here it is the product that runs,
under fewer of them: so a wake-up that reactor.py forgets is found as well.
"""

from __future__ import annotations

import inspect
import textwrap
from collections import deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from ray_mono.rpc import framing, reactor
from ray_mono.rpc.reactor import Reactor, Waiter
from tests.rpc.machine import LONG, Channel, Machine

_ITEM = framing.encode(framing.ITEM, 0, 0, b"")


class Scene:
    """One process: its reactor, a channel to a peer, and what its threads have done."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.reactor = Reactor("scene")
        self.channel = Channel(machine, self.reactor)
        self.method = self.channel.method()
        self.told: list[str] = []
        self.expected: list[str] = []
        self.deque: deque[None] = deque()
        self.reactor.serve_queues((self.deque,), self._drain)

    def left(self) -> list[str]:
        """What is not done, though everybody waits."""
        undone = ["what finalizers left"] if self.deque and not self.reactor.is_closed else []
        undone += ["what was buffered"] if self.channel.has_unsent else []
        undone += [f"not told: {what}" for what in self.expected if what not in self.told]
        return undone

    def _drain(self) -> None:
        while self.deque:
            self.deque.popleft()
            self.method.notify(b"a reference ended")

    def tell(self, what: str) -> Callable[..., None]:
        self.expected.append(what)
        return lambda *_: self.told.append(what)

    # ---- what a thread does

    def calls(self, name: str) -> Callable[[], None]:
        tell = self.tell(name)
        return lambda: self.method(name.encode()) == name.encode() and tell()

    def calls_later(self, name: str) -> Callable[[], None]:
        tell = self.tell(name)
        return lambda: self.method.start(name.encode(), tell)

    def submits(self, name: str) -> Callable[[], None]:
        """Calls, with turns in between."""
        tells = [self.tell(f"{name} {number}") for number in range(3)]

        def run() -> None:
            for number, tell in enumerate(tells):
                self.method.start(f"{name} {number}".encode(), tell)
                self.reactor.take_turn()

        return run

    def calls_for_long(self) -> None:
        self.method.start(LONG, lambda *_: None)

    def gives_up(self) -> None:
        self.reactor.wait(Waiter(self.reactor), 0.001)

    def waits(self, own: Waiter) -> Callable[[], None]:
        tell = self.tell("the wait")
        return lambda: self.reactor.wait(own, None) and tell()

    def ends_wait(self, own: Waiter) -> None:
        with self.reactor.lock:
            own.set()

    def notifies(self) -> None:
        self.method.notify(b"a credit")

    def finalizes(self) -> None:
        self.deque.append(None)
        self.reactor.wake()

    def answers(self) -> None:
        """A short call's answer, while others are queued (task_reply.py)."""
        with self.reactor.lock:
            self.channel.write(framing.encode(framing.REPLY, 0, 0, b""), rings=False)
            self.reactor.flush_soon()

    def collects(self) -> None:
        """The same of a concurrent actor's: without the lock (kept_answers.py)."""
        self.deque.append(None)
        self.reactor.flush_soon()

    def yields(self) -> Callable[[], None]:
        """An item that collects with others (item_sender.py)."""
        tell = self.tell("the item is sent")

        def flush() -> None:
            self.channel.write(_ITEM, rings=False)
            tell()

        def run() -> None:
            with self.reactor.lock:
                self.reactor.mark_dirty(SimpleNamespace(flush=flush))

        return run

    def sets_timer(self) -> Callable[[], None]:
        tell = self.tell("the timer")

        def run() -> None:
            with self.reactor.lock:
                self.reactor.call_later(0.005, tell)

        return run


def idle(scene: Scene) -> None:
    """The main thread of a worker: waits for calls that may never come."""
    scene.reactor.wait(Waiter(scene.reactor), None)


def twice(scene: Scene, program: Callable[[], None]) -> Callable[[], None]:
    """Each time once the background sleeps."""

    def run() -> None:
        for _ in range(2):
            scene.machine.block(lambda: False, 0.01)
            program()

    return run


def a_wait_that_another_ends(scene: Scene) -> list[Callable[[], None]]:
    own = Waiter(scene.reactor)
    return [scene.waits(own), partial(scene.ends_wait, own)]


def a_handler_that_waits(scene: Scene) -> list[Callable[[], None]]:
    """A signal's, on the thread that polls: the answer for the wait below may come meanwhile."""
    call = scene.calls("below")

    def run() -> None:
        scene.machine.current.guest = lambda: scene.calls("in the handler")()
        call()

    return [run]


def closing(scene: Scene) -> list[Callable[[], None]]:
    tells = [scene.tell(f"the end of wait {number}") for number in range(2)]
    waits = [lambda tell=tell: scene.reactor.wait(Waiter(scene.reactor), None) or tell() for tell in tells]
    return [*waits, scene.reactor.close]


SCENES: dict[str, Callable[[Scene], list[Callable[[], None]]]] = {
    "one get": lambda scene: [scene.calls("a")],
    "two get at once": lambda scene: [scene.calls("a"), scene.calls("b")],
    "a get that gives up beside another": lambda scene: [scene.gives_up, scene.calls("a")],
    "a get beside credits": lambda scene: [scene.calls("a"), scene.notifies],
    "calls that nobody waits for": lambda scene: [scene.calls_later("a"), scene.calls_later("b")],
    "bursts of calls": lambda scene: [scene.submits("a"), scene.submits("b")],
    "bursts of calls while references end": lambda scene: [scene.submits("a"), scene.calls("b")],
    "a credit beside a call that takes long": lambda scene: [scene.calls_for_long, scene.notifies],
    "credits while references end": lambda scene: [scene.notifies, scene.finalizes],
    "references that end one after the other": lambda scene: [twice(scene, scene.finalizes)],
    "a wait that another ends": a_wait_that_another_ends,
    "a handler that waits": a_handler_that_waits,
    "a timer beside a get": lambda scene: [scene.calls("a"), scene.sets_timer()],
    "a timer and items in a worker": lambda scene: [partial(idle, scene), scene.sets_timer(), scene.yields()],
    "a worker's answers and items": lambda scene: [partial(idle, scene), scene.answers, scene.yields()],
    "answers one after the other": lambda scene: [twice(scene, scene.answers)],
    "a worker's collected answers": lambda scene: [partial(idle, scene), scene.collects, scene.collects],
    "collected answers and others": lambda scene: [partial(idle, scene), scene.collects, scene.answers],
    "collected answers one after the other": lambda scene: [twice(scene, scene.collects)],
    "the end of the process": closing,
}


def run(name: str, schedule: dict[int, str]) -> tuple[list[str], Machine]:
    """(what is left, how it went)."""
    machine = Machine(schedule)
    with pytest.MonkeyPatch.context() as during:
        for module, attribute, stand_in in machine.patched():
            during.setattr(module, attribute, stand_in)
        scene = Scene(machine)
        machine.check, machine.interrupt = scene.left, scene.finalizes
        left = machine.run([*SCENES[name](scene), scene.channel.socket.answer])
        machine.join()
    return left, machine


def search(name: str) -> str:
    """The first schedule that leaves something undone, and what; empty if none does."""
    schedule: dict[int, str] = {}
    left, first = run(name, schedule)
    every = range(1, first.num_steps + 1)
    # Who holds the lock is disturbed by finalizers only.
    at_pauses = every if "references" in name else first.free_steps
    # They come at each step of some scenes: what they find is found in every one.
    at_guests = every if "references" in name or "wait" in name else ()
    schedules = [{step: "guest"} for step in at_guests]
    schedules += [{step: "pause"} for step in at_pauses] + [{step: "long"} for step in first.free_steps]
    while not left and schedules:
        schedule = schedules.pop()
        left, _ = run(name, schedule)
    return f"{left} after {schedule}" if left else ""


@pytest.mark.parametrize("name", SCENES)
def test_whoever_pauses_nothing_is_left_undone(name: str) -> None:
    assert not search(name)


@pytest.mark.parametrize("is_handed_over", [True, False])
def test_what_comes_is_read_at_once_where_that_was_handed_over(is_handed_over: bool) -> None:
    """Else the background waits a little for the next caller."""
    machine = Machine({})
    with pytest.MonkeyPatch.context() as during:
        for module, attribute, stand_in in machine.patched():
            during.setattr(module, attribute, stand_in)
        scene = Scene(machine)
        machine.check = scene.left
        times_s: list[float] = []

        def run() -> None:
            scene.method(b"led")
            times_s.append(machine.now_s)
            scene.method.start(b"not led", lambda *_: times_s.append(machine.now_s))
            if is_handed_over:
                with scene.reactor.lock:
                    scene.reactor.hand_over()

        machine.run([run, scene.channel.socket.answer])
        machine.join()
    assert (times_s[0] == times_s[1]) is is_handed_over


def planted(method: Callable[..., Any], *changes: tuple[str, str]) -> Callable[..., Any]:
    """A method of the reactor's, in whose source something reads otherwise."""
    source = "from __future__ import annotations\n" + textwrap.dedent(inspect.getsource(method))
    for before, after in changes:
        assert source.count(before) == 1
        source = source.replace(before, after)
    code = compile(source, str(reactor.__file__), "exec")
    made: dict[str, Any] = {}
    exec(code, vars(reactor), made)
    return made[method.__name__]  # type: ignore[no-any-return]


FAULTS: dict[str, tuple[type, str, Callable[..., Any], str]] = {
    "nobody is rung for what is buffered": (
        Reactor,
        "mark_dirty",
        lambda self, connection, rings=True: self._dirty.append(connection),
        "a get beside credits",
    ),
    "the last look comes before the nap": (
        Reactor,
        "_take_turns",
        planted(
            Reactor._take_turns,
            ("lead.doze()", "pass"),
            ("self._poll_until_s =", "lead.doze(); self._poll_until_s ="),
        ),
        "credits while references end",
    ),
    "a timer rings nobody": (
        Reactor,
        "call_later",
        lambda self, delay_s, callback: self._timers.add(delay_s, callback),
        "a timer and items in a worker",
    ),
    "a nested wait does not ring": (
        Reactor,
        "_end_part",
        planted(Reactor._end_part, ("os.eventfd_write(self._wake_fd, 1)", "pass")),
        "a handler that waits",
    ),
    "what is closed wakes nobody": (
        Reactor,
        "close",
        planted(Reactor.close, ("waiter.open()", "pass")),
        "the end of the process",
    ),
    "the end of a wait rings nobody": (
        Waiter,
        "set",
        lambda self: setattr(self, "done", True) or self.open(),
        "a wait that another ends",
    ),
    "who leaves the lead sets nobody's clock": (
        Reactor,
        "_leave",
        lambda self: self._lead.leave() and None,
        "a timer beside a get",
    ),
    "who submits leaves the lead to nobody": (
        Reactor,
        "take_turn",
        planted(Reactor.take_turn, ("self._leave()", "pass")),
        "bursts of calls",
    ),
    "who submits sends nothing": (
        Reactor,
        "take_turn",
        planted(Reactor.take_turn, ("self._settle()", "self._dirty.clear()")),
        "bursts of calls",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_reactor_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, fault, scene = FAULTS[name]
    monkeypatch.setattr(owner, method, fault)
    assert search(scene)
